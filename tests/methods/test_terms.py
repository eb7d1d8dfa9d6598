"""Terms of a loss: the exact ratio of sums over samples and ranks, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_faces.methods.base import Term, TermMean, masked_term, term_means, weighted_sum


def errors(weight: Tensor, inputs: Tensor) -> Tensor:
    return (inputs * weight).square()


def split(inputs: Tensor, known: Tensor, parts: tuple[slice, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Means and gradient as DDP makes them: each part a rank, gradients averaged."""
    weights = [torch.tensor(1.5, dtype=torch.float64, requires_grad=True) for _ in parts]
    terms = [{"error": masked_term(errors(w, inputs[p]), known[p], 2.0)} for w, p in zip(weights, parts)]
    sums = sum(torch.stack((t["error"].value.sum().detach(), t["error"].count.sum()))[:, None] for t in terms)
    losses = [weighted_sum(t, term_means(t, len(parts), lambda _: sums)) for t in terms]  # type: ignore[arg-type, return-value]
    for loss in losses:
        loss.backward()
    gradient = torch.stack([w.grad for w in weights if w.grad is not None]).mean()
    return {str(i): loss.detach() for i, loss in enumerate(losses)}, gradient


def test_ranks_with_few_targets_do_not_count_more() -> None:
    inputs = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    known = torch.rand(7, 4, generator=torch.Generator().manual_seed(1)) < 0.4
    known[3:5] = False  # a rank without a single target
    expected = 2 * (errors(torch.tensor(1.5), inputs) * known).sum() / known.sum()
    slope = 2 * (2 * 1.5 * inputs.square() * known).sum() / known.sum()
    for parts in ((slice(0, 7),), (slice(0, 3), slice(3, 5), slice(5, 7))):
        losses, gradient = split(inputs, known, parts)
        for loss in losses.values():
            assert float(loss) == pytest.approx(float(expected), rel=1e-12)
        assert float(gradient) == pytest.approx(float(slope), rel=1e-12)


def test_a_term_without_a_target_is_zero_with_a_zero_gradient() -> None:
    weight = torch.ones((), requires_grad=True)
    term = masked_term((weight * torch.ones(3, 2)), torch.zeros(3, 2, dtype=torch.bool))
    mean = term_means({"none": term})["none"]
    mean.backward()
    assert (float(mean.detach()), float(weight.grad or 0)) == (0.0, 0.0)


def test_half_precision_terms_are_summed_in_single() -> None:
    term = Term(torch.full((4096,), 1.0, dtype=torch.float16), torch.full((4096,), 20.0, dtype=torch.float16))
    assert float(term_means({"a": term})["a"]) == pytest.approx(1 / 20)


def test_validation_weighs_by_targets_not_by_batches() -> None:
    meter = TermMean()
    meter.update(
        {"a": Term(torch.tensor([4.0, 0.0]), torch.tensor([1, 0]), 0.5), "b": Term(torch.zeros(2), torch.zeros(2))}
    )
    meter.update({"a": Term(torch.tensor([1.0]), torch.tensor([1]), 0.5), "b": Term(torch.zeros(1), torch.zeros(1))})
    assert float(meter.compute()) == pytest.approx(0.5 * 5 / 2)
    meter.reset()
    assert float(meter.compute()) == 0.0
