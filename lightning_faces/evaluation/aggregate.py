"""From errors of samples to the numbers of a record: means, yaw bins, curves and their intervals. Needs no torch.

A table has one row per sample: ``index``, ``sample_id``, ``yaw`` (degrees, NaN where unknown), ``subject``, ``invalid``
(whether the method gave no face), and one column of errors per score (NaN: not scored).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_faces.evaluation.bootstrap import bootstrap_means, interval
from lightning_faces.evaluation.records import MetricValue
from lightning_faces.yaw_bins import BALANCED, YAW_BINS, balanced_draw, yaw_bin, yaw_bin_mask

NO_SCORES = frozenset({"index", "sample_id", "yaw", "subject", "invalid", "faces", "faces_row"})
"""Arrays of a record's NPZ that hold no errors."""
THRESHOLD_PERCENT = 7
"""End of the cumulative error curve for area and failure rate (FAN)."""
_AREA, _FAILURE = f"_auc_{THRESHOLD_PERCENT}", f"_failure_{THRESHOLD_PERCENT}"
_BINS = tuple(f"_{name}" for name, _, _ in YAW_BINS)


def columns_of(samples: Mapping[str, NDArray[Any]], metric: str) -> NDArray[np.float64] | None:
    """Columns whose means' mean is a metric of a record, so that any metric can be resampled.

    Args:
        samples: The table.
        metric: A score such as "nme" or an aggregate of one: "nme_0_30" (a yaw bin), "nme_mean" (the mean of the three
            bins' means), "nme_balanced" (the same in expectation), "nme_auc_7" and "nme_failure_7".

    Returns:
        ``[N, C]``, NaN where a sample does not count; None where the metric is no mean of what the table holds.

    Example:
        >>> table = {"yaw": np.array([10.0, 80.0]), "nme": np.array([0.03, 0.05])}
        >>> columns_of(table, "nme_60_90").ravel().tolist()
        [nan, 0.05]
    """
    if metric in samples and metric not in NO_SCORES:
        return np.asarray(samples[metric], dtype=np.float64)[:, None]
    for suffix in (*_BINS, "_mean", "_balanced", _AREA, _FAILURE):
        score = metric.removesuffix(suffix)
        if score == metric or score not in samples or score in NO_SCORES:
            continue
        errors = np.asarray(samples[score], dtype=np.float64)
        if suffix in (_AREA, _FAILURE):
            # A face that the method gave up on is a failure.
            errors = np.where(samples.get("invalid", np.zeros(len(errors), dtype=bool)), np.inf, errors)
            return np.where(np.isnan(errors), np.nan, _contribution(errors, suffix))[:, None]
        bins = (suffix[1:],) if suffix in _BINS else tuple(name for name, _, _ in YAW_BINS)
        yaw = np.asarray(samples["yaw"], dtype=np.float64)
        return np.stack([np.where(yaw_bin_mask(yaw, name), errors, np.nan) for name in bins], axis=1)
    return None


def _contribution(errors: NDArray[np.float64], suffix: str) -> NDArray[np.float64]:
    """A sample's part of the area under the cumulative error curve, or of the failure rate."""
    threshold = THRESHOLD_PERCENT / 100
    if suffix == _AREA:
        return np.clip(1.0 - errors / threshold, 0.0, None)
    return np.where(np.isnan(errors), np.nan, (errors > threshold).astype(np.float64))


def aggregates_of(score: str, by_yaw: bool, by_threshold: bool) -> list[str]:
    """Names of the aggregates that are recorded of a score beside its mean."""
    names = [f"{score}{suffix}" for suffix in (*_BINS, "_mean")] if by_yaw else []
    return names + ([f"{score}{_AREA}", f"{score}{_FAILURE}"] if by_threshold else [])


def mean_of(samples: Mapping[str, NDArray[Any]], metric: str) -> float | None:
    """Value of a metric, or None where nothing counts (for a mean of bins: where one of them is empty).

    Example:
        >>> table = {"yaw": np.array([10.0, 40.0, 80.0]), "nme": np.array([0.02, 0.03, 0.07])}
        >>> round(mean_of(table, "nme_mean"), 6), mean_of(table, "gte")
        (0.04, None)
    """
    columns = columns_of(samples, metric)
    if columns is None or np.isnan(columns).all(axis=0).any() or len(columns) == 0:
        return None
    return float(np.nanmean(columns, axis=0).mean())


def summarise(table: Mapping[str, NDArray[Any]], units: Mapping[str, tuple[str, bool]]) -> dict[str, MetricValue]:
    """Means and 95 % bootstrap intervals of the metrics of a table.

    Args:
        table: Errors of the samples.
        units: For each metric that is wanted, its unit and whether more of it is better.

    Returns:
        By name, those that can be computed. Where each yaw bin has 232 samples, ``nme_balanced`` too: over 100 of the
        draws of 232 a bin that AFLW2000-3D is reported on, the mean NME and the range of 95 % of the draws.
    """
    found = {name: columns_of(table, name) for name in units}
    columns = {name: c for name, c in found.items() if c is not None and len(c) and not np.isnan(c).all(axis=0).any()}
    if not columns:
        return {}
    values = np.concatenate(list(columns.values()), axis=1)
    means, draws = np.nanmean(values, axis=0), bootstrap_means(values, table["subject"])
    metrics, start = {}, 0
    for name, part in columns.items():
        here = slice(start, start + part.shape[1])
        low, high = interval(draws[:, here].mean(axis=1))
        count = int((~np.isnan(part)).sum())
        unit, higher_is_better = units[name]
        metrics[name] = MetricValue(float(means[here].mean()), low, high, count, unit, higher_is_better)
        start = here.stop
    if "nme" in table and "nme_mean" in metrics:
        known = np.isfinite(table["yaw"]) & ~np.isnan(table["nme"])
        yaw, nme = table["yaw"][known], table["nme"][known]
        if np.bincount(yaw_bin(yaw), minlength=3).min() >= BALANCED:
            drawn = [nme[balanced_draw(yaw, seed)].mean() for seed in range(100)]
            low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
            metrics["nme_balanced"] = MetricValue(float(np.mean(drawn)), low, high, 3 * BALANCED, "fraction", False)
    return metrics


def is_tied(best: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]], metric: str) -> bool | None:
    """Whether the difference of two methods could be 0: a paired bootstrap of the metric, aggregates included.

    The same samples are drawn for both, of those that both have scored, and subjects are drawn as a whole.

    Args:
        best: Table of one method.
        other: Table of another, on the same data set.
        metric: As in :func:`columns_of`.

    Returns:
        Whether the 95 % interval of the difference includes 0; None where it cannot be told.

    Example:
        >>> table = {"index": np.arange(3), "yaw": np.zeros(3), "subject": np.full(3, -1), "nme": np.full(3, 0.04)}
        >>> is_tied(table, table, "nme_auc_7"), is_tied(table, {**table, "nme": table["nme"] + 0.01}, "nme")
        (True, False)
    """
    first, second = columns_of(best, metric), columns_of(other, metric)
    if first is None or second is None:
        return None
    _, here, there = np.intersect1d(best["index"], other["index"], return_indices=True)
    difference = second[there] - first[here]
    if len(difference) == 0 or np.isnan(difference).all(axis=0).any():
        return None
    draws = bootstrap_means(difference, np.asarray(best["subject"])[here]).mean(axis=1)
    if np.isnan(draws).all():
        return None
    low, high = interval(draws)
    return low <= 0.0 <= high
