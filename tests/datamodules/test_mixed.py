"""Mixtures: proportions, one pass after the other, targets that some lack, and refusals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from datamodules.augment import MildAugmentation
from datamodules.base import FaceDataModule
from datamodules.components.sampling import EvaluationSampler
from datamodules.menpo import Menpo3D
from datamodules.mixed import JoinedDataset, Mixed, MixedDataset, shares
from datamodules.w300lp import W300LP
from datamodules.w3003d import W3003D
from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from tests.fakes.noise_faces import NoiseFaces
from tests.fakes.photographs import fake_face_model, write_300w_3d, write_300w_lp, write_table


def test_shares_add_up_in_proportion() -> None:
    assert shares([1, 1, 1], 10) == [4, 3, 3]
    assert shares([0.7, 0.3], 1000) == [700, 300]
    assert shares([5, 1], 3) == [3, 0] or shares([5, 1], 3) == [2, 1]


def make(members: list[NoiseFaces], split: str, **options: object) -> JoinedDataset:
    dataset = Mixed(members, image_size=32, **options).make_dataset(split, members[0].available_targets)  # type: ignore[arg-type]
    assert isinstance(dataset, JoinedDataset)
    return dataset


def test_proportions_hold_in_every_epoch_and_all_samples_are_seen_equally_often() -> None:
    members = [NoiseFaces(train_size=10), NoiseFaces(train_size=24)]
    dataset = make(members, "train", weights=[3.0, 1.0], epoch_size=40)
    assert isinstance(dataset, MixedDataset)
    assert len(dataset) == 40
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(4):
        places = [dataset.locate((i, epoch)) for i in range(40)]
        assert Counter(part for part, _ in places) == {0: 30, 1: 10}
        seen.update((part, index) for part, (index, _) in places)
    first = [seen[0, i] for i in range(10)]
    second = [seen[1, i] for i in range(24)]
    assert first == [12] * 10
    assert set(second) == {1, 2}
    # The same sample of the small part is augmented anew each time.
    draws = [key for part, key in (dataset.locate((i, 0)) for i in range(30)) if part == 0]
    assert len(set(draws)) == 30


def test_joined_splits_hold_each_sample_once() -> None:
    members = [NoiseFaces(val_size=3), NoiseFaces(val_size=5)]
    dataset = make(members, "val")
    samples = dataset.__getitems__([(i, 0) for i in (7, 0, 3, 2)])
    assert [sample["index"] for sample in samples] == [7, 0, 3, 2]
    assert [sample["sample_id"] for sample in samples] == ["noise-4", "noise-0", "noise-0", "noise-2"]
    assert dataset.fingerprint() != make(members[:1], "val").fingerprint()


def test_samples_carry_the_targets_that_they_have(tmp_path: Path) -> None:
    write_300w_lp(tmp_path / "300W_LP", photographs=2, copies=2)
    fake_face_model().save(tmp_path / "bfm.npz")
    mixed = Mixed(
        [
            W300LP(root=str(tmp_path), val_fraction=0, face_model=str(tmp_path / "bfm.npz"), margin=1.5, image_size=32),
            NoiseFaces(train_size=8, augmentation=MildAugmentation()),
        ],
        weights=[1.0, 1.0],
        epoch_size=16,
        image_size=32,
        batch_size=16,
        num_workers=0,
    )
    mixed.setup("fit")
    (batch,) = list(mixed.train_dataloader())
    assert batch["image"].shape == (16, 3, 32, 32)
    photographs = torch.tensor([not name.startswith("noise") for name in batch["sample_id"]])
    assert int(photographs.sum()) == 8
    assert torch.equal(batch["has"]["pose"], photographs)
    assert torch.equal(batch["has"]["coefficients"], photographs)
    assert torch.equal(batch["has"]["visible"], ~photographs)
    assert batch["has"]["landmarks"].all()
    assert not batch["coefficients"][~photographs].any()
    assert mixed.spec.num_identity == 199
    assert mixed.spec.face_model == "fake-bfm"


def test_refusals() -> None:
    with pytest.raises(ConfigurationError, match="one positive number for each"):
        Mixed([NoiseFaces()], weights=[1.0, 2.0], image_size=32)
    with pytest.raises(ConfigurationError, match="at least one"):
        Mixed([])
    other = NoiseFaces()
    other.landmark_scheme = "66"
    with pytest.raises(ConfigurationError, match="with 68 landmarks and NoiseFaces with 66"):
        Mixed([NoiseFaces(), other], image_size=32)
    with pytest.raises(ConfigurationError, match="image_size 64 and NoiseFaces has 32"):
        Mixed([NoiseFaces()], image_size=64)
    with pytest.raises(ConfigurationError, match="leaves a member without a sample"):
        make([NoiseFaces(), NoiseFaces()], "train", weights=[1.0, 99.0], epoch_size=3)
    for weights in ([0.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(ConfigurationError, match="one positive number for each"):
            Mixed([NoiseFaces(), NoiseFaces()], weights=weights, image_size=32)


def test_a_mixture_has_the_margin_and_the_sequences_of_its_members(tmp_path: Path) -> None:
    write_table(tmp_path / "Menpo3D", 5, "68", sequence=[0, 0, 1, 1, 1], frame=[0, 1, 0, 1, 2])
    write_300w_3d(tmp_path / "300W-3D", photographs=2)
    members: list[FaceDataModule] = [
        Menpo3D(root=str(tmp_path), margin=1.6, image_size=32),
        W3003D(root=str(tmp_path), margin=1.6, image_size=32),
    ]
    mixed = Mixed(members, image_size=32, num_workers=0)
    mixed.setup("test")
    dataset = mixed.datasets["test"]
    assert dataset.margin == 1.6
    assert dataset.sequence_lengths == [2, 3, 1, 1]  # type: ignore[attr-defined]
    shards = [[index for index, _ in EvaluationSampler(dataset, 2, rank)] for rank in range(2)]
    assert sorted(shards[0] + shards[1]) == list(range(7))
    assert any({2, 3, 4} <= set(shard) for shard in shards)
    members[1].margin = 1.3
    with pytest.raises(ConfigurationError, match=r"crops have margins 1\.3, 1\.6: set option margin"):
        Mixed(members, image_size=32).setup("test")


def test_two_face_models_are_refused_before_any_face_is_read(tmp_path: Path) -> None:
    model = fake_face_model()
    model.save(tmp_path / "a.npz")
    replaced = MorphableModel.load(tmp_path / "a.npz")
    replaced.mean[0] += 1.0
    replaced.save(tmp_path / "b.npz")
    members: list[FaceDataModule] = [
        W300LP(root=str(tmp_path / "nowhere"), face_model=str(tmp_path / f"{name}.npz"), image_size=32) for name in "ab"
    ]
    with pytest.raises(ConfigurationError, match=r"Mixed has W300LP with face_model_hash .* and W300LP with"):
        Mixed(members, image_size=32).setup("fit")


def test_a_method_that_sees_each_sample_once_cannot_be_given_proportions() -> None:
    class Method:
        every_sample_once = True

    class Trainer:
        lightning_module = Method()

    members = [NoiseFaces(train_size=4), NoiseFaces(train_size=6)]
    for options in ({"weights": [1.0, 1.0]}, {"epoch_size": 5}):
        mixed = Mixed(members, image_size=32, **options)  # type: ignore[arg-type]
        mixed.trainer = Trainer()  # type: ignore[assignment]
        with pytest.raises(ConfigurationError, match="Method must see each sample once in a pass"):
            mixed.make_dataset("train", members[0].available_targets)
    mixed = Mixed(members, image_size=32)
    mixed.trainer = Trainer()  # type: ignore[assignment]
    dataset = mixed.make_dataset("train", members[0].available_targets)
    assert isinstance(dataset, MixedDataset)
    assert sorted(dataset.locate((i, 1))[1][0] for i in range(10)) == sorted([*range(4), *range(6)])
