"""Aggregates of per-sample errors, and ties of any of them."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_faces.evaluation.aggregate import columns_of, is_tied, mean_of, summarise
from lightning_faces.evaluation.bootstrap import bootstrap_means, interval
from lightning_faces.evaluation.scores import units

COUNT = 300
AGGREGATES = ("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean", "nme_balanced", "nme_auc_7", "nme_failure_7")


def table(shift: float = 0.0, only: tuple[float, float] = (0.0, 180.0)) -> dict[str, np.ndarray]:
    """Errors that all methods share, and a shift of the faces of some yaw."""
    yaw = np.linspace(-89, 89, COUNT)
    errors = 0.05 * np.random.default_rng(0).gamma(4.0, 0.25, COUNT)
    inside = (np.abs(yaw) >= only[0]) & (np.abs(yaw) <= only[1])
    errors = errors + shift * inside
    return {"index": np.arange(COUNT), "yaw": yaw, "subject": np.full(COUNT, -1), "nme": errors}


@pytest.mark.parametrize("metric", AGGREGATES)
def test_equal_errors_are_tied_and_worse_ones_are_not(metric: str) -> None:
    assert is_tied(table(), table(), metric) is True
    # Two methods whose intervals overlap widely can still be told apart on the same samples.
    # (Few faces cross the threshold of a failure.)
    assert is_tied(table(), table(0.01 if "failure" in metric else 0.002), metric) is False
    low, high = interval(bootstrap_means(table()["nme"][:, None])[:, 0])
    assert high - low > 0.002


def test_a_mean_of_bins_is_tied_by_itself_and_not_by_the_mean_of_all() -> None:
    rng = np.random.default_rng(1)
    first, second = table(), table()
    # 1 of 6 faces looks beyond 80 degrees. What they lose there, the others win back in the plain mean only.
    far = np.abs(first["yaw"]) > 60
    yaw = np.where(far & (rng.random(COUNT) < 0.7), 10.0, first["yaw"])
    first["yaw"] = second["yaw"] = yaw
    far = yaw > 60
    second["nme"] = first["nme"] + np.where(far, 0.02, -0.02 * far.sum() / (~far).sum()) + rng.normal(0, 0.001, COUNT)
    assert is_tied(first, second, "nme") is True
    assert is_tied(first, second, "nme_mean") is False
    assert mean_of(second, "nme_mean") > mean_of(first, "nme_mean")  # type: ignore[operator]


def test_a_tie_is_judged_on_the_samples_that_both_have() -> None:
    first, second = table(), table()
    half = {key: value[::2] for key, value in second.items()}
    assert is_tied(first, half, "nme_mean") is True
    elsewhere = {**half, "index": half["index"] + 1000}
    assert is_tied(first, elsewhere, "nme_mean") is None
    assert is_tied(first, second, "speed") is None
    no_profiles = {**second, "nme": np.where(np.abs(second["yaw"]) > 60, np.nan, second["nme"])}
    assert is_tied(first, no_profiles, "nme") is True
    assert is_tied(first, no_profiles, "nme_mean") is None


def test_a_score_whose_name_looks_like_an_aggregate_is_itself() -> None:
    errors = {**table(), "nme_3d_mean": np.full(COUNT, 0.5), "nme_3d": np.zeros(COUNT)}
    columns = columns_of(errors, "nme_3d_mean")
    assert columns is not None
    assert columns.shape == (COUNT, 1)
    assert mean_of(errors, "nme_3d_mean") == 0.5


def test_summaries_hold_what_can_be_computed() -> None:
    errors = {**table(), "ape": np.full(COUNT, 2.0)}
    metrics = summarise(errors, units())
    assert {"nme", "nme_mean", "nme_auc_7", "nme_failure_7", "ape"} <= set(metrics)
    assert "gte" not in metrics
    assert metrics["ape"].unit == "px"
    bins = [metrics[f"nme_{name}"] for name in ("0_30", "30_60", "60_90")]
    assert metrics["nme_mean"].value == pytest.approx(np.mean([b.value for b in bins]), abs=1e-12)
    assert metrics["nme_mean"].samples == sum(b.samples for b in bins) == COUNT
    assert metrics["nme_mean"].low < metrics["nme_mean"].value < metrics["nme_mean"].high
    profiles = {**errors, "yaw": np.full(COUNT, 80.0)}
    assert "nme_mean" not in summarise(profiles, units())
    assert mean_of(profiles, "nme_mean") is None
