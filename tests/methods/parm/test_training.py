"""PARM through the command line: trained, interrupted, continued, tested, on one process and on two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_faces.__main__ import main
from lightning_faces.evaluation.records import read_record
from lightning_faces.methods import PARM
from lightning_faces.methods.checkpoint import load_method

ROOT = Path(__file__).resolve().parent.parent.parent.parent
DATA = [
    "--data=SyntheticFaces", "--data.train_size=21", "--data.val_size=3", "--data.test_size=6", "--data.batch_size=6",
    "--data.image_size=40", "--data.cache_dir=cache", "--data.num_workers=0",
]  # fmt: skip
SMALL = ["--model=PARM", "--model.radii=[0.4,0.2]", "--model.trees=3", "--model.tree_depth=2", "--model.candidates=20"]
QUIET = [
    "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
    "--trainer.logger=false", "--trainer.deterministic=true",
]  # fmt: skip


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


class StopAt(Callback):
    """Ends the training as SIGKILL does.

    Args:
        step: Before which step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise Killed


def fit(name: str, *options: str) -> list[str]:
    often = ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    run = ["--experiment=e", f"--name={name}", "--trainer.max_epochs=20"]
    return ["fit", *SMALL, *DATA, *QUIET, *run, *often, *options]


def weights(name: str, folder: Path = Path()) -> dict[str, torch.Tensor]:
    path = folder / "runs" / "e" / name / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]  # type: ignore[no-any-return]


def test_it_trains_is_interrupted_and_continued_and_is_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pytorch3d")
    monkeypatch.chdir(tmp_path)
    main(fit("whole"))
    # Four batches a pass; the seventh belongs to the first stage.
    with pytest.raises(Killed):
        main(
            fit("killed", "--trainer.callbacks+=tests.methods.parm.test_training.StopAt", "--trainer.callbacks.step=6")
        )
    main(fit("killed", "--ckpt_path=last"))
    expected, resumed = weights("whole"), weights("killed")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())
    assert int(expected["passes"]) == 3
    checkpoint = "runs/e/whole/checkpoints/last.ckpt"
    method = load_method(checkpoint)
    assert isinstance(method, PARM)
    assert method.converged
    main(["test", *DATA, *QUIET, f"--ckpt_path={checkpoint}"])
    records = [read_record(path) for path in Path("runs/e/whole/records").glob("*.json")]
    assert {record.prediction for record in records} == {"stage_1", "stage_2"}
    assert all(record.training.converged and record.training.epochs == 3 for record in records)
    assert all({"nme", "pose_error", "identity_error"} <= set(record.metrics) for record in records)
    assert {record.parameters for record in records} == {method.num_parameters()}
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(fit("whole", "--ckpt_path=last", "--model.variant=pclm"))
    # What differs from the saved training is said first.
    *_, refusal = capsys.readouterr().err.strip().splitlines()
    assert "variant" in refusal
    assert refusal.startswith("lightning-faces: The checkpoint holds a PARM")
    with pytest.raises(SystemExit):
        main(fit("few", "--model.tree_depth=6"))
    assert "A tree of 64 leaves needs at least 64 faces, and there are 21" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(fit("half", "--trainer.precision=bf16-true"))
    assert "use 32-true" in capsys.readouterr().err


def command(folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.ddp_main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_two_processes_fit_what_one_fits(tmp_path: Path) -> None:
    pytest.importorskip("pytorch3d")
    processes = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=3"]
    killed = command(tmp_path, fit("two", *processes, "--trainer.callbacks+=KillAt", "--trainer.callbacks.step=6"))
    assert killed.returncode != 0
    for name, options in (("one", []), ("two", [*processes, "--ckpt_path=last"])):
        done = command(tmp_path, fit(name, *options))
        assert done.returncode == 0, done.stderr
    one, two = weights("one", tmp_path), weights("two", tmp_path)
    assert one.keys() == two.keys()
    for key, value in one.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, two[key], atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(value, two[key]), key


@pytest.mark.slow
def test_the_papers_sizes_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch3d")
    monkeypatch.chdir(tmp_path)
    radii = "--model.radii=[0.4,0.3,0.2,0.15,0.12,0.1,0.08]"
    data = [*DATA, "--data.train_size=300", "--data.image_size=96", "--data.batch_size=64"]
    main(["fit", "--model=PARM", radii, *data, *QUIET, "--experiment=e", "--name=paper", "--trainer.max_epochs=8"])
    method = load_method("runs/e/paper/checkpoints/last.ckpt")
    assert isinstance(method, PARM)
    assert method.converged
    # 20 trees of depth 5 for each of 68 landmarks, seven stages; a tree has a row for hidden landmarks too.
    assert tuple(method.updater.weights.shape) == (7, 68 * 20 * 33, 136)
    assert float(method.regressors.abs().amax(dim=(1, 2)).min()) > 0
