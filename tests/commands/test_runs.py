"""Run folders: whose they are, what a repeated or a failed command leaves, and what is continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

import tests.fakes.noise_faces  # noqa: F401 - makes NoiseFaces a short name
from lightning_faces.__main__ import main
from lightning_faces.commands.run_folder import RunFolder
from tests.test_cli import DATA, FAST, FIT, MODEL, ROOT, fails, rows

CPU = ["--trainer.accelerator=cpu"]


class SendAt(Callback):
    """Sends this process a signal.

    Args:
        step: When.
        number: Which.
    """

    def __init__(self, step: int = 2, number: int = 2) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


class NanAt(Callback):
    """Makes the weights NaN.

    Args:
        step: When.
    """

    def __init__(self, step: int = 6) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")


def snapshot(folder: Path) -> dict[Path, bytes]:
    """Content by path, without the log of W&B's service, which serves all runs of this process."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("debug"))
    return {path: path.read_bytes() for path in files}


def test_a_run_that_is_repeated_from_its_configuration_has_a_folder_of_its_own() -> None:
    main([*FIT, *CPU])
    old = Path("runs/e/n")
    before = snapshot(old)
    config = yaml.safe_load((old / "config.yaml").read_text())
    text = (old / "config.yaml").read_text()
    assert str(Path.cwd()) not in text
    loggers = {entry["class_path"]: entry["init_args"] for entry in config["trainer"]["logger"]}
    assert {loggers["callbacks.WandbTracker"][key] for key in ("id", "name", "project")} == {None}
    main(["fit", "--config", str(old / "config.yaml"), "--name", "again"])
    assert snapshot(old) == before
    assert {p.name for p in Path("runs/e/again/checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    ids = [yaml.safe_load(Path(f"runs/e/{name}/environment.yaml").read_text())["wandb_id"] for name in ("n", "again")]
    assert ids[0] != ids[1]


def test_a_configuration_of_an_earlier_version_does_not_lead_into_the_old_folder() -> None:
    """It holds absolute paths, names and ids of its run."""
    main([*FIT, *CPU])
    old = Path("runs/e/n").absolute()
    config = yaml.safe_load((old / "config.yaml").read_text())
    for entry in config["trainer"]["callbacks"]:
        if entry["class_path"].endswith("Checkpoint"):
            entry["init_args"]["dirpath"] = str(old / "checkpoints")
    for entry in config["trainer"]["logger"]:
        entry["init_args"]["save_dir"] = str(old)
        if entry["class_path"].endswith("WandbTracker"):
            entry["init_args"].update(id="n-12345678", name="n", project="e")
    config["trainer"]["default_root_dir"] = str(old)
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    before = snapshot(old)
    main(["fit", "--config", str(old / "config.yaml"), "--name", "again"])
    assert snapshot(old) == before
    assert len(rows(Path("runs/e/again"))) > 0
    saved = yaml.safe_load(Path("runs/e/again/environment.yaml").read_text())
    assert saved["wandb_id"] != "n-12345678"


def test_last_of_a_run_that_never_ran_is_refused_and_auto_starts(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails([*FIT, *CPU, "--ckpt_path=last"], capsys)
    assert "There is no checkpoint to go on with: runs/e/n/checkpoints has none" in said
    assert "--ckpt_path auto starts anew" in said
    main([*FIT, *CPU, "--ckpt_path=auto"])
    main([*FIT, *CPU, "--ckpt_path=auto", "--trainer.max_epochs=2"])
    assert [row["epoch"] for row in rows(Path("runs/e/n")) if row["val/nme"]] == ["0", "1"]


@pytest.mark.parametrize("command", ["test", "validate"])
def test_random_weights_are_not_scored(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = fails([command, *MODEL, *DATA, *FAST], capsys)
    assert f"{command} needs the weights of a training: name its checkpoint with --ckpt_path" in said
    assert "--ckpt_path initial" in said


def test_initial_weights_are_scored_where_they_are_asked_for() -> None:
    main(["test", *MODEL, *DATA, *FAST, *CPU, "--ckpt_path=initial", "--experiment=e", "--name=n"])
    assert list(Path("runs/e/n/records").glob("*.json"))


def test_a_folder_has_one_owner(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("runs/e/n")
    code = (
        "import sys, time, pathlib; from lightning_faces.commands.run_folder import RunFolder; "
        "folder = RunFolder(pathlib.Path(sys.argv[1])); folder.claim('fit'); print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, env=environment)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert f"runs/e/n is in use by process {holder.pid} on" in fails([*FIT, *CPU], capsys)
    holder.kill()
    holder.wait()
    main([*FIT, *CPU])
    assert not (folder / ".owner").exists()


def test_two_runs_that_start_within_one_second_have_two_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20300101-000000")
    without_name = [word for word in FIT if not word.startswith("--name")]
    main([*without_name, *CPU])
    before = snapshot(Path("runs/e/20300101-000000"))
    main([*without_name, *CPU])
    assert snapshot(Path("runs/e/20300101-000000")) == before
    assert Path("runs/e/20300101-000000-2/checkpoints/last.ckpt").is_file()
    assert yaml.safe_load(Path("runs/e/20300101-000000-2/config.yaml").read_text())["name"] == "20300101-000000-2"


def test_runs_dir_is_used_by_test_and_nothing_stays_of_one_that_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main([*FIT, *CPU])
    monkeypatch.setenv("WANDB_MODE", "offline")
    best = "runs/e/n/checkpoints/best.ckpt"
    main(["test", "--ckpt_path", best, *DATA, *FAST, *CPU, "--runs_dir=elsewhere"])
    assert list(Path("elsewhere/e/n/records").glob("*.json"))
    assert not Path("runs/e/n/records").exists()
    # Too small a crop is found out when the data are set up, after W&B and others have begun to write.
    before = snapshot(Path())
    said = fails(["test", "--ckpt_path", best, *DATA, *FAST, *CPU, "--data.image_size=48"], capsys)
    assert "image_size 32" in said
    assert snapshot(Path()) == before


def test_ctrl_c_saves_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    send = ["--trainer.callbacks+=tests.commands.test_runs.SendAt", "--trainer.callbacks.step=2"]
    with pytest.raises(SystemExit) as stopped:
        main([*FIT, *CPU, *send])
    assert stopped.value.code == 128 + signal.SIGINT
    said = capsys.readouterr().err
    assert "stopped by Ctrl-C after step 3" in said
    assert "lightning-faces fit --config runs/e/n/config.yaml --ckpt_path last" in said
    assert torch.load("runs/e/n/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    main(["fit", "--config", "runs/e/n/config.yaml", "--ckpt_path", "last", "--trainer.callbacks.step=99"])
    assert torch.load("runs/e/n/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_training_that_turns_to_nan_keeps_the_last_good_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    broken = ["--trainer.callbacks+=tests.commands.test_runs.NanAt", "--trainer.callbacks.step=6"]
    with pytest.raises(SystemExit) as stopped:
        main([*FIT, *CPU, *broken, "--trainer.max_epochs=3"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "The training has turned to NaN: the loss is not finite after step 8 at a learning rate of 0.001" in said
    assert "checkpoints/last.ckpt is from before" in said
    saved = torch.load("runs/e/n/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    assert all(bool(torch.isfinite(value).all()) for value in saved["state_dict"].values())


def test_the_method_of_a_checkpoint_takes_what_the_user_names(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *CPU])
    best = "runs/e/n/checkpoints/best.ckpt"
    test = ["test", "--ckpt_path", best, *DATA, *FAST, *CPU]
    main([*test, "--model=Zhao2016", "--model.depth_weight=0.5"])
    resolved = yaml.safe_load(Path("runs/e/n/config-test.yaml").read_text())["model"]["init_args"]
    assert (resolved["depth_weight"], resolved["hidden"]) == (0.5, 8)
    said = fails([*test, "--model=Zhao2016", "--model.hidden=9"], capsys)
    assert "best.ckpt does not fit the configured model: size mismatch" in said


def test_a_checkpoint_with_an_option_that_is_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *CPU])
    best = Path("runs/e/n/checkpoints/best.ckpt")
    content = torch.load(best, weights_only=True)
    content["hyper_parameters"]["gone"] = 1
    torch.save(content, best)
    said = fails(["test", "--ckpt_path", str(best), *DATA, *FAST, *CPU], capsys)
    assert "was saved with the option 'gone', which Zhao2016 does not have" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer_states", [{"state": 3}]),
        ("loops", {"fit_loop": {}}),
        ("callbacks", {"EvaluationRecord": 3}),
        ("lr_schedulers", 5),
        ("NoiseFaces", {"epoch": "x"}),
    ],
)
def test_damaged_states_are_named(key: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    main([*FIT, *CPU])
    last = Path("runs/e/n/checkpoints/last.ckpt")
    torch.save({**torch.load(last, weights_only=True), key: value}, last)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "runs/e/n/config.yaml", "--ckpt_path", str(last), "--trainer.max_epochs=2"])
    assert stopped.value.code == 2
    assert "does not fit this training" in capsys.readouterr().err


def test_lines_of_progress_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = [word for word in FIT if "progress" not in word]
    main([*quiet, *CPU, "--trainer.max_epochs=2"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2, batch 4/8, train/loss ")
    assert "val/nme" in lines[1]


def test_names_of_folders_that_exist_are_numbered() -> None:
    first, second = (RunFolder(Path("x/t"), fresh=True) for _ in range(2))
    first.claim("fit")
    second.claim("fit")
    assert (first.path.name, second.path.name) == ("t", "t-2")
    second.take_back()
    assert not second.path.exists()
    first.release()
