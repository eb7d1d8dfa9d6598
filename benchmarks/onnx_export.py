"""An exported network beside the one in torch: how far its landmarks are off, and how fast it is on one core.

    python benchmarks/onnx_export.py CHECKPOINT

Errors are against true landmarks of held-out synthetic faces (NME of the 68 points in 2D) and against torch. Torch and
ONNX Runtime are timed in turns in one run, in CPU time of one thread, so that ratios do not depend on what else runs.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from timing import median_seconds

from datamodules import SyntheticFaces
from datamodules.components.transform import crop_face
from lightning_faces.methods.checkpoint import load_method
from lightning_faces.predict.export import ExportedMethod, Precision, export_onnx, run, session_of
from lightning_faces.predict.weights import CropRule
from lightning_faces.targets import CHEAP_TARGETS

FACES = 256
REPEATS = 9
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def held_out(image_size: int) -> tuple[Any, Any, Any]:
    """Crops uint8 ``[N, S, S, 3]``, boxes ``[N, 4]`` and landmarks ``[N, 68, 3]`` of test faces, image frame."""
    data = SyntheticFaces(1, 1, FACES, image_size=image_size, margin=CropRule().margin, num_workers=0)
    source = data.make_dataset("test", CHEAP_TARGETS)
    assert source is not None
    samples = [
        crop_face(raw, image_size, CropRule().margin, None, np.random.default_rng(0))
        for start in range(0, FACES, 8)
        for raw in source.read_many(range(start, start + 8))
    ]
    images, boxes, landmarks = (np.stack([s[key].numpy() for s in samples]) for key in ("image", "box", "landmarks"))
    return np.round(images.transpose(0, 2, 3, 1) * 255).astype(np.uint8), boxes, landmarks


def main(checkpoint: str) -> None:
    torch.set_num_threads(1)
    method = load_method(checkpoint)
    exported = ExportedMethod(method)
    images, boxes, truth = held_out(exported.image_size)
    size = np.sqrt(np.prod(np.ptp(truth[..., :2], axis=1), axis=1))
    many = torch.from_numpy(images), torch.from_numpy(boxes)

    def nme(landmarks: Any, other: Any) -> float:
        return 100 * float((np.linalg.norm((landmarks - other)[..., :2], axis=-1).mean(axis=1) / size).mean())

    with torch.inference_mode():
        own = exported(*many)["landmarks"].numpy()
        print(f"{type(method).__name__}, {exported.image_size} px, {FACES} held-out synthetic faces, one thread")
        print("           MB   NME to truth  to torch   faces/s alone  in 64s   times torch alone  in 64s")
        with tempfile.TemporaryDirectory() as folder:
            for precision in PRECISIONS:
                path = export_onnx(method, Path(folder) / "network.onnx", precision=precision)
                session = session_of(path.read_bytes(), threads=1)
                found = run(session, images, boxes)["landmarks"]
                times = {}
                for name, count in (("alone", 1), ("in 64s", 64)):
                    few = images[:count], boxes[:count]
                    theirs = median_seconds(partial(run, session, *few), REPEATS)
                    ours = median_seconds(partial(exported, *map(torch.from_numpy, few)), REPEATS)
                    times[name] = (count / theirs, ours / theirs)
                if precision == "fp32":
                    print(f"torch            {nme(own, truth):8.3f} %")
                (alone, ratio), (together, ratios) = times["alone"], times["in 64s"]
                print(
                    f"ONNX {precision} {path.stat().st_size / 1e6:6.1f} {nme(found, truth):8.3f} % "
                    f"{nme(found, own):10.4f} % {alone:12.0f} {together:10.0f} {ratio:14.2f} {ratios:11.2f}"
                )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the path of a checkpoint")
    main(sys.argv[1])
