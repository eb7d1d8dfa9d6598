"""Synthetic faces: the same sample whatever the order, batch, workers or cache; splits, poses and subjects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.synthetic import SyntheticFaces, SyntheticSplit
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import invert_affine, transform_points, transform_pose, weak_perspective


def faces(**options: object) -> SyntheticFaces:
    defaults = {"train_size": 8, "val_size": 4, "test_size": 12, "image_size": 48, "num_workers": 0, "batch_size": 4}
    return SyntheticFaces(**{**defaults, **options})  # type: ignore[arg-type]


def test_seeds_of_splits_and_data_sets_are_disjoint() -> None:
    seeds = [
        set(SyntheticSplit(split, 5000, seed, 1).seeds(range(5000)))
        for split in ("train", "val", "test")
        for seed in (0, 1)
    ]
    assert len(set.union(*seeds)) == 6 * 5000


def test_a_sample_does_not_depend_on_its_batch() -> None:
    data = faces()
    data.setup("fit")
    dataset = data.datasets["train"]
    together = dataset.read_many([5, 1, 7, 3])
    for raw, index in zip(together, (5, 1, 7, 3)):
        alone = dataset.read(index)
        # A few colours may differ by one of 255 steps.
        difference = np.abs(raw.image.astype(int) - alone.image)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-3
        np.testing.assert_array_equal(raw.targets["landmarks"], alone.targets["landmarks"])
    assert len({raw.image.tobytes() for raw in together}) == 4


def test_workers_and_a_cache_give_the_same_batches(tmp_path: Path) -> None:
    plain, workers, cached = faces(), faces(num_workers=2), faces(cache_dir=str(tmp_path / "cache"))
    batches = []
    for data in (plain, workers, cached):
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    for other in batches[1:]:
        assert other["sample_id"] == batches[0]["sample_id"]
        torch.testing.assert_close(other["image"], batches[0]["image"], atol=1.01 / 255, rtol=0)
        torch.testing.assert_close(other["landmarks"], batches[0]["landmarks"], atol=0, rtol=0)
    assert [path.name.split("-")[0] for path in sorted((tmp_path / "cache").iterdir())] == ["train", "val"]
    again = faces(cache_dir=str(tmp_path / "cache"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    again.setup("fit")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}


def test_test_poses_have_equal_thirds_of_yaw() -> None:
    data = faces()
    data.setup("test")
    yaw = torch.tensor([float(data.datasets["test"][i]["yaw"]) for i in range(12)]).abs()
    assert [int(((yaw > low) & (yaw <= high)).sum()) for low, high in ((-1, 30), (30, 60), (60, 90))] == [4, 4, 4]


def test_views_of_a_subject_show_one_moment_from_several_sides() -> None:
    data = faces(views_per_subject=3)
    data.setup("test")
    samples = [data.datasets["test"][i] for i in range(6)]
    assert [s["subject"] for s in samples] == [0, 0, 0, 1, 1, 1]
    assert [s["view"] for s in samples] == [0, 1, 2, 0, 1, 2]
    coefficients = torch.stack([s["coefficients"] for s in samples])
    torch.testing.assert_close(coefficients[0], coefficients[2])
    for part in coefficients.split((data.model.num_identity, data.model.num_expression), dim=1):
        assert float((part[2] - part[3]).abs().max()) > 0.1
    assert float((samples[0]["pose"] - samples[1]["pose"]).abs().max()) > 0.01


def test_landmarks_follow_from_coefficients_and_pose() -> None:
    data = faces(test_size=24, margin=1.6)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    coefficients = batch["coefficients"]
    split = data.model.num_identity
    vertices = data.model.vertices(coefficients[:, :split], coefficients[:, split:])
    projected = weak_perspective(data.model.landmarks(vertices), batch["pose"])
    gap = (projected - batch["landmarks"])[..., :2].norm(dim=-1).mean(dim=1) / batch["face_size"]
    # Some samples have a mild perspective, and faces are stretched a little: the pose is theirs up to that.
    assert float(gap.max()) < 0.08
    assert float(gap.min()) < 0.04
    file = transform_points(batch["crop_to_file"], batch["landmarks"])
    assert float(file[..., :2].min()) > 0
    assert float(file[..., :2].max()) < data.canvas_size
    torch.testing.assert_close(
        transform_pose(invert_affine(batch["crop_to_file"]), transform_pose(batch["crop_to_file"], batch["pose"])),
        batch["pose"],
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize(("option", "value"), [("train_size", 0), ("views_per_subject", 0), ("canvas", 0.5)])
def test_impossible_options_are_named(option: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"{option} is {value}"):
        faces(**{option: value})


def test_the_same_faces_are_the_same_data_set_whatever_their_targets(tmp_path: Path) -> None:
    """A method that wants position maps is ranked beside one that does not; their caches are apart."""
    modules = [faces(cache_dir=str(tmp_path), position_map_size=size) for size in (32, 64)]
    plain = modules[0]._source("test", frozenset({"landmarks"}))
    sources = [module._source("test", frozenset({"landmarks", "position_map"})) for module in modules]
    assert plain.fingerprint() == sources[0].fingerprint() == sources[1].fingerprint()
    folders = {modules[0]._cache_folder(plain), *(m._cache_folder(s) for m, s in zip(modules, sources))}
    assert len(folders) == 3


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    options: dict[str, Any] = {"image_size": 32, "num_workers": 0, "cache_dir": str(tmp_path)}
    SyntheticFaces(4, 2, 2, **options).make_dataset("val", frozenset({"landmarks", "pose"}))
    (folder,) = tmp_path.iterdir()
    image = folder / "image.npy"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"image\.npy is damaged .*: remove its folder to render it again"):
        SyntheticFaces(4, 2, 2, **options).make_dataset("val", frozenset({"landmarks", "pose"}))
    image.unlink()
    with pytest.raises(DataError, match="is not whole: remove it to render it again"):
        SyntheticFaces(4, 2, 2, **options).make_dataset("val", frozenset({"landmarks", "pose"}))
