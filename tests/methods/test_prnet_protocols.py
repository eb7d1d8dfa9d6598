"""PRNet's protocols: the commands of configs/experiment on stand-in files, with untrained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from datamodules import florence
from lightning_faces.cli import main
from lightning_faces.evaluation.records import Record, read_record
from lightning_faces.methods import PRNet
from tests.fakes.photographs import fake_face_model, write_aflw2000, write_table

CONFIGS = Path(__file__).parents[2] / "configs" / "experiment"


def score(tmp_path: Path, config: str, face_model: Path | str, *options: str) -> Record:
    """The record of `lightning-faces test --config CONFIG` for a small PRNet."""
    torch.manual_seed(0)
    method = PRNet(image_size=32, width=2, face_model=str(face_model))
    trainer = Trainer(accelerator="cpu", logger=False, enable_model_summary=False, default_root_dir=tmp_path)
    trainer.strategy.connect(method)
    path = tmp_path / "runs" / "prnet" / "small" / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "lightning_faces.methods.PRNet"  # as a training by command saves it
    torch.save(content, path)
    if face_model != "embedded":
        # A checkpoint opens no file, so a face model of one's own is named again.
        options = ("--model", "PRNet", "--model.face_model", str(face_model), *options)
    main(
        [
            "test", "--config", str(CONFIGS / config), "--ckpt_path", str(path), "--data.image_size", "32",
            "--data.num_workers", "0", "--trainer.logger", "false", "--trainer.accelerator", "cpu", *options,
        ]
    )  # fmt: skip
    (path,) = path.parents[1].glob("records/*.json")
    return read_record(path)


@pytest.fixture(scope="module")
def bfm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "bfm.npz"
    fake_face_model().save(path)
    return path


def test_protocol_of_aflw2000(tmp_path: Path, bfm: Path) -> None:
    """Table 1 and figures 5, 7 and 8."""
    write_aflw2000(tmp_path / "AFLW2000", 12)
    options = ("--data.root", str(tmp_path), "--data.face_model", str(bfm), "--data.position_map_size", "32")
    record = score(tmp_path, "prnet_aflw2000.yaml", bfm, *options)
    assert (record.dataset, record.method, record.margin) == ("AFLW2000-3D", "PRNet", 1.6)
    assert record.protocol["crop"] == "square around the square box of the true landmarks"
    wanted = {"nme_0_30", "nme_30_60", "nme_3d_mean", "dense_nme", "dense_nme_3d", "icp", "icp_0_30"}
    assert wanted <= set(record.metrics)
    assert record.metrics["icp"].samples == 12


def test_protocol_of_aflw_lfpa(tmp_path: Path) -> None:
    """Table 1, last column."""
    visible: dict[str, Any] = {f"visible{i}": [1, 0, 1] for i in range(34)}
    folder = write_table(tmp_path / "AFLW-LFPA", 3, "34", depth=False, **visible)
    (folder / "mapping.json").write_text(str(list(range(17, 51))))
    record = score(tmp_path, "prnet_lfpa.yaml", "embedded", "--data.root", str(tmp_path))
    assert record.dataset == "AFLWLFPA"
    assert record.metrics["nme_visible"].samples == 2


def test_protocol_of_florence(tmp_path: Path, bfm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures 8 and 9."""
    columns = {"scale": 0.5, "pitch": 0.1, "roll": 0, "tx": 60, "ty": 55}
    yaw = [-80, -40, 0, 40, 80]
    table: dict[str, Any] = {key: [value] * 5 for key, value in columns.items()}
    table |= {"yaw": yaw, "yaw_rad": np.radians(yaw).tolist(), "scan": ["s.obj"] * 5, "subject": [3] * 5}
    folder = write_table(tmp_path / "Florence", 5, "68", **table)
    (folder / "s.obj").write_text("v 0 0 0")
    mean = fake_face_model().mean.numpy()
    monkeypatch.setattr(florence, "registered_scan", lambda *_: (mean, np.ones(len(mean), dtype=bool)))
    options = ("--data.root", str(tmp_path), "--data.face_model", str(bfm), "--data.cache_dir", str(tmp_path))
    record = score(tmp_path, "prnet_florence.yaml", bfm, *options)
    assert record.dataset == "Florence"
    counts = {name: record.metrics[f"icp_{name}"].samples for name in ("0_30", "30_60", "60_90")}
    assert counts == {"0_30": 1, "30_60": 2, "60_90": 2}
