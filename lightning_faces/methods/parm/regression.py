"""Linear regressions in closed form, over rows that are spread over processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lightning_faces.methods.parm.ranks import Ranks

ROWS = 8192
"""Rows that are worked on together: they bound the memory, and their places fit into 16 bits."""


class IndicatorRows:
    """Rows of a sparse matrix of zeros and ones: in each block of columns, one per tree, at most one is 1.

    Kept are two bytes and one byte per row and tree. The Gram matrix of the columns is never formed.

    Args:
        leaves: uint8 ``[N, T]``, the column within each block; the number ``width - 1`` stands for none.
        width: Columns of a block, the last of which is always 0.
    """

    def __init__(self, leaves: Tensor, width: int) -> None:
        self.width, self.trees = width, leaves.shape[1]
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in torch.split(leaves, ROWS):
            # Rows in the order of their columns: the transpose. Each tree's are a block of len(part).
            ordered, order = part.T.sort(dim=1, stable=True)
            edges = torch.arange(width, device=part.device, dtype=part.dtype).expand(self.trees, -1).contiguous()
            begin = torch.searchsorted(ordered.contiguous(), edges)
            begin = begin + torch.arange(self.trees, device=part.device)[:, None] * len(part)
            self.parts.append((part, order.flatten().to(torch.int16), begin.flatten().to(torch.int32)))

    @property
    def columns(self) -> int:
        """Number of columns."""
        return self.trees * self.width

    def times(self, weights: Tensor) -> Tensor:
        """The product ``[N, C]`` with weights ``[columns, C]``."""
        return torch.cat([indicator_product(leaves, weights, self.width) for leaves, _, _ in self.parts])

    def transposed_times(self, values: Tensor) -> Tensor:
        """The product of the transposed rows with values ``[N, C]``, ``[columns, C]``; the last of a block is 0."""
        total = values.new_zeros((self.columns, values.shape[1]))
        start = 0
        for leaves, order, begin in self.parts:
            part = values[start : start + len(leaves)]
            total += nn.functional.embedding_bag(order.to(torch.int32), part, begin, mode="sum")
            start += len(leaves)
        total.view(self.trees, self.width, -1)[:, -1] = 0.0
        return total

    def counts(self) -> Tensor:
        """How many rows have a 1 in each column, float64 ``[columns, 1]``."""
        rows = sum(len(leaves) for leaves, _, _ in self.parts)
        return self.transposed_times(torch.ones((rows, 1), dtype=torch.float64, device=self.parts[0][0].device))


def indicator_product(leaves: Tensor, weights: Tensor, width: int) -> Tensor:
    """Sums ``[N, C]`` of the rows of weights ``[T * width, C]`` that the leaves ``[N, T]`` of T trees name."""
    blocks = torch.arange(leaves.shape[1], dtype=torch.int32, device=leaves.device) * width
    return nn.functional.embedding_bag(leaves.to(torch.int32) + blocks, weights, mode="sum")


def solve_indicators(
    rows: IndicatorRows,
    targets: Tensor,
    ridge: float,
    ranks: Ranks,
    tolerance: float = 1e-2,
    most: int = 100,
) -> Tensor:
    """Ridge regression on indicator rows by conjugate gradients: ``(A'A + ridge I) W = A' Y``.

    Each column of Y has its own step sizes. Products with A are float32, for each row alike in any batch; sums over
    rows and processes are float64, so that how the rows are spread matters to 1e-15 only.

    Args:
        rows: This process's rows of A.
        targets: ``[N, C]``, this process's rows of Y.
        ridge: Added to the diagonal.
        ranks: The processes.
        tolerance: Relative residual at which to stop; 1e-2 is far below what the choice of the ridge changes.
        most: Number of steps at which to stop.

    Returns:
        W, float64 ``[columns, C]``, the same on all processes.
    """
    inverse = 1.0 / (ranks.sum(rows.counts()) + ridge)  # the preconditioner: A'A has large and small diagonal entries
    residual = ranks.sum(rows.transposed_times(targets.double()))
    goal = tolerance * residual.norm(dim=0)
    solution = torch.zeros_like(residual)
    conditioned = inverse * residual
    direction = conditioned
    slope = (residual * conditioned).sum(dim=0)
    for _ in range(most):
        if bool((residual.norm(dim=0) <= goal).all()):
            break
        product = ranks.sum(rows.transposed_times(rows.times(direction.float()).double())) + ridge * direction
        curvature = (direction * product).sum(dim=0)
        step = slope / torch.where(curvature > 0, curvature, 1.0)
        solution = solution + step * direction
        residual = residual - step * product
        conditioned = inverse * residual
        before, slope = slope, (residual * conditioned).sum(dim=0)
        direction = conditioned + (slope / torch.where(before > 0, before, 1.0)) * direction
    return solution


def solve_ridge(features: Tensor, targets: Tensor, ridge: float, ranks: Ranks, weights: Tensor | None = None) -> Tensor:
    """Ridge regression with a constant by normal equations, features standardised so that one ridge suits them all.

    Args:
        features: ``[N, Z]``, this process's rows.
        targets: ``[N, D]``.
        ridge: Share of the features' variance that is added to it; the constant has none.
        ranks: The processes.
        weights: ``[N, D]``, what each squared error counts; None for 1.

    Returns:
        R, float64 ``[D, Z + 1]``: the prediction is ``R [feature; 1]``.
    """
    width, outputs = features.shape[1], targets.shape[1]
    sums = features.new_zeros((3, width), dtype=torch.float64)
    for z, _, _ in _parts(features, targets, weights):
        sums += torch.stack((z.sum(dim=0), z.square().sum(dim=0), torch.full_like(z[0], len(z))))
    sums = ranks.sum(sums)
    mean = sums[0] / sums[2]
    variance = (sums[1] / sums[2] - mean.square()).clamp_min(0.0)
    # A feature that does not vary tells nothing; its regressor stays 0.
    scale = torch.where(variance > 1e-12 * (mean.square() + 1e-12), variance, torch.inf).rsqrt()
    kinds = 1 if weights is None else outputs
    gram = torch.zeros((kinds, width + 1, width + 1), dtype=torch.float64, device=features.device)
    right = torch.zeros((width + 1, outputs), dtype=torch.float64, device=features.device)
    for z, y, w in _parts(features, targets, weights):
        full = nn.functional.pad((z - mean) * scale, (0, 1), value=1.0)
        if w is None:
            gram[0] += full.T @ full
            right += full.T @ y
        else:
            for output in range(outputs):
                gram[output] += (full * w[:, output, None]).T @ full
            right += full.T @ (w * y)
    gram, right = ranks.sum(gram), ranks.sum(right)
    # The last entry of the diagonal is the number of rows, or their weight.
    added = ridge * gram[:, -1:, -1] * torch.ones(width + 1, dtype=torch.float64, device=features.device)
    added[:, -1] = 0.0
    gram = gram + torch.diag_embed(added.clamp_min(torch.finfo(torch.float64).tiny))
    columns = right.T[..., None] if weights is not None else right[None]
    solved = torch.linalg.solve(gram, columns)
    regressor = solved[..., 0] if weights is not None else solved[0].T
    slopes = regressor[:, :-1] * scale
    return torch.cat((slopes, (regressor[:, -1] - slopes @ mean)[:, None]), dim=1)


def _parts(features: Tensor, targets: Tensor, weights: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Rows in float64, some at a time."""
    for start in range(0, len(features), ROWS):
        rows = slice(start, start + ROWS)
        yield features[rows].double(), targets[rows].double(), None if weights is None else weights[rows].double()
