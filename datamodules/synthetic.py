"""Synthetic faces: rendered on the fly from a morphable model, or once into a cache."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.augment import MildAugmentation
from datamodules.base import FaceDataModule, FaceDataset, start_worker
from datamodules.components.options import check_number
from datamodules.components.sampling import SampleKey
from datamodules.components.transform import Augmentation, RawFace, crop_faces, draw_change
from lightning_faces.batch import SAMPLE_NUMBERS, FaceSpec
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry.camera import box_of_points
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.synthesis import SYNTHESIS_VERSION, FaceSynthesizer, Scene, SynthesisOptions
from lightning_faces.targets import CHEAP_TARGETS, MODEL_TARGETS, TARGETS, target_shapes

SPLITS = ("train", "val", "test")
RENDER_CHUNK = 16
"""Faces rendered together while a cache is filled."""


@dataclass(frozen=True)
class SyntheticSplit:
    """Which faces a split holds: sample ``i`` depends on these values and on i alone.

    Attributes:
        split: "train", "val" or "test"; their seeds are disjoint.
        size: Number of samples.
        seed: Seed of the data set.
        views_per_subject: Samples in a row that show the same subject.
    """

    split: str
    size: int
    seed: int
    views_per_subject: int

    def seeds(self, indices: Sequence[int]) -> list[int]:
        """Seeds of samples, disjoint between splits and data set seeds."""
        return [((self.seed * len(SPLITS) + SPLITS.index(self.split)) << 40) + index for index in indices]

    def subjects(self, indices: Sequence[int]) -> list[int]:
        """Seeds of the subjects that samples show."""
        return self.seeds([index // self.views_per_subject for index in indices])


class SyntheticFaceDataset(FaceDataset):
    """Rendered faces on a canvas that the crop is cut from, as a photograph's crop is cut from its file.

    Args:
        split: Which faces.
        synthesizer: Renders them.
        targets: Target keys to give.
        content: Hash of all that the samples depend on.
    """

    name = "SyntheticFaces"

    def __init__(
        self, split: SyntheticSplit, synthesizer: FaceSynthesizer, targets: frozenset[str], content: str
    ) -> None:
        self.split, self.synthesizer, self.targets, self.content = split, synthesizer, targets, content

    def __len__(self) -> int:
        return self.split.size

    def fingerprint(self) -> str:
        """Hash of the face model, the options, the seed and the size."""
        return self.content

    def read(self, index: int) -> RawFace:
        """Render one face."""
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int]) -> list[RawFace]:
        """Render faces; their scenes are drawn together."""
        with torch.inference_mode():
            pictures = self.synthesizer.render_each(self.draw(indices), self._extra())
            return [
                self._face(index, {key: value[0] for key, value in self._arrays(picture).items()})
                for index, picture in zip(indices, pictures, strict=True)
            ]

    def render(self, indices: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Uint8 ``image`` ``[N, H, W, 3]`` and the targets, batched, in the frame of the canvas."""
        with torch.inference_mode():
            return self._arrays(self.synthesizer.render(self.draw(indices), self._extra()))

    def _extra(self) -> list[str]:
        return sorted(self.targets - CHEAP_TARGETS)

    def _arrays(self, rendered: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
        arrays = {key: rendered[key].numpy() for key in self.targets if key in rendered}
        pixels = rendered["image"].clamp(0, 1).mul(255).round().to(torch.uint8)
        return {**arrays, "image": pixels.permute(0, 2, 3, 1).numpy()}

    def draw(self, indices: Sequence[int]) -> Scene:
        """The scenes of samples."""
        return self.synthesizer.sample(
            self.split.seeds(indices), yaw_thirds=self.split.split == "test", subject=self.split.subjects(indices)
        )

    def sample_id(self, index: int) -> str:
        """Name of a sample."""
        return f"{self.split.split}-{self.split.seed}-{index:06d}"

    def numbers(self, index: int) -> dict[str, int]:
        """Subject and view of a sample."""
        return dict(zip(("subject", "view"), divmod(index, self.split.views_per_subject)))

    def _face(self, index: int, arrays: dict[str, NDArray[Any]]) -> RawFace:
        targets = {key: value for key, value in arrays.items() if key != "image"}
        landmarks = targets["landmarks"]
        # Filled in by the crop from the landmarks it moves.
        targets["face_size"] = np.zeros((), dtype=np.float32)
        targets["landmark_mask"] = np.ones(landmarks.shape, dtype=bool)
        targets["yaw"] = np.degrees(targets["pose"][2])
        return RawFace(
            image=arrays["image"],
            sample_id=self.sample_id(index),
            box=box_of_points(torch.from_numpy(landmarks)).double().numpy(),
            targets=targets,
            numbers=self.numbers(index),
        )


class CachedFaceDataset(SyntheticFaceDataset):
    """The same samples from a folder that :func:`fill_cache` wrote, memory-mapped."""

    def __init__(self, source: SyntheticFaceDataset, folder: Path) -> None:
        super().__init__(source.split, source.synthesizer, source.targets, source.content)
        self.arrays: dict[str, NDArray[Any]] = {}
        try:
            for path in sorted(folder.glob("*.npy")):
                self.arrays[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, TypeError, EOFError) as error:
            raise DataError(f"The cache {path} is damaged ({error}): remove its folder to render it again.") from error
        lengths = {len(array) if array.ndim else 0 for array in self.arrays.values()}
        if not {"image", "landmarks", "pose"} <= self.arrays.keys() or lengths != {len(self)}:
            raise DataError(f"The cache {folder} is not whole: remove it to render it again.")

    def read_many(self, indices: Sequence[int]) -> list[RawFace]:
        """Read faces from the cache."""
        faces = []
        for index in indices:
            values = {
                key: np.array(value[index], dtype=np.float32 if value.dtype == np.float16 else value.dtype)
                for key, value in self.arrays.items()
            }
            faces.append(self._face(index, values))
        return faces


class SceneDataset(Dataset[dict[str, Any]]):
    """What a device needs to render a batch of samples and to crop them: scenes and changes of the crop.

    Args:
        faces: The data set that would render and crop them in a loader process; all else is its.
    """

    def __init__(self, faces: SyntheticFaceDataset) -> None:
        self.faces = faces

    def __len__(self) -> int:
        return len(self.faces)

    def __getitems__(self, keys: Sequence[SampleKey]) -> dict[str, Any]:
        """A batch before rendering: ``scene`` ``[B, M]``, ``change`` ``[B, 2, 3]``, ``mirrored`` and what names it."""
        faces, indices = self.faces, [index for index, _ in keys]
        changes, mirrored = [], []
        for index, draw in keys:
            rng = np.random.default_rng((faces.seed, draw, index))
            change, reflect = draw_change(faces.augmentation, faces.image_size, rng)
            changes.append(np.eye(2, 3) if change is None else change)
            mirrored.append(reflect)
        numbers = [{**dict.fromkeys(SAMPLE_NUMBERS, -1), **faces.numbers(index)} for index in indices]
        return {
            "scene": faces.draw(indices).pack(),
            "change": torch.from_numpy(np.stack(changes)),
            "mirrored": torch.tensor(mirrored),
            "index": torch.tensor(indices),
            "sample_id": [faces.sample_id(index) for index in indices],
            **{key: torch.tensor([row[key] for row in numbers]) for key in SAMPLE_NUMBERS},
        }


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


class _Chunks(Dataset[dict[str, NDArray[Any]]]):
    def __init__(self, dataset: SyntheticFaceDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return -(-len(self.dataset) // RENDER_CHUNK)

    def __getitem__(self, chunk: int) -> dict[str, NDArray[Any]]:
        start = chunk * RENDER_CHUNK
        return self.dataset.render(range(start, min(start + RENDER_CHUNK, len(self.dataset))))


def fill_cache(dataset: SyntheticFaceDataset, folder: Path, num_workers: int) -> None:
    """Render a whole data set into a folder of .npy files, which appears only when it is complete.

    Args:
        dataset: What to render.
        folder: Where; nothing is done where it exists.
        num_workers: Processes that render.
    """
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        arrays: dict[str, Any] = {}
        loader = DataLoader(_Chunks(dataset), batch_size=None, num_workers=num_workers, worker_init_fn=start_worker)
        start = 0
        for chunk in track(loader, description=f"rendering {len(dataset)} {dataset.split.split} faces"):
            for key, value in chunk.items():
                value = np.asarray(value)
                if key not in arrays:
                    stored = TARGETS[key].stored if key in TARGETS else None
                    dtype = np.dtype(np.float16) if stored == torch.float16 else value.dtype
                    arrays[key] = np.lib.format.open_memmap(
                        partial / f"{key}.npy", mode="w+", dtype=dtype, shape=(len(dataset), *value.shape[1:])
                    )
                arrays[key][start : start + len(value)] = value
            start += len(chunk["image"])
        for array in arrays.values():
            array.flush()
        try:
            partial.rename(folder)
        except OSError as error:
            if not folder.exists():  # another process was first with the same content
                raise DataError(f"Cannot write the cache {folder}: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class SyntheticFaces(FaceDataModule):
    """Faces drawn and rendered from a morphable model: endless, exact targets, no data set and no licence needed.

    Sample i is the same for any number of workers and processes and any order. Training, validation and test faces
    have disjoint seeds; test poses have equal thirds of ``|yaw|`` in 0-30, 30-60 and 60-90 degrees.

    With ``render_on_device``, loader processes only draw scenes, and training batches are rendered, cropped and
    augmented as a whole on the device that they are sent to. Validation and test faces are rendered by the loader in
    any case, so that scores do not depend on it; so are all faces inside ``Mixed``.

    Args:
        train_size: Faces of an epoch.
        val_size: Validation faces.
        test_size: Test faces.
        views_per_subject: Samples in a row that show one subject from different views.
        face_model: Name or path of a morphable model.
        synthesis: How faces look and are posed.
        canvas: Side of the rendered canvas over ``image_size``: room for the crop to move in.
        position_map_size: Side of the position map, where a method trains on it.
        render_on_device: Render training batches where the method trains; for GPUs.
        cache_dir: Folder where rendered samples are kept as 8-bit images and memory-mapped; None renders on the fly.
        image_size: Side of the square crop in pixels.
        batch_size: Samples per step and rank.
        num_workers: Loader processes per rank.
        margin: Side of the crop over the longer side of the face box.
        augmentation: Random changes of training samples.
        seed: Seed of faces, order and augmentation.
    """

    available_targets = frozenset(TARGETS)

    def __init__(
        self,
        train_size: int = 20_000,
        val_size: int = 512,
        test_size: int = 900,
        views_per_subject: int = 1,
        face_model: str = "embedded",
        synthesis: SynthesisOptions = SynthesisOptions(),  # noqa: B008 - frozen, so one default can be shared
        canvas: float = 1.5,
        position_map_size: int = 64,
        render_on_device: bool = False,
        cache_dir: str | None = None,
        image_size: int = 96,
        batch_size: int = 32,
        num_workers: int = 2,
        margin: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(image_size, batch_size, num_workers, margin, augmentation, seed)
        sizes = {"train_size": train_size, "val_size": val_size, "test_size": test_size}
        numbers = {**sizes, "views_per_subject": views_per_subject, "position_map_size": position_map_size}
        for name, value in numbers.items():
            check_number(f"SyntheticFaces option {name}", value, 1)
        check_number("SyntheticFaces option canvas", canvas, 1, 16)
        if render_on_device and cache_dir is not None:
            raise ConfigurationError(
                f"SyntheticFaces option render_on_device draws every face anew, but cache_dir is {cache_dir!r}: set "
                "only one of them."
            )
        if render_on_device and not (augmentation is None or isinstance(augmentation, MildAugmentation)):
            raise ConfigurationError(
                f"SyntheticFaces option render_on_device moves crops only, but {type(augmentation).__name__} also "
                "changes colours or covers faces: take MildAugmentation, or set render_on_device to false."
            )
        self.render_on_device = render_on_device
        self._renderers: dict[torch.device, FaceSynthesizer] = {}
        self.sizes = {name.removesuffix("_size"): value for name, value in sizes.items()}
        self.views_per_subject = views_per_subject
        self.synthesis = synthesis
        self.canvas_size = round(canvas * image_size)
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.model = MorphableModel.load(face_model)
        self.position_map_size = position_map_size

    def data_spec(self) -> FaceSpec:
        """Sizes of the face model's targets."""
        return FaceSpec(
            face_model=self.model.name,
            face_model_hash=self.model.hash,
            num_identity=self.model.num_identity,
            num_expression=self.model.num_expression,
            num_vertices=self.model.num_vertices,
            position_map_size=self.position_map_size,
        )

    def _source(self, split: str, targets: frozenset[str]) -> SyntheticFaceDataset:
        faces = SyntheticSplit(split, self.sizes[split], self.seed, self.views_per_subject)
        content = {
            "version": SYNTHESIS_VERSION,
            "model": self.model.hash,
            "synthesis": asdict(self.synthesis),
            "canvas": self.canvas_size,
            "split": asdict(faces),
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
        synthesizer = FaceSynthesizer(
            self.model, self.canvas_size, self.synthesis, position_map_size=self.position_map_size
        )
        return SyntheticFaceDataset(faces, synthesizer, targets, digest)

    def _cache_folder(self, dataset: SyntheticFaceDataset) -> Path:
        assert self.cache_dir is not None
        # Not part of the content: methods are compared on the same faces, whatever each wants to know of them.
        kept = sorted(dataset.targets - CHEAP_TARGETS)
        if "position_map" in kept:
            kept.append(str(self.position_map_size))
        dense = hashlib.sha256(",".join(kept).encode()).hexdigest()[:8]
        return self.cache_dir / f"{dataset.split.split}-{len(dataset)}-{dataset.content}-{dense}"

    def make_dataset(self, split: str, targets: frozenset[str]) -> FaceDataset | None:
        """Train, val or test faces; there is nothing to predict."""
        if split not in SPLITS:
            return None
        source = self._source(split, targets)
        if self.cache_dir is None:
            return source
        folder = self._cache_folder(source)
        if self.trainer is None or self.trainer.local_rank == 0:
            fill_cache(source, folder, max(1, self.num_workers))
        if self.trainer is not None:
            self.trainer.strategy.barrier("synthetic faces rendered")
        return CachedFaceDataset(source, folder)

    def loader_parts(self, split: str) -> tuple[Any, Callable[[Any], Any]]:
        """Scenes for training batches that the device renders."""
        dataset = self._dataset(split)
        if self.render_on_device and split == "train" and isinstance(dataset, SyntheticFaceDataset):
            return SceneDataset(dataset), _as_it_is
        return super().loader_parts(split)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Complete a batch of scenes on its device; a batch that the loader rendered is left as it is."""
        if "scene" not in batch:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        dataset = self._dataset("train")
        assert isinstance(dataset, SyntheticFaceDataset)
        mirrored = batch["mirrored"]
        with torch.no_grad():
            renderer = self._renderer(dataset, mirrored.device)
            rendered = renderer.render(renderer.unpack(batch["scene"]), sorted(dataset.targets - CHEAP_TARGETS))
            faces = crop_faces(rendered, batch["change"], mirrored, self.image_size, self.margin)
        keys = target_shapes(dataset.targets, self.spec)
        has = {key: ~mirrored if key in MODEL_TARGETS else torch.ones_like(mirrored) for key in keys}
        named = {key: batch[key] for key in ("index", "sample_id", *SAMPLE_NUMBERS)}
        values = {key: faces[key] for key in ("image", "box", "crop_to_file", *keys)}
        return super().on_after_batch_transfer({**named, **values, "has": has}, dataloader_idx)

    def _renderer(self, dataset: SyntheticFaceDataset, device: torch.device) -> FaceSynthesizer:
        """The data set's synthesizer, or a copy of it on another device than the CPU."""
        if device.type == "cpu":
            return dataset.synthesizer
        if device not in self._renderers:
            self._renderers[device] = copy.deepcopy(dataset.synthesizer).to(device)
        return self._renderers[device]
