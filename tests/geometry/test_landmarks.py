"""Landmark schemes against the model's own geometry and the published maps."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.landmarks import (
    FLIP_68,
    REGIONS_68,
    SCHEMES,
    convert_landmarks,
    embed_landmarks,
    flip_permutation,
    landmark_groups,
    num_landmarks,
    outer_eye_corners,
)

PUBLISHED = ["68", "66", "51", "49", "21"]


@pytest.mark.parametrize("scheme", PUBLISHED)
def test_flip_is_an_involution(scheme: str) -> None:
    flip = flip_permutation(num_landmarks(scheme))
    assert flip[flip].tolist() == list(range(int(scheme)))
    assert len(landmark_groups(scheme)) == int(scheme)


def test_flip_mirrors_the_bfm_mean_face() -> None:
    data = os.environ.get("LIGHTNING_FACES_DATA")
    if not data:
        pytest.skip("LIGHTNING_FACES_DATA is not set")
    with (Path(data) / "landmarks" / "bfm_mean_68.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    mean = np.array([[float(row[axis]) for axis in "xyz"] for row in rows]) / 1000
    mirrored = mean * (-1, 1, 1)
    # The face is 147 mm wide; a wrong pair is off by 10 mm or more, the true asymmetry of the mean by 2 mm.
    assert np.linalg.norm(mirrored[list(FLIP_68)] - mean, axis=1).max() < 4
    points = torch.from_numpy(mean)
    for scheme in PUBLISHED[1:]:
        small = convert_landmarks(points, "68", scheme)
        flipped = (small * small.new_tensor([-1, 1, 1]))[flip_permutation(int(scheme))]
        assert (flipped - small).norm(dim=1).max() < 4
        left, right = outer_eye_corners(int(scheme))
        assert small[right, 0] - small[left, 0] == pytest.approx(86.3, abs=2)  # FACTS.md A: 86.3 mm apart in 3D


def test_schemes_are_the_published_subsets() -> None:
    points = torch.arange(68.0)[:, None]
    assert convert_landmarks(points, "68", "66")[:, 0].tolist() == [i for i in range(68) if i not in (60, 64)]
    assert convert_landmarks(points, "68", "51")[:, 0].tolist() == list(range(17, 68))
    assert convert_landmarks(points, "68", "49")[:, 0].tolist() == [i for i in range(17, 68) if i not in (60, 64)]
    # 3DDFA benchmark_aflw.py: eye centres are means of six, the mouth's centre is the mean of the inner lip.
    expected = [17, 19, 21, 22, 24, 26, 36, 38.5, 39, 42, 44.5, 45, 2, 31, 30, 35, 14, 48, 63.5, 54, 8]
    assert convert_landmarks(points, "68", "21")[:, 0].tolist() == expected
    by_way = convert_landmarks(convert_landmarks(points, "68", "66"), "66", "49")
    assert torch.equal(by_way, convert_landmarks(points, "68", "49"))
    assert sorted(i for region in REGIONS_68.values() for i in region) == list(range(68))


def test_embedding_inverts_subsets_and_marks_what_is_absent() -> None:
    points = torch.randn(2, 68, 3, generator=torch.Generator().manual_seed(0))
    for scheme in ("66", "51", "49"):
        small = convert_landmarks(points, "68", scheme)
        back, mask = embed_landmarks(small, torch.ones_like(small, dtype=torch.bool), scheme)
        assert mask.any(-1).sum().item() == 2 * int(scheme)
        assert torch.equal(back[mask], points[mask])
        assert not back[~mask].any()
    small = convert_landmarks(points, "68", "21")
    _, mask = embed_landmarks(small, torch.ones_like(small, dtype=torch.bool), "21")
    assert mask[0, :, 0].sum() == 18  # three of the 21 are means


def test_absent_points_stay_absent_even_if_nan() -> None:
    points, mask = torch.full((66, 3), float("nan")), torch.zeros(66, 3, dtype=torch.bool)
    embedded, embedded_mask = embed_landmarks(points, mask, "66")
    assert not embedded.any()
    assert not embedded_mask.any()


@pytest.mark.parametrize("scheme", ["34", "45"])
def test_unpublished_maps_must_be_given(scheme: str) -> None:
    points = torch.randn(68, 3, generator=torch.Generator().manual_seed(0))
    assert SCHEMES[scheme].groups is None
    with pytest.raises(ConfigurationError, match="no published map"):
        convert_landmarks(points, "68", scheme)
    mapping = [*range(int(scheme) - 1), [3, 5]]
    small = convert_landmarks(points, "68", scheme, mapping)
    assert torch.equal(small[:-1], points[: int(scheme) - 1])
    assert torch.allclose(small[-1], (points[3] + points[5]) / 2)
    with pytest.raises(ConfigurationError, match="entries"):
        convert_landmarks(points, "68", scheme, mapping[:-1])
    with pytest.raises(ConfigurationError, match="index 68"):
        convert_landmarks(points, "68", scheme, [*mapping[:-1], 68])


def test_wrong_use_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'70'"):
        num_landmarks("70")
    with pytest.raises(ConfigurationError, match=r"\[60, 64\]"):
        convert_landmarks(torch.zeros(66, 2), "66", "68")
    with pytest.raises(ConfigurationError, match="67 landmarks"):
        convert_landmarks(torch.zeros(67, 2), "68", "66")
