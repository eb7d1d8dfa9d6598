"""One contract for every data module: what its batches are, whatever it reads."""

from __future__ import annotations

import json
import pickle
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.aflw2000 import AFLW20003D
from datamodules.aflwlfpa import AFLWLFPA
from datamodules.augment import MildAugmentation, PRNetAugmentation
from datamodules.base import FaceDataModule
from datamodules.bp4d import BP4D
from datamodules.florence import Florence
from datamodules.image_folder import ImageFolder
from datamodules.menpo import Menpo3D
from datamodules.mixed import Mixed
from datamodules.synthetic import SyntheticFaces
from datamodules.table import Table
from datamodules.threedfaw import ThreeDFAW
from datamodules.w300lp import W300LP
from datamodules.w3003d import W3003D
from lightning_faces.batch import FaceBatch
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import compose_affine, invert_affine, transform_points
from lightning_faces.geometry.landmarks import num_landmarks
from tests.fakes.photographs import (
    fake_face_model,
    write_300w_3d,
    write_300w_lp,
    write_aflw2000,
    write_photograph,
    write_table,
)

SIZE = 48
STAGES = {"train": "fit", "val": "fit", "test": "test", "predict": "predict"}


class DataModuleContract(ABC):
    """Subclasses say how to make the data module; the tests are the same for all."""

    splits: tuple[str, ...]
    upright = True
    """Whether landmarks are of faces that stand upright, up to 50 degrees or so."""

    @abstractmethod
    def make(self, root: Path, **options: Any) -> FaceDataModule:
        """The data module, on data written below ``root`` once."""

    @classmethod
    @abstractmethod
    def write(cls, root: Path) -> None:
        """Write the data."""

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("contract")
        cls.write(root)
        return root

    def module(self, root: Path, **options: Any) -> FaceDataModule:
        return self.make(root, **{"image_size": SIZE, "batch_size": 3, "num_workers": 0, **options})

    def batches(self, module: FaceDataModule, split: str) -> list[FaceBatch]:
        module.setup(STAGES[split])
        return list(getattr(module, f"{split}_dataloader")())

    def test_batches_are_as_promised(self, root: Path) -> None:
        for split in self.splits:
            module = self.module(root)
            batches = self.batches(module, split)
            assert batches
            for batch in batches:
                self.check(batch, module)

    def check(self, batch: FaceBatch, module: FaceDataModule) -> None:
        count = len(batch["index"])
        image, box = batch["image"], batch["box"]
        assert image.shape == (count, 3, SIZE, SIZE)
        assert image.dtype == torch.float32
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        assert image.std() > 0 or "landmarks" not in batch
        assert batch["index"].dtype == torch.int64
        assert len(batch["sample_id"]) == count
        assert (box[:, 2:] > box[:, :2]).all()
        matrices = batch["crop_to_file"].double()
        identity = compose_affine(invert_affine(matrices), matrices)
        assert torch.allclose(identity, torch.eye(2, 3, dtype=torch.float64).expand(count, 2, 3), atol=1e-3)
        for key in ("subject", "view", "sequence", "frame"):
            assert batch[key].dtype == torch.int64  # type: ignore[literal-required]
        keys = set(batch["has"])
        assert keys <= module.available_targets
        spec = module.spec
        assert spec.image_size == SIZE
        for key in keys:
            value, has = batch[key], batch["has"][key]  # type: ignore[literal-required]
            assert has.shape == (count,)
            assert value.shape[0] == count
            assert value.dtype in (torch.float32, torch.bool)
            assert torch.isfinite(value.float()).all(), key
            assert not value[~has].any(), key
        if "landmarks" in keys:
            self.check_landmarks(batch, module)
        if "pose" in keys:
            assert (batch["pose"][batch["has"]["pose"], 0] > 0).all()
        if "coefficients" in keys:
            assert batch["coefficients"].shape[1] == (spec.num_identity or 0) + (spec.num_expression or 0)

    def check_landmarks(self, batch: FaceBatch, module: FaceDataModule) -> None:
        has = batch["has"]["landmarks"]
        points, mask = batch["landmarks"][has], batch["landmark_mask"][has]
        assert points.shape[1:] == (num_landmarks(module.landmark_scheme), 3)
        assert mask.shape == points.shape
        assert not points[~mask].any()
        shown = mask[..., :2].all(dim=-1)
        middle = (points[..., :2] * shown[..., None]).sum(1) / shown.sum(1, keepdim=True)
        assert ((middle > 0.2 * SIZE) & (middle < 0.8 * SIZE)).all()
        assert batch["has"]["face_size"][has].all()
        assert (batch["face_size"][has] > 0.2 * SIZE).all()
        if self.upright and shown.all() and points.shape[1] in (66, 68):
            assert (points[:, 8, 1] > points[:, 30, 1]).all()  # the chin is below the nose: y points down
            assert (points[:, 36, 0] < points[:, 45, 0]).all()  # the subject's right eye is on the image's left
            if "yaw" in batch["has"] and batch["has"]["yaw"].all():
                turned = batch["yaw"][has].abs() > 20
                nose = points[:, 30, 0] - (points[:, 36, 0] + points[:, 45, 0]) / 2
                assert (torch.sign(nose) == -torch.sign(batch["yaw"][has]))[turned].all()  # +yaw: nose to image left

    def test_each_evaluation_sample_comes_once_and_splits_are_disjoint(self, root: Path) -> None:
        names: dict[str, set[str]] = {}
        for split in self.splits:
            module = self.module(root)
            batches = self.batches(module, split)
            ids = [name for batch in batches for name in batch["sample_id"]]
            indices = [int(i) for batch in batches for i in batch["index"]]
            names[split] = set(ids)
            if split != "train":
                assert len(names[split]) == len(ids) == len(module.datasets[split])
                assert indices == list(range(len(ids)))
        for split in names:
            for other in names:
                assert split == other or not names[split] & names[other] or {split, other} == {"test", "predict"}

    def test_the_same_seed_gives_the_same_batches_for_any_number_of_workers(self, root: Path) -> None:
        split = self.splits[0]
        first = self.batches(self.module(root), split)
        for batch, again in zip(first, self.batches(self.module(root, num_workers=2), split), strict=True):
            assert_equal(batch, again)

    def test_a_data_set_can_be_sent_to_a_spawned_process(self, root: Path) -> None:
        module = self.module(root)
        module.setup(STAGES[self.splits[0]])
        dataset = module.datasets[self.splits[0]]
        assert_equal(dataset[(0, 3)], pickle.loads(pickle.dumps(dataset))[(0, 3)])

    def test_a_resumed_epoch_goes_on_with_the_next_batch(self, root: Path) -> None:
        if "train" not in self.splits:
            pytest.skip("nothing to train on")
        whole = self.batches(self.module(root), "train")
        module = self.module(root)
        module.load_state_dict({"epoch": 0, "batches": 1})
        for batch, again in zip(whole[1:], self.batches(module, "train"), strict=True):
            assert_equal(batch, again)

    def test_missing_splits_are_named(self, root: Path) -> None:
        module = self.module(root)
        for split in ("train", "val", "test", "predict"):
            if split not in self.splits:
                module.setup(STAGES[split])
                with pytest.raises(ConfigurationError, match=f"{module.name} has no {split} split"):
                    getattr(module, f"{split}_dataloader")()

    def test_fingerprints_are_of_the_content(self, root: Path) -> None:
        split = self.splits[-1]
        prints = []
        for _ in range(2):
            module = self.module(root)
            module.setup(STAGES[split])
            prints.append(module.datasets[split].fingerprint())
        assert prints[0] == prints[1]
        assert len(prints[0]) >= 8


