"""The contracts between data and methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_faces.batch import FacePrediction, FaceSpec, check_compatible, collate_faces
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import Camera, invert_affine, transform_points, weak_perspective


def sample(index: int, **targets: Any) -> dict[str, Any]:
    return {
        "image": torch.zeros(3, 8, 8),
        "index": index,
        "sample_id": f"face{index}",
        "box": torch.zeros(4),
        "crop_to_file": torch.zeros(2, 3),
        **targets,
    }


def test_a_missing_target_is_zero_and_marked() -> None:
    rows = [sample(3, landmarks=np.ones((68, 3)), subject=7), sample(9)]
    batch = collate_faces(rows, {"landmarks": (68, 3), "visible": (68,)})
    assert batch["index"].tolist() == [3, 9]
    assert batch["subject"].tolist() == [7, -1]
    assert batch["has"]["landmarks"].tolist() == [True, False]
    assert batch["landmarks"].dtype == torch.float32
    assert batch["landmarks"].sum(dim=(1, 2)).tolist() == [204.0, 0.0]
    assert batch["visible"].dtype == torch.bool
    assert batch["has"]["visible"].tolist() == [False, False]


def test_targets_that_nobody_wants_are_dropped_and_shapes_are_checked() -> None:
    batch = collate_faces([sample(0, yaw=np.float32(3))], {})
    assert "yaw" not in batch
    with pytest.raises(ConfigurationError, match=r"face0 has landmarks of shape \(66, 3\).*\(68, 3\)"):
        collate_faces([sample(0, landmarks=np.ones((66, 3)))], {"landmarks": (68, 3)})


def check(needs: FaceSpec, gives: FaceSpec, requires: set[str], targets: set[str]) -> None:
    check_compatible("Zhao2016", needs, frozenset(requires), "AFLW20003D", gives, frozenset(targets))


def test_a_method_and_data_that_do_not_fit_are_refused_in_one_sentence() -> None:
    check(FaceSpec(image_size=64), FaceSpec(image_size=64, num_vertices=5), {"landmarks"}, {"landmarks", "yaw"})
    check(FaceSpec(), FaceSpec(image_size=64), set(), set())
    with pytest.raises(ConfigurationError, match="Zhao2016 was built for image_size 64 but AFLW20003D gives 96"):
        check(FaceSpec(image_size=64), FaceSpec(image_size=96), set(), set())
    with pytest.raises(ConfigurationError, match="trains on vertices, which AFLW20003D does not give"):
        check(FaceSpec(), FaceSpec(), {"vertices", "landmarks"}, {"landmarks"})


def test_a_prediction_maps_back_to_the_photograph() -> None:
    pose = torch.tensor([[1.2, 0.1, -0.4, 0.2, 30.0, 40.0]], dtype=torch.float64)
    vertices = torch.randn(1, 20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 30
    points = weak_perspective(vertices, pose)
    crop_to_file = torch.tensor([[[2.0, -0.5, 100.0], [0.5, 2.0, 50.0]]], dtype=torch.float64)
    mapped = FacePrediction(landmarks=points, vertices=points, camera=Camera.from_pose(pose)).to_file(crop_to_file)
    torch.testing.assert_close(transform_points(invert_affine(crop_to_file), mapped.landmarks), points)
    assert mapped.pose is not None
    torch.testing.assert_close(weak_perspective(vertices, mapped.pose), mapped.landmarks)
    assert mapped.coefficients is None
