"""Mixtures: proportions, one pass after the other, targets that some lack, and refusals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from datamodules.augment import MildAugmentation
from datamodules.mixed import JoinedDataset, Mixed, MixedDataset, shares
from datamodules.w300lp import W300LP
from lightning_faces.errors import ConfigurationError
from tests.fakes.noise_faces import NoiseFaces
from tests.fakes.photographs import fake_face_model, write_300w_lp


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
    with pytest.raises(ConfigurationError, match=r"flip is 0\.5"):
        Mixed([NoiseFaces(augmentation=MildAugmentation())], image_size=32).members[0].check_reflection(
            frozenset({"pncc"}), "M"
        )