def assert_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        elif key != "has":
            assert value == second[key], key


class TestAFLW20003D(DataModuleContract):
    splits = ("test", "predict")

    @classmethod
    def write(cls, root: Path) -> None:
        write_aflw2000(root / "AFLW2000", 5)

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return AFLW20003D(root=str(root), **options)

    def test_landmarks_of_a_crop_go_back_to_the_file(self, root: Path) -> None:
        small, large = (self.batches(self.module(root, image_size=size), "test")[0] for size in (48, 96))
        for batch in (small, large):
            batch["landmarks"] = transform_points(batch["crop_to_file"], batch["landmarks"])
        assert torch.allclose(small["landmarks"], large["landmarks"], atol=1e-2)


class TestAFLW20003DWithFaceModel(TestAFLW20003D):
    @classmethod
    def write(cls, root: Path) -> None:
        super().write(root)
        fake_face_model().save(root / "bfm.npz")

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return AFLW20003D(root=str(root), face_model=str(root / "bfm.npz"), **options)


class TestW300LP(DataModuleContract):
    splits = ("train", "val")

    @classmethod
    def write(cls, root: Path) -> None:
        write_300w_lp(root / "300W_LP", photographs=2, copies=2)

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return W300LP(root=str(root), val_fraction=0.5, augmentation=MildAugmentation(), **options)


