"""A few rendered faces, and passes over them without a trainer."""

from __future__ import annotations

from functools import cache

import torch

from datamodules.synthetic import SyntheticFaces
from lightning_faces.batch import FaceBatch, collate_faces
from lightning_faces.methods import PARM
from lightning_faces.targets import target_shapes

SIZE = 48
FEW = {"trees": 4, "tree_depth": 3, "sites": 24, "candidates": 40, "radii": (0.4, 0.25, 0.15)}
"""Options of a small cascade."""


@cache
def faces(split: str = "train", count: int = 30, start: int = 0) -> FaceBatch:
    """Rendered faces in one batch."""
    data = SyntheticFaces(train_size=100, val_size=100, test_size=99, image_size=SIZE, num_workers=0)
    dataset = data.make_dataset(split, data.available_targets & {"landmarks", "landmark_mask", "pose", "coefficients"})
    assert dataset is not None
    dataset.image_size, dataset.margin = SIZE, 1.3
    samples = dataset.__getitems__(list(range(start, start + count)))
    shapes = target_shapes(frozenset({"landmarks", "landmark_mask", "pose", "coefficients", "face_size"}), data.spec)
    return collate_faces(samples, shapes)


def rows(batch: FaceBatch, chosen: torch.Tensor) -> FaceBatch:
    """Some of a batch's faces."""
    taken = {key: value[chosen] for key, value in batch.items() if isinstance(value, torch.Tensor)}
    has = {key: value[chosen] for key, value in batch["has"].items()}
    return {**taken, "has": has, "sample_id": [batch["sample_id"][i] for i in chosen.tolist()]}  # type: ignore[typeddict-item, return-value]


def fitted(method: PARM, batch: FaceBatch, size: int = 8) -> PARM:
    """The method after all its passes over the faces, in batches."""
    with torch.no_grad():
        while not method.converged:
            method.start_pass()
            for chosen in torch.arange(len(batch["index"])).split(size):
                method.fit_batch(rows(batch, chosen))
            method.end_pass()
    return method


def errors(method: PARM, batch: FaceBatch) -> list[float]:
    """Mean normalised error after each stage."""
    with torch.no_grad():
        named = method.predict_named(batch)
    found = []
    for prediction in named.values():
        distance = (prediction.landmarks[..., :2] - batch["landmarks"][..., :2]).norm(dim=2).mean(dim=1)
        found.append(float((distance / batch["face_size"]).mean()))
    return found
