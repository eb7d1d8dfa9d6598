"""Photographs and videos without labels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.components.sampling import EvaluationSampler
from datamodules.components.video import count_frames, video_reader
from datamodules.image_folder import ImageFolder, ImageFolderDataset
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import transform_points


def write_video(path: Path, frames: int, size: tuple[int, int] = (96, 64)) -> None:
    """Frame k is of brightness 10 k."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 25, size)
    for number in range(frames):
        writer.write(np.full((size[1], size[0], 3), 10 * number, dtype=np.uint8))
    writer.release()


def make(root: Path, **options: object) -> ImageFolderDataset:
    module = ImageFolder(root=str(root), **options)  # type: ignore[arg-type]
    dataset = module.make_dataset("predict", frozenset())
    assert isinstance(dataset, ImageFolderDataset)
    dataset.image_size, dataset.margin = module.image_size, module.margin
    return dataset


def test_photographs_are_taken_whole_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (60, 30), (200, 0, 0)).save(tmp_path / "sub" / "turnéd.jpg", exif=exif)
    Image.new("L", (30, 60)).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = make(tmp_path, image_size=64)
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["b.png", "sub/turnéd.jpg"]
    sample = dataset[1]
    corners = transform_points(sample["crop_to_file"], torch.tensor([[-0.5, -0.5], [63.5, 63.5]]))
    # Upright it is 30 x 60; the square around it is 60 wide.
    assert corners.tolist() == [pytest.approx([-15.5, -0.5], abs=1e-3), pytest.approx([44.5, 59.5], abs=1e-3)]
    assert sample["image"][0, 32, 32] > 0.7
    assert sample["image"][0, 32, 8] == 0  # beside the picture


def test_boxes_give_one_sample_each(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (100, 100)).save(tmp_path / name)
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("file,x0,y0,x1,y1\nb.png,10,20,50,60\nb.png,5,5,25,25\nc.png,0,0,9,9\n")
    dataset = make(tmp_path, boxes=str(boxes), image_size=52)
    assert [dataset.sample_id(i) for i in range(len(dataset))] == ["b.png", "b.png@1", "c.png"]
    assert dataset[0]["box"].tolist() == pytest.approx([5.5, 5.5, 45.5, 45.5], abs=1e-3)
    for text, message in (
        ("file,x0,y0,x1,y1\nb.png,10,20,5,60\n", "line 2 has the box"),
        ("file,x0,y0,x1\nb.png,10,20,5\n", "columns file, x0, y0, x1, y1"),
        ("file,x0,y0,x1,y1\nabsent.png,1,2,5,60\n", "absent.png, which is not in"),
    ):
        boxes.write_text(text)
        with pytest.raises(DataError, match=message):
            make(tmp_path, boxes=str(boxes))


def test_video_frames_in_any_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 12)
    write_video(tmp_path / "b.mp4", 5)
    dataset = make(tmp_path)
    assert len(dataset) == 17
    assert count_frames(tmp_path / "a.mp4") == 12
    for index in (3, 4, 5, 0, 11, 13, 7):
        raw = dataset.read(index)
        frame = index if index < 12 else index - 12
        assert raw.numbers == {"sequence": int(index >= 12), "frame": frame}
        assert raw.image.shape == (64, 96, 3)
        assert abs(float(raw.image.mean()) - 10 * frame) < 5  # the codec loses some
    with pytest.raises(DataError, match="no frame 40"):
        video_reader(tmp_path / "a.mp4").frame(40)


def test_sequences_stay_on_one_rank(tmp_path: Path) -> None:
    for name, frames in (("a", 3), ("b", 7), ("c", 4), ("d", 2)):
        write_video(tmp_path / f"{name}.mp4", frames)
    dataset = make(tmp_path)
    shards = [[i for i, _ in EvaluationSampler(dataset, 2, rank)] for rank in range(2)]
    assert sorted(shards[0] + shards[1]) == list(range(16))
    owners = [{dataset.faces[i].sequence for i in shard} for shard in shards]
    assert not owners[0] & owners[1]
    assert abs(len(shards[0]) - len(shards[1])) <= 2
    with pytest.raises(ConfigurationError, match="4 sequences"):
        EvaluationSampler(dataset, 5, 0)


