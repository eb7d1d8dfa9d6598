"""The command line in one process; ``test_main_in_milliseconds`` alone starts others."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace

import tests.fakes.noise_faces  # noqa: F401 - makes NoiseFaces a short name
from lightning_faces.__main__ import COMMANDS, main
from lightning_faces.cli import main as cli_main
from lightning_faces.commands.checks import adapt_to_cpu
from lightning_faces.commands.configurations import MOVED, check_packages, present_name
from lightning_faces.commands.parse_only import ParseOnly
from lightning_faces.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent

MODEL = ["--model", "Zhao2016", "--model.image_size=32", "--model.hidden=8", "--model.channels=[2,2,2,2]"]
DATA = ["--data", "NoiseFaces"]
FAST = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
MISLED = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/nmee"]
FIT = ["fit", *MODEL, *DATA, *FAST, "--trainer.max_epochs=1", "--experiment=e", "--name=n"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a command fails with; nothing may be left behind."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as error:
        main(args)
    assert error.value.code == 2
    assert sorted(Path().rglob("*")) == before
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-faces: ")]
    assert len(lines) == 1
    return lines[0]


def test_help_and_version_need_no_heavy_import() -> None:
    code = "import sys; from lightning_faces.__main__ import main; main(['--help']); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in COMMANDS)


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'leaderbord' is not a command: did you mean leaderboard?" in fails(["leaderbord"], capsys)


def test_fit_help_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.process_time()
    with pytest.raises(SystemExit):
        cli_main(["fit", "--help"])
    # Everything is imported here, so this is what it costs over importing Lightning.
    assert time.process_time() - start < 1.5
    assert "--experiment" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--trainer.max_epoch=3"], "--trainer.max_epoch is not an option: did you mean trainer.max_epochs"),
        (["--trainer.max_epochs=abc"], "trainer.max_epochs is 'abc', which does not fit: it must be int or null."),
        (["--model.dropot=0.1"], "'dropot' is not an option here: did you mean dropout?"),
        (["--model.dropout=abc"], "model.dropout is 'abc', which does not fit: it must be float."),
        (["--model.depth_output=cubic"], "model.depth_output is 'cubic', which does not fit: it must be 'linear' or"),
        (["--model=Zhao2061"], "model: there is no class 'Zhao2061': did you mean Zhao2016?"),
        (["--model.optimizer=Addam"], "model.optimizer: there is no class 'Addam': did you mean Adam"),
        (["--model.optimizer=Adam", "--model.optimizer.lrr=1"], "'lrr' is not an option here: did you mean lr?"),
        (["--data=NoiseFace"], "data: there is no class 'NoiseFace': did you mean NoiseFaces?"),
        (["--config=absent.yaml"], "absent.yaml: check the path."),
        (["--ckpt_path=absent.ckpt"], "There is no checkpoint absent.ckpt"),
        (["--name=../x"], "name is '../x': use letters"),
        (["--data.image_size=4"], "image_size is 4; it must be from 8 to 4096."),
        (["--data.image_size=48"], "Zhao2016 was built for image_size 32 but NoiseFaces gives 48"),
        (MISLED, "EarlyStopping monitors 'val/nmee', which Zhao2016 does not log: did you mean val/nme?"),
        ([*MISLED, "--trainer.num_sanity_val_steps=0"], "EarlyStopping monitors 'val/nmee', which Zhao2016"),
        ([*MISLED, "--trainer.limit_val_batches=0"], "EarlyStopping monitors 'val/nmee', but nothing is validated"),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/los"],
            "EarlyStopping monitors 'train/los', which Zhao2016 does not log: did you mean train/loss?",
        ),
        (["--trainer.accelerator=abacus"], "abacus"),
        (["--trainer.accelerator=gpu"], "asks for a GPU, but none was found: use --trainer.accelerator cpu, or auto."),
        (["--trainer.precision=16-true"], "trainer.precision is 16-true, but the CPU lacks operations in float16"),
        (["--model.optimizer=AdamW", "--model.optimizer.lr=-0.1"], "made of its options: Invalid learning rate: -0.1"),
        (["--model.optimizer=os.system"], "model.optimizer: os.system is no Optimizer"),
        (
            ['--model.optimizer={"class_path": "os.system", "init_args": {"command": "touch harmed"}}'],
            "model.optimizer is os.system, which is no Optimizer: name a class, e.g. torch.optim.AdamW",
        ),
        (
            ['--model.lr_scheduler={"class_path": "os.system", "init_args": {"command": "touch harmed"}}'],
            "model.lr_scheduler is os.system, which is no LRScheduler",
        ),
        (["--model=mymodule.MyMethod"], "model: mymodule.MyMethod can't be imported: there is no module 'mymodule'"),
        (["--data=mymodule.MyData"], "data: mymodule.MyData can't be imported: there is no module 'mymodule'"),
        (["--trainer.callbacks+=mymodule.Mine"], "trainer.callbacks: mymodule.Mine can't be imported"),
        (["--trainer.logger=mymodule.Mine"], "trainer.logger: mymodule.Mine can't be imported"),
        (["--model=json.JSONEncoder"], "model: json.JSONEncoder is no FaceMethod: choose one of "),
        (["--model=json.JSONEncodr"], "json has no JSONEncodr, did you mean JSONEncoder"),
        (["--model=FaceMethod"], "model: FaceMethod is abstract, so that it can't be made: choose one of "),
        (["--data=FaceDataModule"], "data: FaceDataModule is abstract"),
        (["--ckpt_path=https://host/best.ckpt"], "There is no checkpoint https:/host/best.ckpt"),
    ],
)  # fmt: skip
def test_wrong_options_get_one_sentence(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails([*FIT, *args], capsys)


def test_wrong_configuration_files_get_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    for text, said in {
        "modle: Zhao2016": "'modle' is not an option here: did you mean model?",
        "trainer: {max_epoch: 3}": "'trainer.max_epoch' is not an option here: did you mean trainer.max_epochs",
        "model: {class_path: Zhao2016, init_args: {dropot: 3}}": "'dropot' is not an option here",
        "trainer: {callbacks: [{class_path: Nope}]}": "trainer.callbacks: there is no class 'Nope'",
        "model: [": "c.yaml is not valid YAML",
    }.items():
        file.write_text(text)
        assert said in fails(["fit", *MODEL, *DATA, "--config", str(file)], capsys)
    for name, content, said in (
        (
            "windows.yaml",
            "trainer: {}".encode("utf-16"),
            "windows.yaml is no configuration, as it is not in UTF-8 but in UTF-16",
        ),
        ("latin.yaml", "name: caf\xe9".encode("latin-1"), "latin.yaml is no configuration, as it is not text in UTF-8"),
        ("board.md", b"# Board\n\n| a | b |\n", "board.md is no configuration but a Markdown document"),
        ("face.png", b"\x89PNG\r\n\x1a\n\x00", "face.png is no configuration but a PNG picture"),
        ("list.yaml", b"- 1\n- 2\n", "list.yaml is no configuration but holds no keys with values"),
        ("deep.yaml", b"a: " + b"[" * 900, "deep.yaml is not valid YAML"),
        (
            "laugh.yaml",
            b"a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 10)) for c in range(97, 104)),
            "laugh.yaml is no configuration: it holds more values",
        ),
    ):
        (tmp_path / name).write_bytes(content)
        assert said in fails(["fit", *MODEL, *DATA, "--config", name], capsys)
    assert "No model and no data was chosen: add --model with one of" in fails(["fit"], capsys)


def test_a_wrong_path_is_said_before_anything_is_imported() -> None:
    code = (
        "import sys; from lightning_faces.__main__ import main\n"
        "for words in (['--config', 'absent.yaml'], ['--ckpt_path=absent.ckpt']):\n"
        "    try: main(['fit', *words])\n"
        "    except SystemExit as stop: assert stop.code == 2\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert "There is no file absent.yaml" in shown
    assert "There is no checkpoint absent.ckpt" in shown


def test_another_package_of_the_same_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("callbacks").mkdir()
    Path("callbacks/__init__.py").touch()
    monkeypatch.syspath_prepend(str(Path().absolute()))
    monkeypatch.delitem(sys.modules, "callbacks")
    with pytest.raises(ConfigurationError) as error:
        check_packages()
    assert f"the platform's in {ROOT / 'callbacks'} and another in {Path('callbacks').absolute()}" in str(error.value)


def test_a_method_in_the_current_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    Path("own_method.py").write_text(
        "from lightning_faces.methods import MeanLandmarks\n\n\nclass Own(MeanLandmarks):\n"
        "    def __init__(self, kind: str = 'a'):\n        super().__init__()\n"
    )
    own = ["--model=own_method.Own", "--model.kind=b", *DATA, *FAST, "--trainer.max_epochs=1", "--name=n"]
    main(["fit", *own, "--trainer.accelerator=cpu"])
    # Its own arguments are in the checkpoint, although it does not save them itself.
    test = ["test", "--ckpt_path=runs/own/n/checkpoints/best.ckpt", *DATA, *FAST]
    main([*test, "--trainer.accelerator=cpu"])
    config = yaml.safe_load(Path("runs/own/n/config-test.yaml").read_text())
    assert config["model"] == {"class_path": "own_method.Own", "init_args": {"kind": "b"}}


def test_ddp_on_the_cpu_leaves_out_what_gpus_have(capsys: pytest.CaptureFixture[str]) -> None:
    options = Namespace(accelerator="cpu", sync_batchnorm=True, precision="bf16-mixed")
    adapt_to_cpu(options)
    assert options.sync_batchnorm is False
    assert "trainer.sync_batchnorm needs GPUs" in capsys.readouterr().err


def test_old_names_of_classes_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOVED, "old.place", "lightning_faces.methods")
    Path("old.yaml").write_text("model: {class_path: old.place.Zhao2016, init_args: {image_size: 32}}\n")
    assert type(ParseOnly(["fit", *DATA, "--config=old.yaml"]).model).__name__ == "Zhao2016"
    assert type(ParseOnly(["fit", *DATA, "--model=old.place.MeanLandmarks"]).model).__name__ == "MeanLandmarks"
    for before in MOVED:
        name = before if before[before.rfind(".") + 1 :][0].isupper() else f"{before}.X"
        module, _, attribute = present_name(name).rpartition(".")
        assert attribute == "X" or hasattr(importlib.import_module(module), attribute), before
        assert importlib.import_module(module)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_one_folder_that_test_and_resume_add_to(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    cli_main(FIT)
    shown = capsys.readouterr()
    assert "Run folder: runs/e/n" in shown.out
    # Deprecations are for developers, and Python does not show them by default.
    assert not [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)]
    folder = Path("runs/e/n")
    config = (folder / "config.yaml").read_text()
    resolved = yaml.safe_load(config)
    assert resolved["model"]["init_args"]["optimizer"]["init_args"]["lr"] > 0
    assert resolved["data"]["init_args"]["batch_size"] == 4
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert {p.name for p in (folder / "pictures").iterdir()} == {"val-epoch0000.png", "val-last.png"}
    assert len(list(folder.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert "commit" in yaml.safe_load((folder / "environment.yaml").read_text())
    assert float(rows(folder)[-1]["val/nme"]) > 0

    # The method comes from the checkpoint, and the folder is that of the run.
    main(["test", "--ckpt_path", str(folder / "checkpoints" / "best.ckpt"), *DATA, *FAST])
    assert (folder / "config.yaml").read_text() == config
    assert (folder / "config-test.yaml").exists()
    assert (folder / "pictures" / "test-NoiseFaces.png").exists()
    assert float(rows(folder)[-1]["test/nme_mean"]) > 0
    assert list((folder / "records").glob("*.json"))
    assert [p.name for p in Path("runs").rglob("config.yaml")] == ["config.yaml"]

    # The same training again is refused; continued, it adds its epochs under the same W&B id.
    assert "runs/e/n holds a training already: continue it with --ckpt_path last" in fails(FIT, capsys)
    cli_main(["fit", "--config", str(folder / "config.yaml"), "--ckpt_path=last", "--trainer.max_epochs=3"])
    assert [row["epoch"] for row in rows(folder) if row["val/nme"]] == ["0", "1", "2"]
    assert (folder / "config.yaml").read_text() == config
    assert len({p.name for p in folder.glob("wandb/offline-run-*/run-*.wandb")}) == 1
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 2

    # A checkpoint that does not fit, or is damaged.
    best = str(folder / "checkpoints" / "best.ckpt")
    said = fails(["test", "--ckpt_path", best, "--model=MeanLandmarks", *DATA, *FAST], capsys)
    assert "best.ckpt holds a Zhao2016, but the model is MeanLandmarks" in said
    whole = Path(best).read_bytes()
    Path(best).write_bytes(whole[: len(whole) // 2])
    assert "best.ckpt is damaged: use --ckpt_path" in fails(["test", "--ckpt_path", best, *DATA, *FAST], capsys)


def test_continuing_from_a_truncated_checkpoint_uses_the_newest_whole_one(capsys: pytest.CaptureFixture[str]) -> None:
    cli_main(FIT)
    last = Path("runs/e/n/checkpoints/last.ckpt")
    last.write_bytes(last.read_bytes()[:-1000])
    cli_main([*FIT, "--ckpt_path=last", "--trainer.max_epochs=2"])
    assert "last.ckpt is damaged: continuing from best.ckpt." in capsys.readouterr().err
    assert torch.load(last, weights_only=True)["epoch"] == 1


def test_configurations_are_composed_and_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "model: {class_path: MeanLandmarks}\ndata: {class_path: NoiseFaces, init_args: {batch_size: 2}}\n"
        "trainer: {max_epochs: 5, callbacks+: [{class_path: LearningRateMonitor}]}\n"
    )
    (tmp_path / "b.yaml").write_text("model: {class_path: Zhao2016, init_args: {image_size: 32, hidden: 8}}\n")
    cli_main(["fit", "-c", "a.yaml", "-c", "b.yaml", "--trainer.fast_dev_run=true", "--data.train_size=6", *FAST])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "trainer").glob("*.yaml")), ids=lambda path: path.stem)
def test_trainer_configurations_are_accepted(path: Path) -> None:
    cli = ParseOnly(["fit", *MODEL, *DATA, "--config", str(path)])
    assert cli.options.trainer.accelerator == ("cpu" if path.stem == "cpu" else "gpu")
    # The defaults that make a run folder are still there.
    assert any(callback.class_path == "callbacks.LastCheckpoint" for callback in cli.options.trainer.callbacks)
    assert any(plugin.class_path == "callbacks.AtomicCheckpointIO" for plugin in cli.options.trainer.plugins)
