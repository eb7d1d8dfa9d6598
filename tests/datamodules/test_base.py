"""What every data module does around its data sets: precision, whole passes, reflections, options."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer

import datamodules
from datamodules import (
    AFLW20003D,
    W300LP,
    ImageFolder,
    MildAugmentation,
    Mixed,
    SyntheticFaces,
    Table,
    ThreeDFAW,
)
from datamodules.base import FaceDataModule
from datamodules.components.files import FileFaceDataModule
from datamodules.components.fitted import FittedFaceDataModule
from datamodules.components.tables import TableFaceDataModule
from lightning_faces.batch import FaceSpec
from lightning_faces.errors import ConfigurationError
from tests.fakes.noise_faces import NoiseFaces


class Seen(LightningModule):
    """Keeps the batches that reach it."""

    requires: frozenset[str] = frozenset()
    scores: frozenset[str] = frozenset()
    spec = FaceSpec()

    def __init__(self, every_sample_once: bool = False) -> None:
        super().__init__()
        self.every_sample_once = every_sample_once
        self.layer = torch.nn.Linear(1, 1)
        self.batches: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.batches.append(batch)
        return self.layer(batch["image"].mean()[None]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_checkpointing": False, **quiet}
    return Trainer(default_root_dir=folder, **{**defaults, **options})


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", "bf16-mixed", "32-true"])
@pytest.mark.parametrize("workers", [0, 1])
def test_the_truth_keeps_its_precision_and_the_image_takes_the_networks(
    tmp_path: Path, precision: Any, workers: int
) -> None:
    wanted = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    truth = list(_loaded(NoiseFaces()))
    data, method = NoiseFaces(num_workers=workers), Seen()
    trainer(tmp_path, precision=precision).test(method, data, verbose=False)
    assert len(method.batches) == len(truth) == 4
    for batch, exact in zip(method.batches, truth):
        assert batch["image"].dtype == wanted.get(precision, torch.float32)
        assert type(batch) is dict
        for key in ("landmarks", "yaw", "face_size", "box", "crop_to_file"):
            assert torch.equal(batch[key].to(exact[key].dtype), exact[key]), key
            if precision != "64-true":
                assert batch[key].dtype == torch.float32, key
        assert batch["sample_id"] == exact["sample_id"]


def test_faces_that_the_device_renders_keep_their_truth_too(tmp_path: Path) -> None:
    batches = []
    for precision in ("32-true", "bf16-true"):
        data = SyntheticFaces(4, 2, 2, image_size=32, batch_size=4, num_workers=0, render_on_device=True)
        method = Seen()
        options: Any = {"precision": precision, "limit_val_batches": 0}
        trainer(tmp_path, **options).fit(method, data)
        batches.append(method.batches[0])
    assert batches[1]["image"].dtype == torch.bfloat16
    assert torch.equal(batches[1]["image"], batches[0]["image"].bfloat16())
    for key in ("landmarks", "yaw", "pose", "crop_to_file"):
        assert torch.equal(batches[0][key], batches[1][key]), key


def _loaded(data: NoiseFaces) -> Any:
    data.setup("test")
    return data.test_dataloader()


def _attached(data: FaceDataModule, rank: int = 0, world: int = 1, **method: Any) -> FaceDataModule:
    """The data module as if a trainer had it, on a rank of several."""
    precision = SimpleNamespace(convert_input=lambda value: value)
    module = SimpleNamespace(requires=frozenset(), scores=frozenset(), spec=FaceSpec(), **method)
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=module, world_size=world, global_rank=rank, precision_plugin=precision
    )
    return data


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_of_37_samples_once_in_as_many_batches_on_each_rank_and_from_the_middle(world: int) -> None:
    def batches(rank: int, done: int) -> list[list[int]]:
        data = _attached(NoiseFaces(train_size=37, batch_size=5), rank, world, every_sample_once=True)
        data.load_state_dict({"epoch": 0, "batches": done})
        data.setup("fit")
        return [batch["index"].tolist() for batch in data.train_dataloader()]

    whole = [batches(rank, 0) for rank in range(world)]
    assert sorted(index for rank in whole for batch in rank for index in batch) == list(range(37))
    assert {len(rank) for rank in whole} == {-(-37 // (5 * world))}
    sizes = {len(batch) for rank in whole for batch in rank}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) > 0
    assert [batches(rank, 2) for rank in range(world)] == [rank[2:] for rank in whole]


def test_lightning_trains_on_whole_passes(tmp_path: Path) -> None:
    method = Seen(every_sample_once=True)
    trainer(tmp_path, max_epochs=2).fit(method, NoiseFaces(train_size=37, batch_size=5, num_workers=1))
    seen = [batch["index"].tolist() for batch in method.batches]
    assert len(seen) == 16
    for epoch in (seen[:8], seen[8:]):
        assert sorted(index for batch in epoch for index in batch) == list(range(37))
    assert seen[:8] != seen[8:]


def test_fewer_samples_than_a_batch_are_enough_for_whole_passes() -> None:
    data = _attached(NoiseFaces(train_size=3, batch_size=5), every_sample_once=True)
    data.setup("fit")
    assert [sorted(batch["index"].tolist()) for batch in data.train_dataloader()] == [[0, 1, 2]]
    data = _attached(NoiseFaces(train_size=2, batch_size=5), world=3, every_sample_once=True)
    data.setup("fit")
    with pytest.raises(ConfigurationError, match="2 samples for 3 processes: use fewer devices"):
        data.train_dataloader()


def test_a_reflection_masks_what_it_spoils() -> None:
    sizes: Any = {"image_size": 32, "batch_size": 8, "num_workers": 0, "position_map_size": 8}
    data = SyntheticFaces(8, 2, 2, augmentation=MildAugmentation(flip=0.5), **sizes)
    method = SimpleNamespace(requires=frozenset({"landmarks", "position_map"}), scores=frozenset(), spec=FaceSpec())
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        lightning_module=method,
        world_size=1,
        global_rank=0,
        precision_plugin=SimpleNamespace(convert_input=lambda value: value),
    )
    data.setup("fit")
    (batch,) = list(data.train_dataloader())
    has = batch["has"]["position_map"]
    assert 0 < int(has.sum()) < 8
    assert batch["has"]["landmarks"].all()
    assert torch.equal(has, batch["has"]["coefficients"])
    assert not batch["position_map"][~has].any()
    assert batch["position_map"][has].flatten(1).any(dim=1).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_a_method_that_reflections_leave_nothing_is_refused(mixed: bool) -> None:
    def data(*flips: float) -> FaceDataModule:
        members: list[FaceDataModule] = [
            SyntheticFaces(4, 2, 2, image_size=32, num_workers=0, augmentation=MildAugmentation(flip=flip))
            for flip in flips
        ]
        return Mixed(members, image_size=32) if mixed else members[0]

    dense, both = frozenset({"pncc", "offsets"}), frozenset({"pncc", "landmarks"})
    with pytest.raises(ConfigurationError, match=r"flip is 1, but a reflected face has no offsets, pncc, and Dense"):
        data(1.0, 1.0).check_reflection(dense, "Dense")
    data(0.99, 1.0).check_reflection(dense, "Dense")
    data(1.0, 1.0).check_reflection(both, "Dense")
    data(1.0, 1.0).check_reflection(frozenset(), "Nothing")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: NoiseFaces(num_workers=-1), "data option num_workers is -1; it must be from 0 to 512."),
        (lambda: NoiseFaces(batch_size=0), "data option batch_size is 0; it must be at least 1."),
        (lambda: NoiseFaces(image_size=4), "data option image_size is 4; it must be from 8 to 4096."),
        (lambda: NoiseFaces(image_size=10**9), "data option image_size is 1000000000; it must be from 8 to 4096."),
        (lambda: NoiseFaces(margin=float("nan")), "data option margin is nan; it must be from 0.1 to 100."),
        (lambda: NoiseFaces(seed=-1), "data option seed is -1; it must be from 0 to 4.29497e+09."),
        (lambda: SyntheticFaces(train_size=0), "SyntheticFaces option train_size is 0; it must be at least 1."),
        (lambda: SyntheticFaces(position_map_size=0), "SyntheticFaces option position_map_size is 0; it must be"),
        (lambda: SyntheticFaces(canvas=float("inf")), "SyntheticFaces option canvas is inf; it must be from 1 to 16."),
        (lambda: AFLW20003D(position_map_size=0), "AFLW20003D option position_map_size is 0; it must be"),
        (lambda: AFLW20003D(max_angle=-1.0), "AFLW20003D option max_angle is -1.0; it must be at least 0.001."),
        (lambda: AFLW20003D(balanced_seed=-1), "AFLW20003D option balanced_seed is -1; it must be at least 0."),
        (lambda: W300LP(val_fraction=float("nan")), "W300LP option val_fraction is nan; it must be from 0 to below 1."),
        (lambda: W300LP(subsets=[]), "W300LP option subsets is empty: choose among AFW, HELEN, IBUG, LFPW."),
        (lambda: ThreeDFAW(test_size=-1), "ThreeDFAW option test_size is -1; it must be at least 0."),
        (lambda: Table("x", test_fraction=2.0), "Table option test_fraction is 2.0; it must be from 0 to 1."),
        (lambda: Table("x", landmark_scheme="34"), "Table option landmark_scheme is '34': use one of 68, 66, 51, 49"),
        (lambda: ImageFolder("x", max_megapixels=0.0), "ImageFolder option max_megapixels is 0.0; it must be at least"),
        (lambda: MildAugmentation(rotation=float("nan")), "augmentation option rotation is nan; it must be at least"),
        (lambda: MildAugmentation(translation=-1.0), "augmentation option translation is -1.0; it must be at"),
        (lambda: MildAugmentation(flip=1.5), "augmentation option flip is 1.5; it must be from 0 to 1."),
        (
            lambda: MildAugmentation(scale=(1.0, float("inf"))),
            "augmentation option scale is (1.0, inf); give (least, most), at least 0.1.",
        ),
    ],
)  # fmt: skip
def test_bad_numbers_are_one_sentence(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match="^" + re.escape(sentence)):
        make()


@pytest.mark.parametrize("kind", [FaceDataModule, FileFaceDataModule, FittedFaceDataModule, TableFaceDataModule])
def test_bases_are_abstract(kind: type[FaceDataModule]) -> None:
    assert inspect.isabstract(kind)
    with pytest.raises(TypeError, match="abstract"):
        kind()


def test_data_sets_are_not() -> None:
    public = [getattr(datamodules, name) for name in datamodules.__all__]
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, FaceDataModule)}
    assert {kind.__name__ for kind in kinds if not inspect.isabstract(kind)} == {
        "AFLW20003D", "AFLWLFPA", "BP4D", "Florence", "ImageFolder", "Menpo3D", "Mixed", "SyntheticFaces", "Table",
        "ThreeDFAW", "W300LP", "W3003D",
    }  # fmt: skip
