"""Weights that come with an installation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.methods.checkpoint import read_checkpoint
from lightning_faces.predict import weights
from lightning_faces.predict.weights import CropRule, load_weights, save_weights
from tests.predict.blobs import save_checkpoint


def test_weights_hold_what_the_checkpoint_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save_checkpoint(tmp_path / "mean.ckpt")
    whole = load_weights(save_weights(checkpoint, tmp_path / "whole.json", half=False))
    half = load_weights(save_weights(checkpoint, tmp_path / "faces.json"))
    expected = read_checkpoint(checkpoint)["state_dict"]["mean"]
    assert torch.equal(whole.method.state_dict()["mean"], expected)
    assert torch.equal(half.method.state_dict()["mean"], expected.half().float())
    assert whole.digest != half.digest
    assert (whole.name, half.name) == ("whole", "faces")
    # What an installation has is found by name, and one of them without.
    monkeypatch.setattr(weights, "_folder", lambda: tmp_path)
    assert weights.shipped() == ["faces", "whole"]
    assert load_weights().digest == half.digest
    assert load_weights("whole").digest == whole.digest


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = save_weights(save_checkpoint(tmp_path / "mean.ckpt"), tmp_path / "w.json")
    described = json.loads(path.read_text())
    for change, says in (
        ({"sha256": "0"}, "SHA-256 differs"), ({"format": 2}, "format 2"), ({"margin": "wide"}, "margin 'wide'"),
        ({"box": "round"}, "'round' boxes"), ({"hyper_parameters": None}, "no hyper_parameters"),
    ):  # fmt: skip
        path.write_text(json.dumps({**described, **change}))
        with pytest.raises(DataError, match=says):
            load_weights(path)
    path.write_text(json.dumps(described))
    tensors = path.with_suffix(".safetensors")
    # The header claims a terabyte.
    header = b'{"mean":{"dtype":"F32","shape":[250000000000],"data_offsets":[0,1000000000000]}}'
    tensors.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(DataError, match="SHA-256"):
        load_weights(path)
    path.write_text(json.dumps({**described, "sha256": hashlib.sha256(tensors.read_bytes()).hexdigest()}))
    with pytest.raises(DataError, match="holds no tensors"):
        load_weights(path)
    path.write_text(json.dumps(described))
    tensors.unlink()
    with pytest.raises(DataError, match="is missing"):
        load_weights(path)
    with pytest.raises(ConfigurationError, match="margin is 0"):
        load_weights(path, margin=0)


def test_a_checkpoint_says_what_crops_it_was_trained_on(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "mean.ckpt")
    assert load_weights(path).crop == CropRule(1.3, "tight")
    content = torch.load(path, weights_only=False)
    content["training"] = {"margin": 1.6, "box": "square"}
    torch.save(content, path)
    assert load_weights(path).crop == CropRule(1.6, "square")
    assert load_weights(path, margin=2).crop == CropRule(2.0, "square")
    saved = save_weights(path, tmp_path / "w.json")
    assert load_weights(saved).crop == CropRule(1.6, "square")
    assert CropRule(1.6, "square").apply(np.array([0.0, 0.0, 10.0, 20.0])).tolist() == [-2.5, 2.5, 12.5, 17.5]
