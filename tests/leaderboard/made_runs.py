"""Run folders with made-up records, for the tests of the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lightning_faces.evaluation.aggregate import summarise
from lightning_faces.evaluation.records import MetricValue, write_record
from tests.evaluation.test_records import example

COUNT = 300
SCORED = {
    **dict.fromkeys(("nme", "nme_0_30", "nme_30_60", "nme_60_90", "nme_mean"), ("fraction", False)),
    "nme_auc_7": ("fraction", True),
}
YAW = np.linspace(-89, 89, COUNT)


def errors_of(level: float, seed: int = 0) -> np.ndarray:
    """Errors that grow with yaw, and a part that all methods share (hard photographs)."""
    shared = np.random.default_rng(99).gamma(4.0, 0.25, COUNT)
    own = np.random.default_rng(seed).gamma(20.0, 0.05, COUNT)
    return np.asarray(level * (0.6 + np.abs(YAW) / 90) * shared * own)


def write_run(
    root: Path,
    method: str,
    run: str,
    level: float,
    seed: int = 0,
    dataset: str = "AFLW2000-3D",
    run_name: str | None = None,
    extra: dict[str, MetricValue] | None = None,
    **changes: Any,
) -> Path:
    """Write a record of 300 faces below ``root/run``.

    Args:
        root: Folder of the runs.
        method: Name of the method.
        run: Its folder.
        level: About the mean NME.
        seed: Of the part of the errors that is the method's own.
        dataset: Name of the data set.
        run_name: What the record calls the run; its folder by default.
        extra: Further metrics.
        **changes: Further fields of the record.
    """
    errors = errors_of(level, seed)
    order = np.argsort(errors)
    samples = {
        "index": np.arange(COUNT), "sample_id": np.array([f"image{i:05d}" for i in range(COUNT)]), "yaw": YAW,
        "subject": np.full(COUNT, -1), "nme": errors, "faces": np.full((230, 600, 3), 128, dtype=np.uint8),
        "faces_row": order[[0, (COUNT - 1) // 2, COUNT - 1]],
    }  # fmt: skip
    metrics = summarise(samples, SCORED)
    metrics["vertex_mm"] = MetricValue(1.5 + level, 1.5, 1.6, COUNT, "mm", False)
    record = example(
        **{
            "method": method, "run": run_name or run, "dataset": dataset, "metrics": {**metrics, **(extra or {})},
            "weights": f"{method}-{run}-{seed}", "protocol": {"samples": f"{COUNT} of {COUNT}"}, **changes,
        }
    )  # fmt: skip
    name = ".".join(filter(None, (f"{dataset.lower()}-test", record.prediction)))
    return write_record(root / run / "records", name, record, samples)
