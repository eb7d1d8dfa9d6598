"""What a prediction is worth: every score that prediction and batch allow, over all ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.evaluation.aggregate import mean_of
from lightning_faces.evaluation.score_values import SharedModel, Values, has
from lightning_faces.evaluation.scores import SCORES, Score
from lightning_faces.geometry.landmarks import outer_eye_corners
from lightning_faces.metrics import PerSampleMetric
from lightning_faces.metrics.base import sorted_rows
from lightning_faces.morphable.model import MorphableModel

_NO_DEPTH = "no sample has landmarks with depth"
_NO_VALID_FACE = "no face is valid"
_WORDS = {"visible": "visibility", "dense_mask": "mask", "dense.pncc": "PNCC", "dense.offsets": "offsets"}
UNSTATED = "no reason given"
"""Reason of an invalid face whose method gives none."""


@dataclass(frozen=True)
class Scored:
    """What was scored, the same on all ranks.

    Attributes:
        table: The errors, as ``evaluation/aggregate.py`` describes it; rows in the order of ``index``.
        not_finite: For each score with errors that are not finite, the indices of their samples.
        left_out: For each score that was not scored at all, the reason.
        invalid: How many faces the method gave up on, by its reason.
        remarks: Sentences of the metrics.
    """

    table: dict[str, NDArray[Any]]
    not_finite: dict[str, list[int]]
    left_out: dict[str, str]
    invalid: dict[str, int]
    remarks: list[str]

    @property
    def notes(self) -> list[str]:
        """What a reader of the record should know: what was left out and why, invalid faces, and the remarks."""
        reasons = {why: names for why, names in self._reasons().items() if why != _NO_DEPTH}
        return [*(f"Not scored, since {why}: {', '.join(names)}." for why, names in reasons.items()), *self.news]

    @property
    def news(self) -> list[str]:
        """Those of the notes that nobody would expect of this method and data: worth a line when they are found."""
        found = []
        flat = self._reasons().get(_NO_DEPTH)
        if flat:
            found.append(f"Without depth in the labels there are no scores {', '.join(flat)}.")
        if self.invalid:
            count, listed = sum(self.invalid.values()), "; ".join(f"{n}: {why}" for why, n in self.invalid.items())
            found.append(
                f"{count} of {len(self.table['index'])} faces are not valid ({listed}): they are left out of the means "
                "and count as failures in area under the curve and failure rate."
            )
        return found + self.remarks

    def _reasons(self) -> dict[str, list[str]]:
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        return reasons

    def means(self, scores: Sequence[Score], aggregates: bool) -> dict[str, float]:
        """Means of scores, and of yaw bins where wanted.

        NaN where an error is not finite, or where every face that could be scored is not valid: an untrained method
        that finds no face still logs what callbacks monitor. Nothing where there is nothing to score.
        """
        found = {}
        for score in scores:
            bad = self.not_finite.get(score.name, [])
            if bad:
                shown = ", ".join(map(str, bad[:10])) + (", ..." if len(bad) > 10 else "")
                warnings.warn(
                    f"The {score.name} of {len(bad)} samples is not finite (index {shown}), so its mean is NaN.",
                    stacklevel=2,
                )
            for name in score.metrics() if aggregates else (score.name,):
                lost = bad or self.left_out.get(score.name) == _NO_VALID_FACE
                value = float("nan") if lost else mean_of(self.table, name)
                if value is not None and "_auc_" not in name and "_failure_" not in name:
                    found[name] = value
        return found


@dataclass
class _Part:
    """What one rank has; tensors are on the CPU. ``with_labels`` and ``tried`` name scores: tried are valid faces."""

    rows: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)
    faces: list[dict[str, Tensor]] = field(default_factory=list)
    sample_ids: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    with_labels: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)


class Scorer:
    """Scores predictions batch by batch.

    What a score lacks is no error: it is left out, and :attr:`Scored.notes` says why. A face that is not valid is left
    out of all means and counted; padded or repeated samples count once. Everything is computed in float32 or more,
    whatever the precision of the training. Ranks may have any number of batches, none too.

    Args:
        scores: What to score.
        shared: The face model that method and data have in common.

    Example:
        >>> landmarks = torch.rand(1, 68, 3) * 40
        >>> batch = {"landmarks": landmarks, "face_size": torch.tensor([40.0]), "sample_id": ["a"]}
        >>> batch["has"] = {key: torch.tensor([True]) for key in ("landmarks", "face_size")}
        >>> batch.update({key: torch.tensor([0]) for key in ("index", "subject", "view")})
        >>> scorer = Scorer()
        >>> scorer.update(FacePrediction(landmarks + torch.tensor([2.0, 0.0, 0.0])), batch)
        >>> scorer.gather().table["nme"].round(6)
        array([0.05])
    """

    def __init__(self, scores: Sequence[Score] = SCORES, shared: SharedModel | None = None) -> None:
        self.scores = tuple(scores)
        self.shared = shared or SharedModel()
        self._metrics: dict[str, PerSampleMetric] = {}
        self._part = _Part()

    def update(self, prediction: FacePrediction, batch: FaceBatch) -> None:
        """Score a batch.

        Args:
            prediction: Faces of the batch, image frame.
            batch: The batch with its targets.
        """
        # Under autocast, or with half precision as torch's default type, the errors themselves would be rounded.
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.no_grad(), torch.autocast(batch["index"].device.type, enabled=False):
                self._update(prediction, batch)
        finally:
            torch.set_default_dtype(default)

    def _update(self, prediction: FacePrediction, batch: FaceBatch) -> None:
        valid = torch.ones_like(batch["index"], dtype=torch.bool)
        if prediction.valid is not None:
            valid = prediction.valid.bool()
        labelled = torch.zeros_like(valid)
        cached: dict[Any, Values] = {}
        for score in self.scores:
            reason = self._lacks(score, prediction, batch)
            if reason:
                self._part.left_out.setdefault(score.name, reason)
                continue
            if score.name not in self._metrics:
                self._metrics[score.name] = score.metric(self.shared)
            metric = self._metrics[score.name]
            if score.values not in cached:
                cached[score.values] = score.values(prediction, batch, self.shared)
            with_labels = has(batch, *score.labels)
            rows, labelled = valid & with_labels, labelled | with_labels
            for names, found in ((self._part.with_labels, with_labels), (self._part.tried, rows)):
                if bool(found.any()):
                    names.add(score.name)
            chosen = metric._filter_kwargs(**cached[score.values])
            metric.update(**chosen if bool(rows.all()) else {key: value[rows] for key, value in chosen.items()})
        self._note_faces(prediction, batch, labelled & ~valid)

    def _note_faces(self, prediction: FacePrediction, batch: FaceBatch, invalid: Tensor) -> None:
        """Remember who was seen, and why a face that has labels is not valid."""
        index = batch["index"]
        yaw = torch.full(index.shape, torch.nan, dtype=torch.float64, device=index.device)
        if "yaw" in batch["has"]:
            yaw = torch.where(batch["has"]["yaw"], batch["yaw"].double(), yaw)
        self._part.faces.append(
            {"index": index.cpu(), "yaw": yaw.cpu(), "subject": batch["subject"].cpu(), "invalid": invalid.cpu()}
        )
        numbers = index.tolist()
        self._part.sample_ids.update(zip(numbers, batch["sample_id"]))
        for place in invalid.nonzero()[:, 0].tolist():
            reason = prediction.reason[place] if prediction.reason else ""
            self._part.reasons[numbers[place]] = reason or UNSTATED

    def _lacks(self, score: Score, prediction: FacePrediction, batch: FaceBatch) -> str:
        """What a score lacks in prediction or batch; empty where it can be scored."""
        missing = [name for name in score.predicted if _field(prediction, name) is None]
        if missing:
            return f"the method predicts no {' and no '.join(_WORDS.get(name, name) for name in missing)}"
        missing = [key for key in score.labels if key not in batch["has"]]
        if missing:
            return f"the data have no {' and no '.join(missing)}"
        if score.face_model != "any" and self.shared.num_identity is None:
            return "method and data have no face model in common"
        if score.face_model in ("whole", "actions") and self.shared.model is None:
            return "the face model's bases are not at hand"
        if score.face_model == "actions" and not self.shared.actions:
            return "the face model's expressions are no facial actions"
        if score.eyes:
            try:
                outer_eye_corners(batch["landmarks"].shape[1])
            except ValueError:  # ConfigurationError is one too
                return f"{batch['landmarks'].shape[1]} landmarks have no outer eye corners"
        return ""

    def gather(self) -> Scored:
        """Collect the samples of all ranks; all ranks must call it."""
        part = self._part
        part.rows = {name: [_on_cpu(metric.rows())] for name, metric in self._metrics.items()}
        parts = [part]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            everyone: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(everyone, part)
            parts = everyone
        return self._scored(parts)

    def _scored(self, parts: Sequence[_Part]) -> Scored:
        faces = [batch for part in parts for batch in part.faces]
        seen = sorted_rows(_joined(faces)) if faces else {}
        errors: dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]] = {}
        left_out, remarks, not_finite = {}, [], {}
        for score in self.scores:
            rows = [rows for part in parts for rows in part.rows.get(score.name, []) if len(rows["index"])]
            reasons = [part.left_out[score.name] for part in parts if score.name in part.left_out]
            if not rows:
                left_out[score.name] = reasons[0] if reasons else self._no_rows(score, parts)
                continue
            joined = sorted_rows(_joined(rows))
            metric = self._metrics.get(score.name) or score.metric(self.shared)
            result = metric.errors_of(joined)
            index, error = result.index.numpy(), result.error.double().numpy()
            if len(index) == 0:
                left_out[score.name] = "no subject has several views"
                continue
            bad = index[~np.isfinite(error)].tolist()
            if bad:
                not_finite[score.name] = bad
            errors[score.name] = (index, error)
            remarks += metric.remarks(joined)
        reasons_by_index = {index: why for part in parts for index, why in part.reasons.items()}
        known = {index: name for part in parts for index, name in part.sample_ids.items()}
        table = _table(seen, known, errors)
        invalid: dict[str, int] = {}
        for _, why in sorted(reasons_by_index.items()):
            invalid[why] = invalid.get(why, 0) + 1
        return Scored(table, not_finite, left_out, invalid, remarks)

    def _no_rows(self, score: Score, parts: Sequence[_Part]) -> str:
        """Why a score that lacks nothing has no row: no labels, or labels of faces alone that are not valid."""
        labelled = any(score.name in part.with_labels for part in parts)
        tried = any(score.name in part.tried for part in parts)
        return _NO_VALID_FACE if labelled and not tried else _no_sample(score)


def _table(
    seen: dict[str, Tensor], names: Mapping[int, str],
    errors: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]],
) -> dict[str, NDArray[Any]]:  # fmt: skip
    if not seen:
        seen = {"index": torch.zeros(0, dtype=torch.int64), "yaw": torch.zeros(0, dtype=torch.float64)}
        seen |= {"subject": seen["index"], "invalid": seen["index"].bool()}
    arrays = {key: value.numpy() for key, value in seen.items()}
    # Samples without any label were seen and not scored: they have no row.
    scored = arrays["invalid"].copy()
    for index, _ in errors.values():
        scored[np.searchsorted(arrays["index"], index)] = True
    arrays = {key: value[scored] for key, value in arrays.items()}
    table: dict[str, NDArray[Any]] = {
        "index": arrays["index"],
        "sample_id": np.array([names[i] for i in arrays["index"].tolist()], dtype=np.str_),
        "yaw": arrays["yaw"],
        "subject": arrays["subject"].astype(np.int64),
        "invalid": arrays["invalid"],
    }
    for name, (index, error) in errors.items():
        column = np.full(len(table["index"]), np.nan)
        column[np.searchsorted(table["index"], index)] = error
        table[name] = column
    return table


def _field(prediction: FacePrediction, name: str) -> object:
    if name.startswith("dense."):
        return prediction.dense.get(name.removeprefix("dense."))
    return getattr(prediction, name)


def _no_sample(score: Score) -> str:
    return _NO_DEPTH if score.depth else f"no sample has {' and '.join(score.labels)}"


def _on_cpu(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in rows.items()}


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def shared_model(method: torch.nn.Module, data: Any) -> SharedModel:
    """The face model that a method and a data module have in common, if their specs name the same content.

    Args:
        method: A method, whose ``spec`` says what it needs.
        data: A data module, whose ``spec`` says what it gives; None has nothing in common.
    """
    needs, gives = getattr(method, "spec", None), getattr(data, "spec", None)
    if not isinstance(needs, FaceSpec) or not isinstance(gives, FaceSpec):
        return SharedModel()
    if needs.face_model_hash is None or needs.face_model_hash != gives.face_model_hash:
        return SharedModel()
    for module in (*method.modules(), getattr(data, "model", None)):
        if isinstance(module, MorphableModel) and module.hash == gives.face_model_hash:
            return SharedModel(module.num_identity, module)
    return SharedModel(int(gives.num_identity or 0))
