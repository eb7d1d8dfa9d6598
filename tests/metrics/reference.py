"""NumPy float64 references from the equations of the papers, one sample at a time, without the code under test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial import cKDTree  # noqa: F401  (for the tests)
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]


def box_size(points: Array) -> float:
    w, h = points[:, 0].max() - points[:, 0].min(), points[:, 1].max() - points[:, 1].min()
    return float(np.sqrt(w * h))


def measure(points: Array, normalizer: str) -> float:
    if normalizer == "bbox":
        return box_size(points)
    if normalizer == "diagonal":
        return float(np.hypot(np.ptp(points[:, 0]), np.ptp(points[:, 1])))
    if normalizer == "outer_interocular":
        return float(np.sqrt(((points[36] - points[45]) ** 2).sum()))
    return float(np.sqrt(((points[36:42].mean(0) - points[42:48].mean(0)) ** 2).sum()))


def horn(source: Array, target: Array, with_scale: bool = True) -> Array:
    """``source`` aligned to ``target`` by Horn's unit quaternions (1987): another closed form than Umeyama's."""
    p, q = source - source.mean(0), target - target.mean(0)
    s = p.T @ q
    n = np.array(
        [
            [s[0, 0] + s[1, 1] + s[2, 2], s[1, 2] - s[2, 1], s[2, 0] - s[0, 2], s[0, 1] - s[1, 0]],
            [s[1, 2] - s[2, 1], s[0, 0] - s[1, 1] - s[2, 2], s[0, 1] + s[1, 0], s[2, 0] + s[0, 2]],
            [s[2, 0] - s[0, 2], s[0, 1] + s[1, 0], -s[0, 0] + s[1, 1] - s[2, 2], s[1, 2] + s[2, 1]],
            [s[0, 1] - s[1, 0], s[2, 0] + s[0, 2], s[1, 2] + s[2, 1], -s[0, 0] - s[1, 1] + s[2, 2]],
        ]
    )
    w, x, y, z = np.linalg.eigh(n)[1][:, -1]
    rotated = p @ Rotation.from_quat([x, y, z, w]).as_matrix().T
    scale = (rotated * q).sum() / (p * p).sum() if with_scale else 1.0
    return scale * rotated + target.mean(0)


def unsquared_fit(source: Array, target: Array) -> Array:
    """``source`` aligned by minimising the sum of distances over log-scale, rotation vector and translation."""
    start, centre = horn(source, target), target.mean(0)
    spread = np.abs(target - centre).max()

    def moved(x: Array) -> Array:
        turned = (start - centre) @ Rotation.from_rotvec(x[1:4]).as_matrix().T
        result: Array = np.exp(x[0]) * turned + centre + spread * x[4:]
        return result

    def total(x: Array) -> float:
        return float(np.linalg.norm(moved(x) - target, axis=1).sum() / spread)

    x = np.zeros(7)
    for _ in range(4):
        x = minimize(total, x, method="Nelder-Mead", options={"xatol": 1e-12, "fatol": 1e-14, "maxiter": 20000}).x
        x = minimize(total, x, method="BFGS", options={"gtol": 1e-10}).x
    return moved(x)


def nme(preds: Array, target: Array, normalizer: str = "bbox", depth: str = "raw", mask: Array | None = None) -> float:
    size = measure(target if normalizer not in ("bbox", "diagonal") or mask is None else target[mask], normalizer)
    if mask is not None:
        preds, target = preds[mask], target[mask]
    preds, target = preds.copy(), target.copy()
    if depth in ("mean", "min") and preds.shape[1] == 3:
        origin = np.mean if depth == "mean" else np.min
        preds[:, 2] -= origin(preds[:, 2])
        target[:, 2] -= origin(target[:, 2])
    if depth == "similarity":
        preds = horn(preds, target)
    return float(sum(np.sqrt(((p - g) ** 2).sum()) for p, g in zip(preds, target)) / len(preds) / size)


def icp(source: Array, target: Array, with_scale: bool) -> Array:
    """Brute-force nearest points and Horn's alignment, from the start position each time, until no match changes."""
    moved, matches = source, None
    while True:
        distances: Array = np.linalg.norm(moved[:, None] - target[None], axis=-1)
        nearest = distances.argmin(1)
        if matches is not None and (nearest == matches).all():
            return distances.min(1)
        moved, matches = horn(source, target[nearest], with_scale), nearest
