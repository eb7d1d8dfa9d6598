"""Cross-view consistency error of the 3DFAW challenge."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_faces.metrics.base import PerSample, PerSampleMetric, YawBin
from lightning_faces.metrics.functional import Criterion, cross_view_consistency_error, scored_points

_PAIRS_AT_ONCE = 4096


class CrossViewConsistencyError(PerSampleMetric):
    """CVGTCE, a fraction (Zhao 2016, eq. 14): a prediction against the *other* views' true points of the same subject.

    Every ordered pair (prediction in one view, truth in another) of distinct views of a subject is scored after its
    best similarity transform. A sample's error is the mean over its pairs, and the result the mean over samples: with
    equally many views per subject, the mean over all ordered pairs. Samples of unknown subject (-1), or whose subject
    has no other view, are not counted. The landmarks of all samples are kept until ``compute``.

    Args:
        criterion: ``squared`` (least squares) or ``unsquared`` (as the paper prints it).
        yaw_bin: As in :class:`.NormalizedMeanError`; the yaw of the predicted view.
    """

    def __init__(self, criterion: Criterion = "squared", yaw_bin: YawBin | None = None) -> None:
        super().__init__("preds", "target", "scored", "subject", "view", yaw_bin=yaw_bin)
        self.criterion: Criterion = criterion

    def update(
        self,
        preds: Tensor,
        target: Tensor,
        index: Tensor,
        subject: Tensor,
        view: Tensor,
        yaw: Tensor | None = None,
        landmark_mask: Tensor | None = None,
    ) -> None:
        """Add samples.

        Args:
            preds: Predicted points ``[B, 68 or 66, 3]``.
            target: True points, same shape and frame.
            index: Int64 ``[B]``.
            subject: Int64 ``[B]``, -1 where unknown.
            view: Int64 ``[B]``.
            yaw: ``[B]`` degrees.
            landmark_mask: Bool ``[B, L]`` or ``[B, L, 3]``.
        """
        scored = scored_points(landmark_mask, target)
        keep = scored.any(dim=-1) & (subject >= 0)
        self._store(index, yaw, keep, preds=preds, target=target, scored=scored, subject=subject, view=view)

    def errors_of(self, rows: dict[str, Tensor]) -> PerSample:
        """Errors of the samples that have another view; see the class."""
        subject, view = rows["subject"], rows["view"]
        total = torch.zeros(len(subject), dtype=torch.float64, device=subject.device)
        count = torch.zeros_like(total)
        for first, second in _pairs(subject, view):
            error = cross_view_consistency_error(
                rows["preds"][first],
                rows["target"][second],
                criterion=self.criterion,
                mask=rows["scored"][first] & rows["scored"][second],
            )
            total.index_add_(0, first, error)
            count.index_add_(0, first, torch.ones_like(error))
        paired = count > 0
        return PerSample(rows["index"][paired], (total / count)[paired], rows["yaw"][paired])


def _pairs(subject: Tensor, view: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Ordered pairs of positions with the same subject and different views, in chunks."""
    firsts, seconds = [], []
    order = subject.argsort(stable=True)
    for group in torch.tensor_split(order, (subject[order].diff().nonzero()[:, 0] + 1).tolist()):
        first, second = torch.meshgrid(group, group, indexing="ij")
        distinct = view[first] != view[second]
        firsts.append(first[distinct])
        seconds.append(second[distinct])
    pairs = torch.stack((torch.cat(firsts), torch.cat(seconds)))
    return [
        (pairs[0, i : i + _PAIRS_AT_ONCE], pairs[1, i : i + _PAIRS_AT_ONCE])
        for i in range(0, pairs.shape[1], _PAIRS_AT_ONCE)
    ]
