"""Frames without a face, and the moving average, against loops over frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_faces.errors import ConfigurationError
from lightning_faces.predict.sequence import interpolate_misses, moving_average


def test_misses_are_filled_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 4))
    found = rng.random(40) < 0.4
    filled = interpolate_misses(torch.from_numpy(values), torch.from_numpy(found)).numpy()
    known = np.flatnonzero(found)
    for column in range(4):
        expected = np.interp(np.arange(40), known, values[known, column])
        np.testing.assert_allclose(filled[:, column], expected, atol=1e-12)
    with pytest.raises(ConfigurationError, match="found in none of the 40 frames"):
        interpolate_misses(torch.from_numpy(values), torch.zeros(40, dtype=torch.bool))


@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize("window", [1, 3, 5])
def test_the_moving_average_is_the_mean_of_the_frames_that_there_are(frames: int, window: int) -> None:
    values = torch.randn(frames, 68, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = moving_average(values, window)
    for frame in range(frames):
        near = values[max(0, frame - window // 2) : frame + window // 2 + 1]
        torch.testing.assert_close(smooth[frame], near.mean(dim=0))


def test_an_even_window_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="over 2 frames has no middle"):
        moving_average(torch.zeros(4), 2)
