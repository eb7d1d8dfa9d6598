"""The base of all metrics here: one row per sample, so that no process count or sampler changes a result."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from lightning_faces.errors import ConfigurationError
from lightning_faces.yaw_bins import YAW_BINS, yaw_bin_mask

YawBin = Literal["0_30", "30_60", "60_90", "mean"]

_BATCHES_KEPT_APART = 8
"""Batches whose rows are tensors of their own. Each is a few bytes that stay in the middle of the large blocks which
the next batches need, so that with a tensor per batch the heap grows by some 10 MB a batch of dense points."""


@dataclass(frozen=True)
class PerSample:
    """Errors of all samples, sorted by index, each sample once.

    Attributes:
        index: Int64 ``[N]``.
        error: Float64 ``[N]``.
        yaw: Float64 ``[N]`` degrees, NaN where unknown.
    """

    index: Tensor
    error: Tensor
    yaw: Tensor


class PerSampleMetric(Metric):
    """Keeps columns of per-sample values with the sample's index; ``compute`` is a mean over samples in float64.

    ``update`` may be called with padded or repeated samples (as a DistributedSampler makes them): ``compute`` gathers
    the rows of all processes, sorts them by index and keeps each index once. A non-finite error makes the result NaN
    and is reported by sample index in a warning; it is never averaged away. Samples without a single annotated point
    are not counted.

    Args:
        columns: Names of the columns besides ``index`` and ``yaw``.
        yaw_bin: Average over one bin of ``|yaw|`` only, or ``mean``: the mean of the three bins' means, as the field
            reports AFLW2000-3D (NaN while a bin is empty). None: all samples alike.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self, *columns: str, yaw_bin: YawBin | None = None) -> None:
        super().__init__()
        if yaw_bin is not None and yaw_bin not in get_args(YawBin):
            raise ConfigurationError(f"Unknown yaw bin {yaw_bin!r}: choose one of {', '.join(get_args(YawBin))}.")
        self.yaw_bin = yaw_bin
        self.columns = ("index", "yaw", *columns)
        for name in self.columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def per_sample(self) -> PerSample:
        """Errors of the samples seen (of this process, outside ``sync_context``)."""
        return self.errors_of(self.rows())

    def errors_of(self, rows: dict[str, Tensor]) -> PerSample:
        """Errors of rows as :meth:`rows` gives them: by default their column ``error``."""
        return PerSample(rows["index"], rows["error"], rows["yaw"])

    def remarks(self, rows: dict[str, Tensor]) -> list[str]:
        """Sentences that a record of the rows should say beside the mean; none by default."""
        return []

    def compute(self) -> Tensor:
        """The mean error as a float64 scalar; NaN if there is no sample or an error is not finite."""
        rows = self.per_sample()
        index, error, yaw = rows.index, rows.error, rows.yaw
        bad = index[~error.isfinite()].tolist()
        if bad:
            shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
            warnings.warn(
                f"{type(self).__name__}: the error of {len(bad)} of {len(index)} samples is not finite "
                f"(index {shown}), so the result is NaN.",
                stacklevel=2,
            )
            error = torch.where(error.isfinite(), error, float("nan"))
        values = self.contribution(error)
        if self.yaw_bin is None:
            return values.mean()
        if self.yaw_bin == "mean":
            return torch.stack([values[yaw_bin_mask(yaw, name)].mean() for name, _, _ in YAW_BINS]).mean()
        return values[yaw_bin_mask(yaw, self.yaw_bin)].mean()

    def contribution(self, error: Tensor) -> Tensor:
        """What each sample adds to the mean: its error, unless a subclass says otherwise."""
        return error

    def _store(self, index: Tensor, yaw: Tensor | None, keep: Tensor, **columns: Tensor) -> None:
        if yaw is None:
            yaw = torch.full(index.shape, float("nan"), device=index.device, dtype=torch.float64)
        values = {"index": index, "yaw": yaw.to(torch.float64), **columns}
        for name in self.columns:
            rows: list[Tensor] = getattr(self, name)
            rows.append(values[name].detach()[keep])
            if len(rows) >= _BATCHES_KEPT_APART:
                rows[:] = [torch.cat(rows)]

    def rows(self) -> dict[str, Tensor]:
        """The columns of the samples seen, sorted by index, each sample once."""
        index = getattr(self, "index")  # noqa: B009  (a state: a list, or one tensor after synchronisation)
        if isinstance(index, list) and not index:
            empty = torch.zeros(0, dtype=torch.float64, device=self.device)
            return {name: empty.to(torch.int64) if name == "index" else empty for name in self.columns}
        return sorted_rows({name: dim_zero_cat(getattr(self, name)) for name in self.columns})


def sorted_rows(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Columns sorted by ``index``, each index once."""
    ordered, order = rows["index"].sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return {name: value[order[first]] for name, value in rows.items()}
