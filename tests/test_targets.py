"""The table of targets is the only list of them."""

from __future__ import annotations

import pytest
import torch

from lightning_faces.batch import SAMPLE_NUMBERS, FaceBatch, FaceSpec, collate_faces
from lightning_faces.targets import CHEAP_TARGETS, MODEL_TARGETS, RENDERED_TARGETS, TARGETS, target_shapes

SPEC = FaceSpec(
    image_size=16, landmark_scheme="66", num_identity=5, num_expression=2, num_vertices=9, position_map_size=4
)


def test_a_batch_has_a_key_for_every_row_and_no_other() -> None:
    always = {"image", "index", "sample_id", "box", "crop_to_file", "has", *SAMPLE_NUMBERS}
    assert set(FaceBatch.__annotations__) == always | set(TARGETS)


def test_what_the_rows_say() -> None:
    shapes = {
        "landmarks": (66, 3), "landmark_mask": (66, 3), "visible": (66,), "face_size": (), "yaw": (), "pose": (6,),
        "coefficients": (7,), "vertices": (9, 3), "position_map": (3, 4, 4), "pncc": (3, 16, 16),
        "offsets": (3, 16, 16), "face_mask": (1, 16, 16),
    }  # fmt: skip
    assert target_shapes(frozenset(TARGETS), SPEC) == shapes
    assert {"vertices", "position_map", "pncc", "offsets", "face_mask"} == set(TARGETS) - CHEAP_TARGETS
    assert (set(TARGETS) - CHEAP_TARGETS) | {"coefficients"} == MODEL_TARGETS
    assert {"position_map", "pncc", "offsets", "face_mask"} == RENDERED_TARGETS
    assert {key for key, row in TARGETS.items() if row.stored == torch.float16} == {
        "vertices", "position_map", "pncc", "offsets"
    }  # fmt: skip


@pytest.mark.parametrize("key", sorted(TARGETS))
def test_a_sample_without_a_target_has_zeros_of_its_shape_and_type(key: str) -> None:
    row, shape = TARGETS[key], TARGETS[key].shape(SPEC)
    plain = {
        "image": torch.zeros(3, 16, 16), "index": 0, "sample_id": "a", "box": torch.zeros(4),
        "crop_to_file": torch.zeros(2, 3),
    }  # fmt: skip
    given = {**plain, key: torch.ones(shape, dtype=row.dtype)}
    batch = collate_faces([plain, given], {key: shape})
    value = batch[key]  # type: ignore[literal-required]
    assert value.dtype == row.dtype
    assert value.shape == (2, *shape)
    assert not value[0].any()
    assert value[1].all()
    assert batch["has"][key].tolist() == [False, True]
