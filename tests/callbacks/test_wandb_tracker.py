from __future__ import annotations

import http.server
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks import BestCheckpoint, ContactSheet, LastCheckpoint, TrainingStatistics, WandbTracker
from callbacks.wandb_tracker import chosen_mode
from tests.callbacks.training import data, method, trainer
from tests.wandb_server import Fault, StandIn

KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    import wandb

    # A run that another test left would be finished below, after its service has ended.
    wandb.finish()
    # Before the variables, as it takes back WANDB_SERVICE, which would be stale when it is restored.
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wandb.finish()
    wandb.teardown()


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format, each record a protobuf message."""
    from wandb.proto import wandb_internal_pb2

    content, position, message = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        message += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            message = b""
            yield record


def test_offline_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_mode(None) == "offline"
    assert chosen_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert chosen_mode(None) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert chosen_mode(None) == "offline"
    assert chosen_mode("online") == "online"


def test_offline_run_holds_metrics_pictures_and_checkpoints(tmp_path: Path) -> None:
    import wandb

    tracker = WandbTracker(tmp_path, project="p", name="n", id="the-id")
    callbacks = [BestCheckpoint(), LastCheckpoint(), ContactSheet(), TrainingStatistics(2)]
    trainer(tmp_path, callbacks, tracker, max_epochs=1, log_every_n_steps=1).fit(method(), data())
    wandb.finish()
    # What the process does when it ends: wandb's own process writes the file, and ends then.
    wandb.teardown()
    (run,) = tmp_path.glob("wandb/offline-run-*-the-id/run-the-id.wandb")
    kept = list(records(run))
    history = {item.key or item.nested_key[0] for record in kept for item in record.history.item}
    wanted = {"val/nme", "train/loss", "val/faces", "lr", "speed/images_per_second", "speed/waiting_for_data"}
    assert history >= wanted | {"memory/peak_gb", "norm/gradient", "norm/weights", "trainer/global_step"}
    artifacts = [record.artifact for record in kept if record.WhichOneof("record_type") == "artifact"]
    models = {"".join({*artifact.aliases} - {"latest"}): artifact for artifact in artifacts if artifact.type == "model"}
    assert set(models) == {"best", "last"}
    for alias in ("best", "last"):
        (entry,) = models[alias].manifest.contents
        assert (entry.path, Path(entry.local_path).name) == ("model.ckpt", f"{alias}.ckpt")
    assert {artifact.name for artifact in models.values()} == {"model-the-id"}
    assert list(run.parent.glob("files/media/images/val/faces*.png"))


def test_a_disabled_run_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = WandbTracker(tmp_path, mode="disabled")
    run = trainer(tmp_path, [BestCheckpoint(), ContactSheet()], tracker, max_epochs=1)
    run.fit(method(), data())
    assert run.current_epoch == 1
    assert not list(tmp_path.rglob("*.wandb"))
    assert "W&B" not in capsys.readouterr().err


def test_an_unreachable_server_is_named_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    tracker = WandbTracker(tmp_path, mode="online", id="x")
    trainer(tmp_path, [], tracker, max_epochs=1).fit(method(), data())
    assert time.monotonic() - start < 15
    said = [line for line in capsys.readouterr().err.splitlines() if "W&B is not available" in line]
    assert len(said) == 1
    assert "http://127.0.0.1:9 cannot be reached" in said[0]
    assert list(tmp_path.glob("wandb/offline-run-*-x"))


class Broken(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_a_server_that_fails_and_a_missing_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    _ = WandbTracker(tmp_path / "a", mode="online").experiment
    assert "there is no API key for http://127.0.0.1" in capsys.readouterr().err
    import wandb

    wandb.finish()
    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    _ = WandbTracker(tmp_path / "b", mode="online").experiment
    assert "answers with status 503. The run goes on offline" in capsys.readouterr().err
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", ["refuses", "is silent"])
def test_a_server_that_refuses_or_is_slow(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its address answers; what is asked of it gets status 401, or no answer in time.
    monkeypatch.setattr("callbacks.wandb_tracker.START_SECONDS", 3.0)
    with StandIn(fault=fault) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        tracker = WandbTracker(tmp_path, mode="online", id="r3")
        run = trainer(tmp_path, [], tracker, max_epochs=1)
        run.fit(method(), data())
    assert run.current_epoch == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "W&B is not available" in line]
    assert len(said) == 1
    assert "The run goes on offline" in said[0]
    assert len(list(tmp_path.glob("wandb/offline-run-*-r3"))) == 1
    assert not server.runs


def test_an_online_run_reaches_the_server_and_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    with StandIn() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        tracker = WandbTracker(tmp_path, mode="online", project="p", id="r1", log_checkpoints=False)
        tracker.log_hyperparams({"model": {"lr": 0.1}})
        run = trainer(tmp_path, [ContactSheet()], tracker, max_epochs=2, log_every_n_steps=1)
        run.fit(method(), data())
        wandb.finish()
        steps = len(server.runs["r1"].history)
        # Another process, on the same run: what it logs comes after what is there.
        wandb.teardown()
        again = WandbTracker(tmp_path, mode="online", project="p", id="r1", log_checkpoints=False)
        again.log_metrics({"test/nme": 0.5}, step=10)
        wandb.finish()
        assert set(server.runs) == {"r1"}
        kept = server.runs["r1"]
    assert [row["_step"] for row in kept.history] == list(range(steps + 1))
    assert kept.history[-1]["test/nme"] == 0.5
    rows = [row for row in kept.history if "val/nme" in row]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[1]["val/nme"] == pytest.approx(float(run.callback_metrics["val/nme"]))
    assert kept.config["model"] == {"lr": 0.1}
    assert kept.summary["trainer/global_step"] == 10
    assert any(name.startswith("media/images/val/faces") for name in kept.uploaded)
    assert kept.exit_code == 0


def test_a_server_that_hangs_or_dies_does_not_hold_a_training_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    monkeypatch.setattr("callbacks.wandb_tracker.PROBE_SECONDS", 0.5)
    monkeypatch.setattr("callbacks.wandb_tracker.FINISH_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker = WandbTracker(tmp_path / "hangs", mode="online")
        _ = tracker.experiment
        assert "cannot be reached (timed out)" in capsys.readouterr().err
        wandb.finish()
        wandb.teardown()

    class Die(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                server.__exit__()

    with StandIn() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        tracker = WandbTracker(tmp_path / "dies", mode="online", id="r2")
        run = trainer(tmp_path, [Die()], tracker, max_epochs=3, log_every_n_steps=1)
        start = time.monotonic()
        run.fit(method(), data())
        assert run.current_epoch == 3
        wandb.finish()
        assert time.monotonic() - start < 20
        # What the process does when it ends.
        wandb.teardown()
        assert time.monotonic() - start < 30
    # Everything is in the file that wandb sync sends later.
    (file,) = (tmp_path / "dies").glob("wandb/run-*-r2/run-r2.wandb")
    assert file.read_bytes().count(b"val/nme") >= 3
