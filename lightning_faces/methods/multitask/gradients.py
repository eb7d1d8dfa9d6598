"""How the tasks pull at the backbone that they share: norms of their gradients and the angles between them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def gradient_conflicts(losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Norm of each task's gradient in shared parameters, and the cosine between each two (Yu et al. 2020).

    Below 0, a step for one task alone makes the other one worse. The graph stays for the step itself.

    Args:
        losses: Scalars by task; one without a gradient is left out.
        shared: The parameters.

    Returns:
        ``norm_TASK`` and ``cosine_TASK_OTHER``; no cosine where a gradient is 0.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, 0.0]))
        >>> losses = {"a": (weight * torch.tensor([3.0, 4.0])).sum(), "b": -weight[0]}
        >>> {name: round(float(value), 2) for name, value in gradient_conflicts(losses, [weight]).items()}
        {'norm_a': 5.0, 'norm_b': 1.0, 'cosine_a_b': -0.6}
    """
    flat: dict[str, Tensor] = {}
    for name, loss in losses.items():
        if loss.requires_grad:
            parts = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True, materialize_grads=True)
            flat[name] = torch.cat([part.flatten().float() for part in parts])
    norms = {name: torch.linalg.vector_norm(value) for name, value in flat.items()}
    found = {f"norm_{name}": norm for name, norm in norms.items()}
    for one, other in itertools.combinations(flat, 2):
        if norms[one] > 0 and norms[other] > 0:
            found[f"cosine_{one}_{other}"] = flat[one] @ flat[other] / (norms[one] * norms[other])
    return found
