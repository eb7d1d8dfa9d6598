"""Published splits as seeded draws."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.bp4d import PROTOCOL
from datamodules.components.splits import draw_by_yaw, hold_out
from lightning_faces.errors import DataError
from lightning_faces.yaw_bins import balanced_draw, yaw_bin


def test_bins_are_closed_above() -> None:
    assert yaw_bin(np.array([0, -30, 30.01, 60, -60.01, 95])).tolist() == [0, 0, 1, 1, 2, 2]


def test_balanced_draws_differ_by_seed_and_hold_232_of_each_bin() -> None:
    # Sizes of the bins by AFLW's own yaw: 1306, 462, 232 (FACTS.md C).
    yaw = np.random.default_rng(0).permutation(np.repeat([10.0, -45.0, 80.0], [1306, 462, 232]))
    first, second = balanced_draw(yaw, 0), balanced_draw(yaw, 1)
    assert len(first) == 696
    assert np.bincount(yaw_bin(yaw[first])).tolist() == [232, 232, 232]
    assert np.array_equal(first, balanced_draw(yaw, 0))
    assert not np.array_equal(first, second)
    assert set(np.nonzero(yaw == 80)[0]) <= set(first) & set(second)  # all of the smallest bin
    with pytest.raises(DataError, match=r"there are 1 with a yaw of over 60"):
        balanced_draw(np.repeat([0.0, 40, 70], [2, 2, 1]), 0, per_bin=2)


def test_bp4d_protocol() -> None:
    yaw = np.random.default_rng(0).uniform(-40, 40, size=6000)
    drawn = draw_by_yaw(yaw, PROTOCOL, 3)
    assert len(set(drawn)) == 1100
    assert np.histogram(np.abs(yaw[drawn]), (0, 10, 20, 30))[0].tolist() == [100, 500, 500]
    with pytest.raises(DataError, match="not 100"):
        draw_by_yaw(yaw[:300], PROTOCOL, 3)


def test_held_out_groups_are_whole_and_stay_when_others_come() -> None:
    groups = [f"photo-{i // 3}" for i in range(3000)]
    held = hold_out(groups, 0.2)
    assert held.reshape(1000, 3).std(axis=1).max() == 0
    assert 0.15 < held.mean() < 0.25
    assert np.array_equal(hold_out(groups[::-1], 0.2)[::-1], held)
    assert np.array_equal(hold_out(groups[:100], 0.2), held[:100])
    assert not hold_out(groups, 0.0).any()
