"""Speed of the rasteriser and of complete training samples, in CPU time of one thread: medians, ratios of one run.

With a GPU, also of whole batches on it, in wall time.

python benchmarks/rendering.py [--quick]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import cv2
import torch
from pytorch3d.renderer import MeshRasterizer, OrthographicCameras, RasterizationSettings
from pytorch3d.structures import Meshes
from timing import median_seconds
from torch import Tensor

from lightning_faces.geometry import weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering import FaceSynthesizer
from lightning_faces.rendering.rasterizer import FaceRasterizer
from lightning_faces.rendering.renderer import rasterize_image

SIZE = 200
BATCH = 32
"""Faces drawn together: the data module's default."""
DEVICE_BATCH = 64
TARGETS = ("pncc", "offsets", "face_mask", "normals", "position_map")
CHEAP = 136


def split_triangles(faces: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Four triangles for each (the k-th at 4 f + k, the middle one last) and the edges whose midpoints are new."""
    pairs = torch.stack((faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]), dim=1).sort(dim=-1)[0]
    edges, inverse = torch.unique(pairs.reshape(-1, 2), dim=0, return_inverse=True)
    ab, bc, ca = (inverse.reshape(-1, 3) + count).unbind(1)
    a, b, c = faces.unbind(1)
    rows = ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1).reshape(-1, 3), edges


def subdivide(model: MorphableModel) -> MorphableModel:
    """The same surface with four times the triangles."""
    faces, edges = split_triangles(model.faces, model.num_vertices)

    def refine(values: Tensor) -> Tensor:
        return torch.cat((values, values[..., edges, :].mean(-2)), dim=-2)

    uv_faces, uv_edges = split_triangles(model.uv_faces, len(model.uv))
    embeddings = {}
    for name, (triangle, weights) in model.landmark_embeddings.items():
        largest, corner = weights.max(1)
        child = torch.where(largest >= 0.5, corner, 3)
        own = torch.stack([
            2 * w - (torch.arange(3) == k).float() if k < 3 else 1 - 2 * w[[2, 0, 1]]
            for w, k in zip(weights, child.tolist())
        ])  # fmt: skip
        embeddings[name] = (4 * triangle + child, own)
    return MorphableModel(
        name=f"{model.name} x4",
        mean=refine(model.mean),
        faces=faces,
        identity_basis=refine(model.identity_basis),
        identity_std=model.identity_std,
        expression_basis=refine(model.expression_basis),
        expression_std=model.expression_std,
        expression_kind=model.expression_kind,
        expression_names=model.expression_names,
        uv=torch.cat((model.uv, model.uv[uv_edges].mean(1))),
        uv_faces=uv_faces,
        uv_face_ids=(4 * model.uv_face_ids[:, None] + torch.arange(4)).reshape(-1),
        landmark_embeddings=embeddings,
        region_masks={key: torch.cat((mask, mask[edges].all(1))) for key, mask in model.region_masks.items()},
    )


def benchmark_rasterizer(model: MorphableModel, repeats: int, slow_repeats: int) -> None:
    pose = torch.tensor([[1.0, 0.1, -0.5, 0.05, 0.0, 0.0]])
    points = weak_perspective(model.mean[None], pose)[0]
    points = torch.stack((-points[:, 0], -points[:, 1], -points[:, 2]), dim=1) * (0.9 / 160.0)
    points = points + torch.tensor([0.0, 0.0, 3.0])
    settings = RasterizationSettings(image_size=SIZE, faces_per_pixel=1)
    results = {}
    for kind, count in ((MeshRasterizer, slow_repeats), (FaceRasterizer, repeats)):
        rasterizer = kind(OrthographicCameras(), settings)
        meshes = Meshes([points], [model.faces])
        results[kind] = rasterizer(meshes), median_seconds(lambda r=rasterizer, m=meshes: r(m), count)
    (theirs, slow), (ours, fast) = results[MeshRasterizer], results[FaceRasterizer]
    same = torch.equal(theirs.pix_to_face, ours.pix_to_face) and torch.equal(theirs.bary_coords, ours.bary_coords)
    covered = int((ours.pix_to_face >= 0).sum())
    print(
        f"rasteriser, {len(model.faces):6d} faces, {SIZE}x{SIZE}, {covered} pixels covered: PyTorch3D "
        f"{slow * 1e3:8.1f} ms, FaceRasterizer {fast * 1e3:6.2f} ms, {slow / fast:5.0f}x, "
        f"{'identical' if same else 'DIFFERENT'} face ids and barycentrics"
    )


def benchmark_samples(model: MorphableModel, repeats: int) -> float:
    """Seconds per complete sample at 200x200."""
    seconds = 0.0
    for size, targets, label in (
        (CHEAP, (), "image and landmarks"),
        (SIZE, (), "image and landmarks"),
        (SIZE, TARGETS, "image, landmarks, PNCC, offsets, mask, normals, position map"),
    ):
        synthesizer = FaceSynthesizer(model, size, position_map_size=64)

        def run(synthesizer: FaceSynthesizer = synthesizer, targets: tuple[str, ...] = targets) -> None:
            with torch.inference_mode():
                for _ in synthesizer.render_each(synthesizer.sample(range(BATCH)), targets):
                    pass

        seconds = median_seconds(run, repeats) / BATCH
        print(
            f"samples, {model.num_vertices:6d} vertices, {size}x{size}, {label}: {seconds * 1e3:6.2f} ms, "
            f"{1 / seconds:6.1f}/s on one thread"
        )
    return seconds


def benchmark_device(model: MorphableModel, device: str, repeats: int) -> None:
    """Whole batches on a GPU, by wall time, as ``SyntheticFaces(render_on_device=True)`` renders them."""
    synthesizer = FaceSynthesizer(model, CHEAP, position_map_size=64)
    packed = synthesizer.sample(range(DEVICE_BATCH)).pack()
    renderer = synthesizer.to(device)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.no_grad():
            rendered = renderer.render(renderer.unpack(packed.to(device)), TARGETS)
        float(rendered["image"].sum())  # waits for the device
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:])
    print(f"samples on {device}, {CHEAP}x{CHEAP}, all maps, batches of {DEVICE_BATCH}: {DEVICE_BATCH / seconds:.0f}/s")


def benchmark_geometry(model: MorphableModel, repeats: int) -> None:
    coefficients = torch.randn(16, model.num_coefficients)
    identity, expression = coefficients.split([model.num_identity, model.num_expression], dim=1)
    one = median_seconds(lambda: model.vertices(identity[:1], expression[:1]), repeats)
    many = median_seconds(lambda: model.vertices(identity, expression), repeats) / 16
    print(
        f"geometry, {model.num_vertices:6d} vertices: alone {one * 1e3:.2f} ms a face, in a batch {many * 1e3:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats, no dense model")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    repeats = 5 if quick else 15
    model = MorphableModel.load("embedded")
    benchmark_rasterizer(model, repeats, 1 if quick else 3)
    sample = benchmark_samples(model, repeats)
    if torch.cuda.is_available():
        benchmark_device(MorphableModel.load("embedded"), "cuda", repeats)
    if not quick:
        dense = subdivide(subdivide(model))
        benchmark_rasterizer(subdivide(model), repeats, 1)
        benchmark_geometry(model, repeats)
        benchmark_geometry(dense, repeats)
        vertices = weak_perspective(dense.mean[None], torch.tensor([[0.9, 0.1, -0.5, 0.05, 100.0, 100.0]]))
        fast = median_seconds(lambda: rasterize_image(vertices, dense.faces, SIZE, cull_backfaces=True), repeats)
        print(f"rasteriser, {len(dense.faces)} faces, back faces culled: {fast * 1e3:.1f} ms")
        print(f"dense over embedded, complete sample: {benchmark_samples(dense, 5) / sample:.2f}x")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
