"""The multi-task network on data sets with different labels in one run, as the shipped configuration has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from callbacks import LastCheckpoint
from datamodules import W300LP, Mixed, SyntheticFaces, Table
from lightning_faces.batch import FaceBatch
from lightning_faces.errors import ConfigurationError
from lightning_faces.methods import MultiTask
from tests.callbacks.training import trainer
from tests.fakes.photographs import fake_face_model, write_300w_lp, write_table
from tests.methods.contract import batch_of, rows_of
from tests.methods.test_contract import SGD

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "experiment" / "multitask_mixed.yaml"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The shipped configuration's mixture and network, with fake files, few faces and small maps."""
    pytest.importorskip("pytorch3d")
    root = tmp_path_factory.mktemp("data")
    write_300w_lp(root / "300W_LP", photographs=4, copies=3)
    write_table(root / "300W", 8, "68", depth=False)
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    synthetic, modelled, flat = (member["init_args"] for member in config["data"]["init_args"]["members"])
    for member in (synthetic, modelled, flat):
        assert member.pop("image_size") == config["data"]["init_args"]["image_size"]
        member.pop("augmentation")
    sizes = {"train_size": 8, "val_size": 2, "test_size": 2, "cache_dir": str(root / "cache")}
    synthetic.update(sizes, image_size=64)
    modelled.update(root=str(root), val_fraction=0.5, image_size=64)
    flat.update(root=str(root / "300W"), image_size=64)
    return config


def data(config: dict[str, Any]) -> Mixed:
    synthetic, modelled, flat = (member["init_args"] for member in config["data"]["init_args"]["members"])
    options = {**config["data"]["init_args"], "epoch_size": 16, "batch_size": 8, "num_workers": 0}
    return Mixed(**{**options, "members": [SyntheticFaces(**synthetic), W300LP(**modelled), Table(**flat)]})


def method(config: dict[str, Any]) -> MultiTask:
    torch.manual_seed(0)
    options = {**config["model"]["init_args"], "encoder_args": {"channels": [8, 8, 16, 16]}, "optimizer": SGD}
    for key in ("lr_scheduler", "lr_scheduler_interval"):
        options.pop(key)
    return MultiTask(**options)


def with_labels(batch: FaceBatch, name: str) -> FaceBatch:
    beginnings = {"synthetic": "train-", "flat": "pictures/"}
    kinds = {kind: [sample.startswith(start) for sample in batch["sample_id"]] for kind, start in beginnings.items()}
    kinds["modelled"] = [not any(pair) for pair in zip(*kinds.values())]
    return rows_of(batch, torch.tensor(kinds[name]))


def test_each_sample_trains_the_heads_whose_targets_it_has(mixture: dict[str, Any]) -> None:
    network = method(mixture)
    batch = batch_of(data(mixture), network, count=16)
    trained = {}
    for name in ("synthetic", "modelled", "flat"):
        part = with_labels(batch, name)
        assert len(part["index"]) == {"synthetic": 8, "modelled": 4, "flat": 4}[name]
        trained[name] = {key for key, term in network.terms(part).items() if float(term.count.sum()) > 0}
    everything = {"local", "pairwise", "depth", "geometry", "actions", "pose", "reprojection", "visibility"}
    everything |= {"uncertainty", "position_map"}
    places = {"local", "pairwise", "reprojection", "uncertainty"}
    assert trained == {"synthetic": everything, "modelled": places, "flat": places}
    # The loss of all is the ratio of sums, not the mean of the parts' losses.
    whole = network.eval().terms(batch)["local"]
    parts = [network.terms(with_labels(batch, name))["local"] for name in trained]
    for field in ("value", "count"):
        total = sum(float(getattr(part, field).sum()) for part in parts)
        assert total == pytest.approx(float(getattr(whole, field).sum()), rel=1e-4)


@pytest.mark.slow
def test_the_shipped_mixture_trains_validates_and_is_read_back(mixture: dict[str, Any], tmp_path: Path) -> None:
    network = method(mixture)
    run = trainer(tmp_path, [LastCheckpoint()], max_epochs=1)
    run.fit(network, data(mixture))
    assert np.isfinite([float(value) for value in run.callback_metrics.values()]).all()
    assert {"val/nme", "val/action_error", "val/landmarks/nme", "train/position_map"} <= set(run.callback_metrics)


def test_two_face_models_in_a_mixture_are_refused(mixture: dict[str, Any], tmp_path: Path) -> None:
    fake_face_model().save(tmp_path / "bfm.npz")
    mixed = data(mixture)
    root = mixture["data"]["init_args"]["members"][1]["init_args"]["root"]
    mixed.members[1] = W300LP(root=root, face_model=str(tmp_path / "bfm.npz"), image_size=64)
    with pytest.raises(ConfigurationError, match="Mixed has SyntheticFaces with face_model 'embedded' and W300LP with"):
        trainer(tmp_path, [], max_epochs=1).fit(method(mixture), mixed)


def test_a_head_whose_target_no_member_has_is_refused(mixture: dict[str, Any], tmp_path: Path) -> None:
    mixed = data(mixture)
    mixed = Mixed(mixed.members[1:], image_size=64, batch_size=4, num_workers=0)
    with pytest.raises(ConfigurationError, match="trains on coefficients, position_map, which Mixed does not give"):
        trainer(tmp_path, [], max_epochs=1).fit(method(mixture), mixed)
