"""Memory of the streaming dense NME, and speed of ICP against trimesh's, on point sets of the papers' size.

python benchmarks/metrics.py
"""

from __future__ import annotations

import resource
import time

import numpy as np
import torch

from lightning_faces.metrics import NormalizedMeanError, functional

FACES, POINTS, BATCH = 3000, 45_000, 20
ICP_POINTS = 19_000


def dense_memory() -> None:
    """Faces of 45,000 points in batches, as a test set gives them (1.6 GB per side if they were kept)."""
    metric = NormalizedMeanError(3)
    target = torch.rand(BATCH, POINTS, 3) * 200
    landmarks = torch.rand(BATCH, 68, 3) * 200
    peaks = []
    start = time.process_time()
    for batch in range(FACES // BATCH):
        metric.update(target + 0.01 * batch, target, torch.arange(BATCH) + batch * BATCH, reference=landmarks)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    seconds = time.process_time() - start
    print(
        f"dense 3D NME, {FACES} x {POINTS} points in batches of {BATCH}: {seconds:.1f} CPU seconds, "
        f"value {metric.compute():.5f}"
    )
    third = len(peaks) // 3
    print(f"  peak memory after {third} and {len(peaks)} batches: {peaks[third - 1]:.0f} and {peaks[-1]:.0f} MiB")


def icp_speed() -> None:
    """A 19,000-point surface against itself moved and noisy, rigid; each to its own convergence."""
    rng = np.random.default_rng(0)
    u, v = rng.uniform(-1, 1, (2, ICP_POINTS))
    surface = np.stack((70 * u, 90 * v, 60 * (1 - u**2) - 20 * v**2 + 15 * np.exp(-20 * (u**2 + v**2))), axis=1)
    angle = np.radians(4)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    moved = (surface + rng.normal(size=surface.shape)) @ turn.T + (3.0, -2.0, 1.0)
    preds, target, size = torch.from_numpy(moved)[None], torch.from_numpy(surface)[None], torch.tensor([90.0])
    start = time.process_time()
    ours = float(functional.iterative_closest_point_error(preds, target, size=size)[0])
    seconds = time.process_time() - start
    print(f"ICP, {ICP_POINTS} x {ICP_POINTS} points: {seconds:.2f} CPU seconds, error {100 * ours:.4f} %")
    try:
        import trimesh
    except ImportError:
        print("  trimesh is not installed: no reference")
        return
    start = time.process_time()
    _, after, _ = trimesh.registration.icp(
        moved, surface, threshold=1e-7 * 90, max_iterations=100, reflection=False, scale=False
    )
    seconds = time.process_time() - start
    distances = functional.cKDTree(surface).query(after)[0]
    print(f"  trimesh {trimesh.__version__}: {seconds:.2f} CPU seconds, error {100 * distances.mean() / 90:.4f} %")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dense_memory()
    icp_speed()