class TestW3003D(DataModuleContract):
    splits = ("train", "val", "test")

    @classmethod
    def write(cls, root: Path) -> None:
        write_300w_3d(root / "300W-3D", photographs=4)

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return W3003D(root=str(root), val_fraction=0.4, augmentation=PRNetAugmentation(rotation=10.0), **options)


class TestThreeDFAW(DataModuleContract):
    splits = ("train", "val", "test")

    @classmethod
    def write(cls, root: Path) -> None:
        subject = [i // 2 for i in range(20)]
        write_table(root / "3DFAW", 20, "66", subject=subject, view=[i % 2 for i in range(20)])

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return ThreeDFAW(root=str(root), test_size=5, val_fraction=0.3, **options)


class TestThreeDFAWAs68(TestThreeDFAW):
    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return ThreeDFAW(root=str(root), test_size=5, val_fraction=0.3, landmark_scheme="68", **options)


class TestBP4D(DataModuleContract):
    splits = ("test",)

    @classmethod
    def write(cls, root: Path) -> None:
        folder = write_table(root / "BP4D-S", 4, "45", yaw=[1, 2, 3, 4])
        (folder / "mapping.json").write_text(json.dumps(list(range(45))))

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return BP4D(root=str(root), protocol="all", **options)


class TestAFLWLFPA(DataModuleContract):
    splits = ("test",)

    @classmethod
    def write(cls, root: Path) -> None:
        folder = write_table(root / "AFLW-LFPA", 4, "34", depth=False)
        (folder / "mapping.json").write_text(json.dumps(list(range(34))))

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return AFLWLFPA(root=str(root), **options)


class TestFlorence(DataModuleContract):
    splits = ("test",)

    @classmethod
    def write(cls, root: Path) -> None:
        write_table(root / "Florence", 4, "68", subject=[0, 0, 1, 1], view=[0, 1, 0, 1])

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return Florence(root=str(root), **options)


class TestMenpo3D(DataModuleContract):
    splits = ("test",)

    @classmethod
    def write(cls, root: Path) -> None:
        write_table(root / "Menpo3D", 5, "68", sequence=[0, 0, 1, 1, 1], frame=[0, 1, 0, 1, 2])

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return Menpo3D(root=str(root), **options)


class TestTable(DataModuleContract):
    splits = ("train", "val", "test")

    @classmethod
    def write(cls, root: Path) -> None:
        write_table(root / "mine", 12, "68", depth=False)

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return Table(root=str(root / "mine"), augmentation=MildAugmentation(), **options)


class TestImageFolder(DataModuleContract):
    splits = ("predict",)

    @classmethod
    def write(cls, root: Path) -> None:
        generator = np.random.default_rng(0)
        for name in ("a.jpg", "b/c.jpg"):
            write_photograph(root / "photographs" / name, generator, 60)
        Image.new("RGB", (1, 1)).save(root / "photographs" / "one_pixel.png")

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return ImageFolder(root=str(root / "photographs"), **options)


class TestSyntheticFaces(DataModuleContract):
    splits = ("train", "val", "test")
    upright = False

    @classmethod
    def write(cls, root: Path) -> None:
        pass

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        return SyntheticFaces(train_size=6, val_size=3, test_size=3, cache_dir=str(root), **options)


class TestMixed(DataModuleContract):
    splits = ("train", "val", "test")  # the test split is W3003D's

    @classmethod
    def write(cls, root: Path) -> None:
        write_300w_lp(root / "300W_LP", photographs=2, copies=2)
        write_300w_3d(root / "300W-3D", photographs=4)

    def make(self, root: Path, **options: Any) -> FaceDataModule:
        members: list[FaceDataModule] = [
            W300LP(root=str(root), val_fraction=0.5, augmentation=MildAugmentation(), image_size=SIZE),
            W3003D(root=str(root), val_fraction=0.4, image_size=SIZE),
        ]
        return Mixed(members, weights=[0.25, 0.75], epoch_size=12, **options)


@pytest.mark.slow
@pytest.mark.parametrize("contract", [TestW300LP(), TestSyntheticFaces(), TestMixed()], ids=lambda c: type(c).__name__)
def test_spawned_workers_give_the_same_batches(contract: DataModuleContract, tmp_path: Path) -> None:
    contract.write(tmp_path)
    here = contract.batches(contract.module(tmp_path), "train")
    module = contract.module(tmp_path, num_workers=2)
    module.setup("fit")
    loader = module.train_dataloader()
    loader.multiprocessing_context = "spawn"
    for batch, again in zip(here, loader, strict=True):
        assert_equal(batch, again)
