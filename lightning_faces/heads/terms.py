"""Losses as terms: a value and a count per sample, which are summed before they are divided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric


@dataclass(eq=False)
class Term:
    """One term of a loss, sample by sample, so that it can be averaged over all samples of all ranks exactly.

    Attributes:
        value: ``[B]``, sum of a sample's errors; 0 for a sample without the target.
        count: ``[B]``, how many errors that is: 1 or 0 for one error a face, the valid pixels for a dense target.
        weight: What the term's mean counts in the loss.
    """

    value: Tensor
    count: Tensor
    weight: float | Tensor = 1.0


def full_precision(values: Tensor) -> Tensor:
    """Half precision as float32, since coordinates in pixels and sums over a batch do not fit into it.

    Booleans and integers become float32 too, and float64 stays.
    """
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def masked_term(values: Tensor, mask: Tensor, weight: float | Tensor = 1.0) -> Term:
    """A term of errors ``[B, ...]`` where ``mask``, of the same shape, is true.

    Example:
        >>> term = masked_term(torch.tensor([[1.0, 2.0], [9.0, 4.0]]), torch.tensor([[True, True], [False, True]]))
        >>> term.value, term.count
        (tensor([3., 4.]), tensor([2., 1.]))
    """
    values = full_precision(values)
    marked = mask.to(values.dtype)
    return Term((values * marked).flatten(1).sum(dim=1), marked.flatten(1).sum(dim=1), weight)


def term_means(
    terms: Mapping[str, Term], ranks: int = 1, sum_over_ranks: Callable[[Tensor], Tensor] = lambda values: values
) -> dict[str, Tensor]:
    """Mean of each term over the samples of all ranks: sum of values over sum of counts, 0 where nothing counts.

    The value is the same on all ranks. Its gradient is this rank's part times the number of ranks, so that the mean of
    the ranks' gradients, which DDP takes, is that of the loss over all samples.

    Args:
        terms: By name.
        ranks: Number of ranks.
        sum_over_ranks: Sums a tensor over them, without a gradient.

    Returns:
        Scalars by name.

    Example:
        >>> terms = {"depth": Term(torch.tensor([3.0, 0.0, 5.0]), torch.tensor([1, 0, 1]))}
        >>> term_means(terms)
        {'depth': tensor(4.)}
    """
    values = torch.stack([full_precision(term.value).sum() for term in terms.values()])
    counts = torch.stack([full_precision(term.count).sum() for term in terms.values()]).to(values.dtype)
    all_values, all_counts = sum_over_ranks(torch.stack((values.detach(), counts)))
    all_counts = torch.where(all_counts > 0, all_counts, 1.0)
    means = values / all_counts
    if ranks > 1:
        means = ranks * means
        means = means + (all_values / all_counts - means).detach()
    return dict(zip(terms, means.unbind()))


def weighted_sum(terms: Mapping[str, Term], means: Mapping[str, Tensor]) -> Tensor:
    """The loss of terms with the means that :func:`term_means` gives."""
    return torch.stack([term.weight * means[name] for name, term in terms.items()]).sum()


class TermMean(Metric):
    """The weighted sum of terms' means over all samples of all ranks, as a float64 scalar."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, Tensor] = {}

    def update(self, terms: Mapping[str, Term]) -> None:
        """Add a batch."""
        for name, term in terms.items():
            if name not in self.weights:
                for state in (f"value_{name}", f"count_{name}"):
                    self.add_state(state, torch.zeros((), dtype=torch.float64, device=self.device), "sum")
            self.weights[name] = torch.as_tensor(term.weight, dtype=torch.float64).detach()
            self._add(f"value_{name}", term.value)
            self._add(f"count_{name}", term.count)

    def compute(self) -> Tensor:
        """The loss; a term that nothing counted in adds nothing."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, weight in self.weights.items():
            count = getattr(self, f"count_{name}")
            mean = getattr(self, f"value_{name}") / torch.where(count > 0, count, 1.0)
            total = total + weight.to(total.device) * mean
        return total

    def _add(self, state: str, values: Tensor) -> None:
        setattr(self, state, getattr(self, state) + values.detach().sum(dtype=torch.float64))
