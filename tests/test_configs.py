"""Every shipped configuration trains, validates, saves and loads again: two batches, to the end of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_faces.__main__ import main
from lightning_faces.methods.checkpoint import load_method
from tests.fakes.photographs import write_table

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
SHIPPED = [CONFIGS / "quickstart.yaml", *sorted(CONFIGS.glob("method/*.yaml"))]
SHIPPED += sorted(CONFIGS.glob("experiment/*.yaml"))
FAST = {"quickstart", "mean_landmarks", "prnet"}
BASES = {
    "zhao2016_depth_adamw": ["experiment/zhao2016_depth.yaml"],
    **{f"zhao2016_stage{n}": ["experiment/zhao2016_losses.yaml"] for n in (1, 2, 3)},
}
"""Configurations that another one goes before, as their first lines say."""


def merged(paths: list[Path]) -> dict[str, Any]:
    """Class of model and data, and the options of the data, of configurations in a row."""
    found: dict[str, Any] = {"data": {}}
    for path in paths:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key in ("model", "data"):
            if key in content:
                found[key] = {**found.get(key, {}), **content[key]}
    return found


def row_of(path: Path) -> list[Path]:
    """The configurations of a command that trains one of them; what has no data gets synthetic faces."""
    row = [*(CONFIGS / base for base in BASES.get(path.stem, [])), path]
    return row if merged(row)["data"] else [*row, CONFIGS / "data" / "synthetic_64.yaml"]


def small(data: str, folder: Path) -> list[str]:
    """Options that make the data small, or stand-ins for what was not downloaded."""
    if data == "SyntheticFaces":
        return ["--data.train_size=6", "--data.val_size=4", "--data.test_size=2", "--data.cache_dir=cache"]
    assert data == "ThreeDFAW", f"write a stand-in for {data}"
    write_table(folder / "3DFAW", 20, "66", subject=[i // 2 for i in range(20)], view=[i % 2 for i in range(20)])
    return [f"--data.root={folder}", "--data.test_size=5", "--data.val_fraction=0.3"]


def trainable() -> list[Any]:
    """Those with a model; the others are protocols of a test, which the tests of their method run."""
    paths = [path for path in SHIPPED if "model" in merged(row_of(path))]
    return [pytest.param(p, marks=[] if p.stem in FAST else pytest.mark.slow, id=p.stem) for p in paths]


@pytest.mark.parametrize("path", trainable())
def test_two_batches_and_the_end_of_an_epoch(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch3d")
    monkeypatch.chdir(tmp_path)
    staged = path.stem.startswith("zhao2016_stage")
    before = [f"zhao2016_stage{n}" for n in range(1, int(path.stem[-1]))] if staged else []
    for config in (*(CONFIGS / "experiment" / f"{stem}.yaml" for stem in before), path):
        row = row_of(config)
        data = str(merged(row)["data"]["class_path"]).rsplit(".", 1)[-1]
        names = [] if staged else ["--experiment=e", "--name=n"]
        main(
            [
                "fit", *(f"--config={base}" for base in row), *small(data, tmp_path), "--data.batch_size=2",
                "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_epochs=1",
                "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2", "--trainer.logger=false",
                "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", *names,
            ]
        )  # fmt: skip
    (run,) = Path("runs").glob("*/n" if names else f"*/{path.stem.removeprefix('zhao2016_')}")
    for name in ("best", "last"):
        saved = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert saved["global_step"] == 2
        assert all(bool(value.isfinite().all()) for value in saved["state_dict"].values())
        assert load_method(run / "checkpoints" / f"{name}.ckpt").num_parameters() > 0
