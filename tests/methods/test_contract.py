"""The methods under their contract."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.base import FaceDataModule
from datamodules.synthetic import SyntheticFaces
from lightning_faces.methods import PARM, MeanLandmarks, Pix2Face, PRNet, Richardson2016, Zhao2016
from lightning_faces.methods.base import FaceMethod
from tests.methods.contract import MethodContract
from tests.methods.faces import rendered_faces
from tests.methods.losses import loss_of
from tests.methods.toys import Cascade, DenseFaces, Passes

SGD = functools.partial(torch.optim.SGD, lr=0.01)


class TestZhao2016(MethodContract):
    def make(self, image_size: int = 32) -> FaceMethod:
        return Zhao2016(
            image_size, hidden=16, channels=(4, 4, 8, 8), dropout=0.0, view_angles=(0.0, 0.0, 0.0), optimizer=SGD
        )


class TestZhao2016EndToEndOnATimmNetwork(MethodContract):
    half_tolerance = 0.1

    def make(self, image_size: int = 32) -> FaceMethod:
        return Zhao2016(image_size, encoder="test_resnet", stage="end_to_end", squared=False, optimizer=SGD)


class TestMeanLandmarks(MethodContract):
    falls_to = 0.99

    def make(self, image_size: int = 32) -> FaceMethod:
        return MeanLandmarks()


class WithDenseFaces(MethodContract):
    """A method that needs what only synthetic faces have."""

    @pytest.fixture(autouse=True, scope="class")
    @staticmethod
    def _cached(tmp_path_factory: pytest.TempPathFactory) -> None:
        pytest.importorskip("pytorch3d")
        WithDenseFaces.cache = tmp_path_factory.mktemp("cache")

    cache: Path

    def data(self, **options: Any) -> FaceDataModule:
        sizes = {"train_size": 8, "val_size": 3, "test_size": 13, "batch_size": 4, "num_workers": 0}
        dense = {"image_size": 32, "position_map_size": 32, "cache_dir": str(self.cache)}
        return SyntheticFaces(**{**sizes, **dense, **options})


class TestPRNet(WithDenseFaces):
    tolerance = 1e-4

    def make(self, image_size: int = 32) -> FaceMethod:
        return PRNet(image_size, map_size=32 if image_size == 32 else None, width=2, optimizer=SGD)


@functools.cache
def trained_pix2face() -> dict[str, torch.Tensor]:
    """Weights of a short training: the planes of an untrained network show no face, to which nothing can be fitted."""
    torch.manual_seed(0)
    method = Pix2Face(32, width=4, depth=3, offset_range=40.0)
    batch, _ = rendered_faces(method.face_model, 8, 32)
    optimizer = torch.optim.Adam(method.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        loss_of(method, batch).backward()
        optimizer.step()
    return method.state_dict()


class TestPix2Face(WithDenseFaces):
    # A pixel at the rim of the face is in or out by the last bit, and the fit moves with it.
    tolerance = 0.01
    half_tolerance = 0.2
    falls_to = 0.99

    def make(self, image_size: int = 32) -> FaceMethod:
        method = Pix2Face(image_size, width=4, depth=3, offset_range=40.0, optimizer=SGD)
        method.load_state_dict(trained_pix2face())
        return method


class TestRichardson2016(WithDenseFaces):
    half_tolerance = 0.1
    falls_to = 0.99

    def make(self, image_size: int = 32) -> FaceMethod:
        # Squared millimetres are large numbers, and so are their gradients.
        return Richardson2016(image_size, width=4, optimizer=functools.partial(torch.optim.SGD, lr=1e-4))


class TestPARM(WithDenseFaces):
    def make(self, image_size: int = 32) -> FaceMethod:
        return PARM(radii=(0.3, 0.2), trees=2, tree_depth=2, candidates=10)


class TestCascade(MethodContract):
    def make(self, image_size: int = 32) -> FaceMethod:
        return Cascade()


class TestDenseFaces(WithDenseFaces):
    def make(self, image_size: int = 32) -> FaceMethod:
        return DenseFaces(image_size)


class TestPasses(WithDenseFaces):
    half_tolerance = 0.1

    def make(self, image_size: int = 32) -> FaceMethod:
        return Passes(image_size)
