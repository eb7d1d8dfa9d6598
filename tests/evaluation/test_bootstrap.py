from __future__ import annotations

import numpy as np
import pytest

from lightning_faces.evaluation.bootstrap import bootstrap_means, interval


def test_the_interval_of_a_mean_agrees_with_the_central_limit() -> None:
    rng = np.random.default_rng(1)
    values = rng.gamma(4.0, 1.0, size=(2000, 1))
    low, high = interval(bootstrap_means(values)[:, 0])
    half = 1.96 * values.std(ddof=1) / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert interval(bootstrap_means(values)[:, 0]) == (low, high)


def test_samples_of_one_subject_are_drawn_together() -> None:
    rng = np.random.default_rng(2)
    subject = np.arange(400) // 4
    values = rng.normal(size=100)[subject][:, None]
    apart, together = (np.ptp(interval(bootstrap_means(values, groups)[:, 0])) for groups in (None, subject))
    assert together / apart == pytest.approx(2.0, rel=0.15)  # four equal copies: the square root of 4
    unknown = interval(bootstrap_means(values, np.full(400, -1))[:, 0])
    assert np.ptp(unknown) == pytest.approx(apart, rel=1e-12)


def test_a_missing_value_is_left_out_of_its_column_only() -> None:
    values = np.array([[1.0, 5.0], [3.0, np.nan], [5.0, 5.0], [7.0, np.nan]])
    draws = bootstrap_means(values, resamples=4000)
    assert draws[:, 0].mean() == pytest.approx(4.0, abs=0.1)
    assert np.nanmax(np.abs(draws[:, 1] - 5.0)) < 1e-12
    # A draw of four holds neither of two samples with probability 1/16.
    assert np.isnan(draws[:, 1]).mean() == pytest.approx(1 / 16, abs=0.02)
