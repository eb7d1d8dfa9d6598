"""Values that FACTS.md C gives for AFLW2000-3D, on whatever part of the data set is there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from torch import Tensor

from lightning_faces.metrics import NormalizedMeanError, functional


@pytest.fixture(scope="module")
def labels() -> tuple[Tensor, Tensor]:
    """Landmarks ``[N, 68, 3]`` in 0-based pixels of the 450x450 images, and yaw ``[N]`` in degrees."""
    root = os.environ.get("LIGHTNING_FACES_DATA")
    files = sorted(Path(root, "aflw2000_3d").glob("*.mat")) if root else []
    if not files:
        pytest.skip("LIGHTNING_FACES_DATA does not hold aflw2000_3d")
    contents = [loadmat(file) for file in files]
    points = np.stack([c["pt3d_68"].T.astype(np.float64) - [1, 1, 0] for c in contents])
    yaw = np.degrees([float(c["Pose_Para"][0, 1]) for c in contents])
    return torch.from_numpy(points), torch.from_numpy(yaw)


def test_ratios_of_the_normalisers(labels: tuple[Tensor, Tensor]) -> None:
    """By diagonal 0.706 and by 3D outer interocular distance 1.602 of the error by box (all 2,000 faces)."""
    points, _ = labels
    moved = points + torch.tensor([3.0, 4.0, 0.0])
    box = functional.normalized_mean_error(moved, points, "bbox")
    diagonal = functional.normalized_mean_error(moved, points, "diagonal") / box
    eyes = functional.ground_truth_error(moved, points) / box
    assert float(diagonal.mean()) == pytest.approx(0.706, abs=0.002)
    assert float(eyes.mean()) == pytest.approx(1.602, abs=0.02)
    assert float(eyes.median()) == pytest.approx(1.602, abs=0.02)


def test_yaw_bins_count_every_face(labels: tuple[Tensor, Tensor]) -> None:
    points, yaw = labels
    shares = []
    for name in ("0_30", "30_60", "60_90"):
        metric = NormalizedMeanError(yaw_bin=name)  # type: ignore[arg-type]
        shift = torch.linspace(0, 1, len(points), dtype=torch.float64)[:, None, None]
        metric.update(points + shift, points, torch.arange(len(points)), yaw=yaw)
        rows = metric.per_sample()
        expected = rows.error[(rows.yaw.abs() <= 30) if name == "0_30" else (rows.yaw.abs() > 60)]
        if name != "30_60":
            assert float(metric.compute()) == pytest.approx(float(expected.mean()), abs=1e-12)
        shares.append(int(((yaw.abs() > float(name.split("_")[0])) & (yaw.abs() <= float(name.split("_")[1]))).sum()))
    beyond = int((yaw.abs() > 90).sum())
    assert sum(shares) + beyond == len(points)
    # 1312, 383 and 305 of all 2,000.
    for share, whole in zip((shares[0], shares[1], shares[2] + beyond), (1312, 383, 305)):
        assert share / len(points) == pytest.approx(whole / 2000, abs=0.06)


def test_the_3ddfa_benchmarks_clipped_boxes_cost_four_points(labels: tuple[Tensor, Tensor]) -> None:
    """A perfect prediction in a padded crop, mapped back by the box clipped to [1, 450] as that benchmark saves it."""
    points, _ = labels
    xy = points[..., :2] + 1  # that benchmark's pixels
    low, high = xy.amin(dim=1), xy.amax(dim=1)
    radius = (high - low).amax(dim=1, keepdim=True) / 2 * 2**0.5
    centre = (low + high) / 2
    start, end = (centre - radius).round(), (centre + radius).round()
    in_crop = (xy - start[:, None]) / (end - start)[:, None]
    start, end = start.clamp(1, 450), end.clamp(1, 450)
    error = functional.normalized_mean_error(in_crop * (end - start)[:, None] + start[:, None], xy)
    hurt = error[error > 1e-9]
    assert 0 < len(hurt) / len(error) < 0.06  # 55 of 2,000
    assert float(hurt.mean()) == pytest.approx(0.040, abs=0.01)
