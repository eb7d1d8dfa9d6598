"""Rendering whole batches where the method trains gives what the loader's processes give."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from lightning import Trainer

from datamodules.augment import MildAugmentation, ZhaoAugmentation
from datamodules.synthetic import SceneDataset, SyntheticFaces
from lightning_faces.batch import FaceBatch
from lightning_faces.errors import ConfigurationError
from lightning_faces.methods.mean_landmarks import MeanLandmarks
from lightning_faces.targets import MODEL_TARGETS, TARGETS

SIZE = 48
DENSE = MODEL_TARGETS


def faces(on_device: bool, targets: frozenset[str] = frozenset(), **options: Any) -> SyntheticFaces:
    defaults = {"train_size": 7, "val_size": 3, "test_size": 3, "image_size": SIZE, "num_workers": 0, "batch_size": 3}
    data = SyntheticFaces(render_on_device=on_device, **{**defaults, "position_map_size": 16, **options})
    data.setup("fit")
    for dataset in data.datasets.values():
        dataset.targets = dataset.targets | targets
    return data


def training_batches(data: SyntheticFaces) -> list[FaceBatch]:
    return [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]


@pytest.mark.parametrize("augmentation", [None, MildAugmentation(), MildAugmentation(scale=(0.5, 0.7), flip=0.0)])
def test_the_same_batches_as_from_the_loader(augmentation: MildAugmentation | None) -> None:
    """The last one makes the crop twice as small as the canvas, which is smoothed first."""
    both = [training_batches(faces(on, DENSE, augmentation=augmentation)) for on in (False, True)]
    assert len(both[0]) == len(both[1]) == 2
    mirrored = 0
    for theirs, ours in zip(*both, strict=True):
        assert set(theirs) == set(ours)
        assert theirs["sample_id"] == ours["sample_id"]
        for key in ("index", "subject", "view", "sequence", "frame"):
            assert torch.equal(theirs[key], ours[key]), key
        assert theirs["has"].keys() == ours["has"].keys()
        for key, value in theirs["has"].items():
            assert torch.equal(value, ours["has"][key]), key
            assert theirs[key].shape == ours[key].shape, key
            assert theirs[key].dtype == ours[key].dtype, key
        mirrored += int((~ours["has"]["coefficients"]).sum())
        assert torch.equal(theirs["visible"], ours["visible"])
        for key in ("landmarks", "vertices", "position_map", "box", "crop_to_file", "face_size", "pose"):
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-4, rtol=0)
        for key in ("coefficients", "yaw"):
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-6)
        for key in (name for name, row in TARGETS.items() if row.moves == "image"):
            # The nearest pixel of the canvas may be its neighbour where a place is half-way.
            off = (ours[key] - theirs[key]).abs().amax(dim=1) > 1e-3
            assert off.float().mean() < 0.02, key
        # The loader's canvas has 8 bits, and OpenCV weighs neighbours in steps of 1/32 pixel.
        difference = (ours["image"] - theirs["image"]).abs()
        assert difference.mean() < 1.0 / 255
        assert difference.max() < 12.0 / 255
    assert (mirrored > 0) == (augmentation is not None and augmentation.flip > 0)


def test_any_number_of_faces_in_a_batch() -> None:
    data = faces(True)
    dataset = SceneDataset(data.datasets["train"])  # type: ignore[arg-type]
    keys = [(4, 0), (1, 3), (6, 0), (2, 1), (5, 0)]
    together = data.on_after_batch_transfer(dataset.__getitems__(keys), 0)
    for rows in (slice(0, 1), slice(1, 5)):
        part = data.on_after_batch_transfer(pickle.loads(pickle.dumps(dataset)).__getitems__(keys[rows]), 0)
        for key in ("image", "landmarks", "pose", "visible"):
            assert torch.equal(part[key], together[key][rows]), key


def test_evaluation_is_rendered_by_the_loader() -> None:
    here, there = faces(True), faces(False)
    for ours, theirs in zip(here.val_dataloader(), there.val_dataloader(), strict=True):
        assert torch.equal(here.on_after_batch_transfer(ours, 0)["image"], theirs["image"])


def test_lightning_trains_on_it() -> None:
    results = []
    for on_device in (False, True):
        method = MeanLandmarks()
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=1,
        )  # fmt: skip
        trainer.fit(method, datamodule=faces(on_device, augmentation=MildAugmentation()))
        results.append(method.mean.detach())
    assert float(results[0].abs().max()) > 0.1
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ZhaoAugmentation also changes colours or covers faces"):
        faces(True, augmentation=ZhaoAugmentation())
    with pytest.raises(ConfigurationError, match="set only one of them"):
        faces(True, cache_dir="cache")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_loaders_batches() -> None:
    data = faces(True, DENSE, augmentation=MildAugmentation())
    theirs = training_batches(faces(False, DENSE, augmentation=MildAugmentation()))
    for batch, expected in zip(data.train_dataloader(), theirs, strict=True):
        ours = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, torch.device("cuda"), 0), 0)
        assert ours["image"].device.type == "cuda"
        torch.testing.assert_close(ours["landmarks"].cpu(), expected["landmarks"], atol=1e-3, rtol=0)
        assert (ours["image"].cpu() - expected["image"]).abs().mean() < 2.0 / 255
