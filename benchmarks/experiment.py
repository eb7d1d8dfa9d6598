"""What the comparisons of this folder share: runs that are kept, their records, and paired differences."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from lightning_faces.__main__ import main as lightning_faces
from lightning_faces.evaluation.bootstrap import bootstrap_means, interval
from lightning_faces.evaluation.records import Record, read_record, read_samples
from lightning_faces.files import write_atomic

Evaluation = tuple[Record, dict[str, NDArray[np.float64]]]


def cpu_seconds() -> float:
    """CPU time of this process and of those that it waited for."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def train(folder: Path, config: str, *options: str) -> Path:
    """Train a configuration into ``folder``, unless it is finished there; an unfinished run goes on.

    The CPU minutes that it took, rendering included where the cache was empty, are added up in ``cpu_minutes.txt``.

    Returns:
        The last checkpoint.
    """
    spent = folder / "cpu_minutes.txt"
    if not (folder / "training.json").exists():
        started = cpu_seconds()
        where = ["--experiment", folder.parent.name, "--name", folder.name, "--ckpt_path", "auto"]
        lightning_faces(["fit", "--config", config, *where, *options])
        earlier = float(spent.read_text()) if spent.exists() else 0.0
        write_atomic(spent, f"{earlier + (cpu_seconds() - started) / 60:.1f}\n".encode())
    return folder / "checkpoints" / "last.ckpt"


def score(folder: Path, config: str, checkpoint: Path, *options: str, photographs: bool = True) -> None:
    """Write the records of a run that are not there: the configuration's test faces, and AFLW2000-3D where it is.

    The photographs are those in LIGHTNING_FACES_DATA, cropped at the size that the configuration trains at. Options are
    what the configuration of the run had besides.
    """
    data = {"syntheticfaces": ["--config", config, *options]}
    if photographs and os.environ.get("LIGHTNING_FACES_DATA"):
        size = yaml.safe_load(Path(config).read_text())["data"]["init_args"]["image_size"]
        data["aflw2000"] = ["--data", "AFLW20003D", "--data.image_size", str(size)]
    for name, chosen in data.items():
        if not list(folder.glob(f"records/{name}*.json")):
            lightning_faces(["test", *chosen, "--ckpt_path", str(checkpoint)])


def evaluations(runs: Path, prediction: str | None = None) -> dict[tuple[str, str], dict[int, Evaluation]]:
    """All records of runs named ``VARIANT-seedN``: by data set and variant, then by seed.

    Args:
        runs: Their folder.
        prediction: Which of a method's named predictions; None takes a method with one.
    """
    found: dict[tuple[str, str], dict[int, Evaluation]] = {}
    for path in sorted(runs.glob("*-seed*/records/*.json")):
        variant, seed = path.parent.parent.name.split("-seed")
        record = read_record(path)
        if prediction not in (None, record.prediction):
            continue
        found.setdefault((record.dataset, variant), {})[int(seed)] = (record, read_samples(path, record))
    return found


def print_values(metrics: Sequence[str], runs: Mapping[int, Evaluation]) -> None:
    """A line per metric that the runs have: the mean over seeds, and the interval of each; fractions in percent."""
    for metric in metrics:
        values = [record.metrics[metric] for record, _ in runs.values() if metric in record.metrics]
        if values:
            factor = 100 if values[0].unit == "fraction" else 1
            ends = "  ".join(f"[{factor * v.low:.2f}, {factor * v.high:.2f}]" for v in values)
            print(f"  {metric:17s} {factor * np.mean([v.value for v in values]):6.2f}  {ends}")


def difference_over_faces(pairs: list[NDArray[np.float64]]) -> tuple[float, float, float]:
    """Mean of paired differences, seeds averaged, with its 95 % interval over faces.

    Args:
        pairs: One array ``[N]`` of differences per seed, the same faces in the same order.
    """
    difference = np.stack(pairs).mean(axis=0)
    return (float(difference.mean()), *interval(bootstrap_means(difference[:, None])[:, 0]))
