"""The cascade on a few faces: what it learns, what it gives, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_faces.errors import ConfigurationError
from lightning_faces.methods import PARM
from lightning_faces.methods.parm.parameters import box_frame, normalize_pose
from tests.methods.parm.faces import FEW, errors, faces, fitted, rows


@pytest.mark.parametrize(
    ("options", "reached"),
    [
        ({"variant": "parm"}, 0.045),
        ({"variant": "prm"}, 0.06),
        ({"variant": "pclm"}, 0.06),
        ({"variant": "lbf"}, 0.03),
        ({"variant": "parm", "vertex_weights": True}, 0.05),
        ({"variant": "parm", "updater": "cnn", "cnn_epochs": 60}, 0.06),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_it_overfits_thirty_faces_stage_by_stage(options: dict[str, Any], reached: float) -> None:
    batch = faces()
    method = PARM(**{**FEW, "landmark_ridge": 0.02, "parameter_ridge": 1e-4, **options})
    at_start = errors(method, batch)[0]
    found = errors(fitted(method, batch), batch)
    print(options, at_start, found)
    assert found == sorted(found, reverse=True)
    assert found[0] < 0.8 * at_start
    assert found[-1] < reached