def test_bad_files_are_named_and_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (20, 20)).save(tmp_path / "good.png")
    dataset = make(tmp_path)
    for index in (0, 1):
        with pytest.raises(DataError, match=r"bad\.(mp4|png)"):
            dataset[index]
    skipping = make(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match="skips a sample"):
        samples = skipping.__getitems__([0, 1, 2])
    assert [sample["sample_id"] for sample in samples] == ["good.png"]
    assert skipping.skipped == 2
    with pytest.raises(DataError, match="no photographs or videos"):
        make(tmp_path / "empty") if (tmp_path / "empty").mkdir() is None else None


def test_links_that_go_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    Image.new("RGB", (20, 20)).save(tmp_path / "a" / "x.png")
    assert len(make(tmp_path)) == 1


def test_pictures_that_are_left_out_are_counted_and_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JFIF", "sub/c.JPEG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / name, format="JPEG")
    for name in ("d.heic", "sub/e.avif", "sub/f.HEIC", "g.wmv", "h", "notes.txt", ".hidden.heic", "README"):
        (tmp_path / name).write_bytes(b"x")
    module = ImageFolder(str(tmp_path), image_size=32, num_workers=0)
    with pytest.warns(UserWarning, match="ImageFolder leaves out 5 file") as said:
        module.setup("predict")
    text = str(said[0].message)
    assert "1 .avif (sub/e.avif), 2 .heic (d.heic), 1 .wmv (g.wmv), 1 without an ending (h)" in text
    (batch,) = list(module.predict_dataloader())
    assert batch["sample_id"] == ["a.jpg", "b.JFIF", "sub/c.JPEG"]


def test_pictures_of_any_size_up_to_the_limit(tmp_path: Path) -> None:
    Image.new("L", (40_000, 2_000), 255).save(tmp_path / "long.png", compress_level=1)
    module = ImageFolder(str(tmp_path), image_size=32, num_workers=0)
    module.setup("predict")
    (batch,) = list(module.predict_dataloader())
    assert float(batch["image"][0, :, 15:17].min()) == 1.0
    assert float(batch["image"][0, :, 0].max()) == 0.0
    module = ImageFolder(str(tmp_path), max_megapixels=7, image_size=32, num_workers=0)
    module.setup("predict")
    with pytest.raises(
        DataError, match=r"long\.png is too large: .* 40000 x 2000 pixels, .* 7 million .*max_megapixels"
    ):
        list(module.predict_dataloader())


def test_a_box_outside_its_picture_is_refused_or_left_out_loudly(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50), (255, 255, 255)).save(tmp_path / "a.png")
    (tmp_path / "boxes.csv").write_text("file,x0,y0,x1,y1\na.png,10,10,40,40\na.png,60,10,90,40\n")
    options = {"boxes": str(tmp_path / "boxes.csv"), "image_size": 32, "num_workers": 0, "batch_size": 1}
    module = ImageFolder(str(tmp_path), **options)  # type: ignore[arg-type]
    module.setup("predict")
    with pytest.raises(DataError, match=r"Sample a\.png@1 of .*boxes\.csv has .* outside its picture of 50 x 50"):
        list(module.predict_dataloader())
    module = ImageFolder(str(tmp_path), on_error="skip", **{**options, "batch_size": 2})  # type: ignore[arg-type]
    module.setup("predict")
    with pytest.warns(UserWarning, match="ImageFolder skips a sample: .* outside its picture"):
        (batch,) = list(module.predict_dataloader())
    assert batch["sample_id"] == ["a.png"]
    assert module.datasets["predict"].skipped == 1  # type: ignore[attr-defined]
