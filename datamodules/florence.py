"""Florence: renderings of 53 scanned subjects, for reconstruction (PRNet, section 4), or other scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.base import FaceDataset
from datamodules.components.annotations import Annotations
from datamodules.components.files import OnError, any_case
from datamodules.components.scans import registered_scan
from datamodules.components.tables import TableFaceDataModule, TableFaceDataset
from datamodules.components.transform import RawFace
from lightning_faces.batch import FaceSpec
from lightning_faces.errors import DataError
from lightning_faces.geometry import weak_perspective
from lightning_faces.geometry.camera import face_size
from lightning_faces.morphable import MorphableModel


class ScanFaceDataset(TableFaceDataset):
    """Pictures of scanned faces, with the face model registered to the scans as true vertices.

    Where the table has no landmarks, they are those of the registered model.

    Attributes:
        model: The face model; None gives no vertices.
        cache_dir: Folder of the registrations.
    """

    model: MorphableModel | None = None
    cache_dir: Path | None = None

    def files(self, index: int) -> tuple[Path, ...]:
        """Picture, table and scan."""
        scan = self.table.scan
        name = "" if scan is None else scan[self.rows[index]]
        return super().files(index) + ((any_case(self.folder / name),) if name else ())

    def read(self, index: int) -> RawFace:
        """One picture; the scan's registration is placed in it by the row's pose."""
        raw = super().read(index)
        files = self.files(index)
        if self.model is None or "vertices" not in self.targets or len(files) < 3 or "pose" not in raw.targets:
            return raw
        if not files[2].resolve().is_relative_to(self.folder):
            raise DataError(f"{self.table.path} names {files[2]}, which is outside {self.folder}: put the file there.")
        vertices, _ = registered_scan(self.model, files[2], self.cache_dir)
        pose = torch.from_numpy(raw.targets["pose"]).double()
        placed: NDArray[Any] = weak_perspective(torch.from_numpy(vertices).double(), pose).float().numpy()
        raw.targets["vertices"] = placed
        if "landmarks" not in raw.targets and "bfm" in self.model.landmark_embeddings:
            points = self.model.landmarks(torch.from_numpy(placed)[None], "bfm")[0]
            raw.targets["landmarks"] = points.numpy()
            raw.targets["landmark_mask"] = np.ones(points.shape, dtype=bool)
            raw.targets["face_size"] = face_size(points).numpy()
        return raw


class Florence(TableFaceDataModule):
    """Pictures of scanned faces in this platform's import layout (``datamodules/table.py``), a test set.

    The Florence 2D/3D data has scans of 53 subjects, and the benchmark renders each in 15 poses: by PRNet's text pitch
    -15, 20 and 25 degrees, by the author of the renderings pitch -15, -20 and -25, with yaw -80, -40, 0, 40 and 80. The
    table has a row per rendering: file, subject, view, yaw, the pose that places the scan (millimetres, x to the image
    right of a frontal face, y up, z to the viewer) in the picture, scan, and a box or landmarks. Each scan has a table
    of landmarks beside it (``components/scans.py``). FRGC v2 or any other scans with pictures come in the same way.

    Args:
        root: The folder, or a parent of ``Florence``; None takes the environment's ``LIGHTNING_FACES_DATA``.
        face_model: Name or path of the face model that is registered to the scans, which gives ``vertices``; None gives
            none.
        cache_dir: Folder where registrations are kept; None registers each time (seconds to minutes a scan).
        on_error: What to do at a bad file: "raise", or "skip" the sample with a warning and count it.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the box.
    """

    folders = ("Florence", "florence")
    source = (
        "Ask the Media Integration and Communication Center (Florence) for the 2D/3D face data, render it, then bring "
        "it into the import layout."
    )
    scheme = "68"
    dataset_class = ScanFaceDataset
    landmarks_needed = False

    def __init__(
        self,
        root: str | None = None,
        face_model: str | None = None,
        cache_dir: str | None = None,
        on_error: OnError = "raise",
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
    ) -> None:
        super().__init__(root, 0.0, on_error, image_size, batch_size, num_workers, margin)
        self.model = None if face_model is None else MorphableModel.load(face_model)
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if self.model is not None:
            self.available_targets = self.available_targets | {"vertices"}

    def data_spec(self) -> FaceSpec:
        """The face model that the vertices are those of."""
        if self.model is None:
            return FaceSpec()
        return FaceSpec(
            face_model=self.model.name, face_model_hash=self.model.hash, num_vertices=self.model.num_vertices
        )

    def rows(self, split: str, table: Annotations) -> NDArray[np.int64]:
        """All rows are for testing."""
        return np.arange(len(table.file)) if split == "test" else np.zeros(0, dtype=np.int64)

    def make_dataset(self, split: str, targets: frozenset[str]) -> FaceDataset | None:
        """All pictures."""
        dataset = super().make_dataset(split, targets)
        if isinstance(dataset, ScanFaceDataset):
            dataset.model, dataset.cache_dir = self.model, self.cache_dir
        return dataset
