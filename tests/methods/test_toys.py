"""The toys through the command line: trained, killed, resumed, tested, recorded, drawn and ranked."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import tests.fakes.noise_faces  # noqa: F401 - makes NoiseFaces a short name
from lightning_faces.__main__ import main
from lightning_faces.evaluation.records import read_record
from tests.methods import toys
from tests.test_ddp import start

NOISE = ["--data=NoiseFaces", "--data.train_size=10", "--data.batch_size=4"]
SYNTHETIC = [
    "--data=SyntheticFaces", "--data.train_size=8", "--data.val_size=3", "--data.test_size=13", "--data.batch_size=4",
    "--data.image_size=32", "--data.cache_dir=cache", "--data.num_workers=0",
]  # fmt: skip
TOYS = {"Cascade": NOISE, "DenseFaces": SYNTHETIC, "Passes": SYNTHETIC}
QUIET = [
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
]  # fmt: skip


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


class KillAt(Callback):
    """Ends the training as SIGKILL does.

    Args:
        step: Before which step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise Killed


def fit(toy: str, name: str) -> list[str]:
    model = [f"--model=tests.methods.toys.{toy}", *TOYS[toy], *QUIET, "--experiment=toys", f"--name={name}"]
    often = ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    return ["fit", *model, "--trainer.max_epochs=3", "--trainer.deterministic=true", *often]


def weights(name: str, folder: Path = Path()) -> dict[str, torch.Tensor]:
    path = folder / "runs" / "toys" / name / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("toy", list(TOYS))
def test_a_toy_has_at_most_60_lines(toy: str) -> None:
    text = Path(inspect.getfile(getattr(toys, toy))).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) - sum(line.startswith(("import ", "from ", '"""')) for line in lines) <= 60


@pytest.mark.parametrize("toy", list(TOYS))
def test_a_toy_goes_all_the_way(
    toy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if TOYS[toy] is SYNTHETIC:
        pytest.importorskip("pytorch3d")
    monkeypatch.chdir(tmp_path)
    main(fit(toy, "whole"))
    kill = ["--trainer.callbacks+=tests.methods.test_toys.KillAt", "--trainer.callbacks.step=3"]
    with pytest.raises(Killed):
        main([*fit(toy, "killed"), *kill])
    main([*fit(toy, "killed"), "--ckpt_path=last"])
    expected, resumed = weights("whole"), weights("killed")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())
    run = Path("runs/toys/whole")
    model = f"--model=tests.methods.toys.{toy}"
    main(["test", model, *TOYS[toy], *QUIET, f"--ckpt_path={run}/checkpoints/last.ckpt"])
    names = getattr(toys, toy)().prediction_names
    records = {record.prediction: record for record in map(read_record, (run / "records").glob("*.json"))}
    assert set(records) == set(names)
    assert all(record.training.epochs == 3 and record.parameters > 0 for record in records.values())
    pictures = [path.name for path in (run / "pictures").iterdir()]
    for kind in ("val-last", "test-"):
        assert all(any(picture.startswith(kind) and name in picture for picture in pictures) for name in names)
    capsys.readouterr()
    main(["leaderboard", "runs", "--csv", "board.csv"])
    board = Path("board.csv").read_text(encoding="utf-8")
    assert all(toy in board and name in board for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("toy", list(TOYS))
def test_a_toy_on_two_processes_is_killed_and_resumed(toy: str, tmp_path: Path) -> None:
    processes = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2"]
    command = [*fit(toy, "two"), *processes]
    kill = ["--trainer.callbacks+=KillAt", "--trainer.callbacks.step=3"]
    killed = start([*command, *kill], tmp_path)
    assert killed.returncode != 0
    assert (tmp_path / "runs" / "toys" / "two" / "checkpoints" / "last.ckpt").exists(), killed.stderr
    resumed = start([*command, "--ckpt_path=last"], tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    whole = start([*fit(toy, "whole"), *processes], tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "UserWarning" not in whole.stderr
    expected = weights("whole", tmp_path)
    assert all(torch.equal(value, expected[key]) for key, value in weights("two", tmp_path).items())
    run = tmp_path / "runs" / "toys" / "whole"
    model = f"--model=tests.methods.toys.{toy}"
    tested = start(
        ["test", model, *TOYS[toy], *QUIET, *processes, f"--ckpt_path={run}/checkpoints/last.ckpt"], tmp_path
    )
    assert tested.returncode == 0, tested.stderr
    names = getattr(toys, toy)().prediction_names
    assert {read_record(path).prediction for path in (run / "records").glob("*.json")} == set(names)
