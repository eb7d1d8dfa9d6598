"""Paint the embedded model's skin, lips, brows and eyes as UV images: a mean and named modes.

Everything is painted from the mean shape's own coordinates: each texel knows its point of the surface (object frame,
millimetres), and distances are measured there, seen from the front.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from lightning_faces.morphable.surface import Bools, Floats, Ints
from lightning_faces.morphable.uv.texels import texel_image


@dataclass
class Canvas:
    """The texels of a UV map.

    Attributes:
        position: Point of the mean surface ``[T, T, 3]`` in mm; texels outside the map repeat their nearest neighbour.
        inside: Bool ``[T, T]``, texels whose centre a UV triangle covers.
        eyeball: Bool ``[T, T]``, texels on the eyeballs.
    """

    position: Floats
    inside: Bools
    eyeball: Bools


def make_canvas(size: int, uv: Floats, uv_faces: Ints, corners: Floats, eyeball: Bools) -> Canvas:
    """Rasterise a UV map.

    Args:
        size: Side T of the map in texels.
        uv: ``[V_uv, 2]``, v down.
        uv_faces: ``[F_uv, 3]``.
        corners: Points of the surface at the corners ``[F_uv, 3, 3]``.
        eyeball: Bool ``[F_uv]``.

    Returns:
        The canvas.
    """
    covering, weights = texel_image(uv, uv_faces, size)
    inside = covering >= 0
    position = (corners[covering] * weights[..., None]).sum(2)
    on_eye = eyeball[covering]
    nearest = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return Canvas(position[nearest[0], nearest[1]], inside, on_eye[nearest[0], nearest[1]])


def paint(
    canvas: Canvas, landmarks: Floats, eye_centres: Floats, generator: np.random.Generator
) -> tuple[Floats, Floats, Floats, list[str]]:
    """The mean albedo and its modes.

    Args:
        canvas: The texels.
        landmarks: ``[68, 3]`` on the mean shape.
        eye_centres: The foremost point of the right and left eyeball ``[2, 3]``.
        generator: For the blotches.

    Returns:
        Mean ``[3, T, T]`` in [0, 1], basis ``[Ka, 3, T, T]`` with largest absolute value 1, standard deviations
        ``[Ka]`` and names.
    """
    x, y = canvas.position[..., 0], canvas.position[..., 1]
    skin = ~canvas.eyeball
    brows = _curve_mask(x, y, landmarks, (range(17, 22), range(22, 27)), 3.2) * skin
    brow_upper = _curve_mask(x, y - 3.0, landmarks, (range(17, 22), range(22, 27)), 2.6) * skin
    lips = _lips(x, y, canvas.position[..., 2], landmarks) * skin
    lids = _lids(x, y, landmarks) * skin
    beard = _beard(x, y, canvas.position[..., 2], landmarks) * skin * (1.0 - lips)
    cheeks = _spots(x, y, _cheek_points(landmarks), 17.0) * skin
    nose_tip = _spots(x, y, landmarks[[30]], 9.0) * skin
    under_eyes = _spots(x, y, landmarks[[40, 41, 46, 47]] - (0.0, 6.0, 0.0), 6.5) * skin
    radius = np.minimum(
        np.hypot(x - eye_centres[0, 0], y - eye_centres[0, 1]), np.hypot(x - eye_centres[1, 0], y - eye_centres[1, 1])
    )
    iris = canvas.eyeball * _step(6.0 - radius, 0.5)
    pupil = canvas.eyeball * _step(2.2 - radius, 0.4)
    iris_only = iris - pupil
    white = canvas.eyeball * (1.0 - iris)

    base = np.array((0.50, 0.335, 0.255))
    mean = np.ones_like(canvas.position) * base
    for mask, colour, strength in (
        (cheeks, (0.53, 0.29, 0.23), 0.5),
        (nose_tip, (0.52, 0.30, 0.24), 0.5),
        (under_eyes, (0.40, 0.26, 0.21), 0.4),
        (beard, (0.38, 0.28, 0.23), 0.25),
        (lids, (0.24, 0.16, 0.12), 0.75),
        (lips, (0.44, 0.21, 0.18), 0.9),
        (brows, (0.17, 0.11, 0.08), 0.75),
        (white, (0.78, 0.75, 0.72), 1.0),
        (iris_only, (0.22, 0.17, 0.13), 1.0),
        (pupil, (0.03, 0.03, 0.03), 1.0),
    ):
        weight = (strength * mask)[..., None]
        mean = mean * (1.0 - weight) + weight * np.array(colour)

    tone = skin * (1.0 - 0.75 * brows) * (1.0 - 0.35 * lips)
    low, middle, fine = (_noise(canvas, generator, sigma) for sigma in (24.0, 10.0, 4.0))
    left_right = np.tanh(x / 30.0)
    modes: list[tuple[str, Floats, tuple[float, float, float], float]] = [
        ("skin_light", tone, (1.0, 0.78, 0.66), 0.125),
        ("skin_warm", tone, (0.8, 0.0, -1.0), 0.020),
        ("skin_red", tone, (1.0, -0.6, -0.5), 0.018),
        ("cheeks_red", np.maximum(cheeks, nose_tip) * (1.0 - lips), (0.5, -1.0, -0.8), 0.022),
        ("blotches_coarse", tone * low, (1.0, 0.85, 0.75), 0.012),
        ("blotches_medium", tone * middle, (1.0, 0.9, 0.8), 0.010),
        ("freckles", tone * fine, (0.9, 1.0, 0.9), 0.009),
        ("side_to_side", tone * left_right, (1.0, 0.85, 0.75), 0.010),
        ("lips_red", lips, (0.9, -1.0, -0.6), 0.030),
        ("lips_dark", lips, (-1.0, -0.7, -0.6), 0.040),
        ("brows_light", brows, (1.0, 0.75, 0.5), 0.045),
        ("brows_high", np.clip(brow_upper - brows, 0.0, 1.0), (-1.0, -0.85, -0.7), 0.060),
        ("beard_shadow", beard, (-1.0, -0.8, -0.65), 0.040),
        ("under_eyes_dark", under_eyes, (-1.0, -0.9, -0.6), 0.025),
        ("lids_dark", lids, (-1.0, -0.85, -0.7), 0.030),
        ("iris_light", iris_only, (0.7, 0.9, 1.0), 0.050),
        ("iris_blue", iris_only, (-0.7, 0.1, 1.0), 0.040),
        ("eye_white", white, (0.8, 0.9, 1.0), 0.050),
    ]
    basis = np.stack([(mask[..., None] * np.array(colour)).transpose(2, 0, 1) for _, mask, colour, _ in modes])
    peak = np.abs(basis).max(axis=(1, 2, 3))
    std = np.array([scale for *_, scale in modes]) * peak
    return np.clip(mean, 0.0, 1.0).transpose(2, 0, 1), basis / peak[:, None, None, None], std, [m[0] for m in modes]


def _step(value: Floats, softness: float) -> Floats:
    """A soft step from 0 (value far below 0) to 1 (far above)."""
    step: Floats = 1.0 / (1.0 + np.exp(-np.clip(value / softness, -30.0, 30.0) * 2.0))
    return step


def _curve(points: Floats, count: int = 60, closed: bool = False) -> Floats:
    """A Catmull-Rom curve through points ``[n, 2]``."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    pieces = []
    for k in range(1, len(padded) - 2):
        t = np.linspace(0.0, 1.0, count, endpoint=False)[:, None]
        p0, p1, p2, p3 = padded[k - 1 : k + 3]
        pieces.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    curve: Floats = np.concatenate(pieces)
    return curve


def _distance(x: Floats, y: Floats, curve: Floats) -> tuple[Floats, Floats]:
    """Distance in mm of each texel to a curve ``[n, 2]``, and how far along the curve the nearest point is, 0 to 1."""
    distance, index = cKDTree(curve).query(np.stack([x, y], axis=-1))
    return distance, index / (len(curve) - 1)


def _curve_mask(x: Floats, y: Floats, landmarks: Floats, groups: tuple[range, ...], width: float) -> Floats:
    """Brow-like strokes: thick towards the nose, thin towards the temple."""
    mask = np.zeros_like(x)
    for group in groups:
        points = landmarks[list(group), :2] - (0.0, 2.0)
        distance, along = _distance(x, y, _curve(points))
        towards_temple = 1.0 - along if group.start == 17 else along
        thickness = width * (1.0 - 0.6 * towards_temple**1.5)
        mask = np.maximum(mask, _step(thickness - distance, 1.0) * (1.0 - 0.3 * towards_temple))
    return mask


def _inside(x: Floats, y: Floats, polygon: Floats) -> Bools:
    """Even-odd rule for texels in a closed polygon ``[n, 2]``."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0)):
        if y0 == y1:
            continue
        crosses = (y0 > y) != (y1 > y)
        inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def _lips(x: Floats, y: Floats, z: Floats, landmarks: Floats) -> Floats:
    outline = landmarks[[48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59], :2]
    curve = _curve(outline, closed=True)
    distance, _ = _distance(x, y, curve)
    signed = np.where(_inside(x, y, curve), distance, -distance)
    lips: Floats = _step(signed, 0.8) * (z > landmarks[[48, 54], 2].mean() - 12.0)
    return lips


def _lids(x: Floats, y: Floats, landmarks: Floats) -> Floats:
    mask = np.zeros_like(x)
    for ids, strength in (
        ((36, 37, 38, 39), 1.0),
        ((42, 43, 44, 45), 1.0),
        ((36, 41, 40, 39), 0.5),
        ((42, 47, 46, 45), 0.5),
    ):
        distance, _ = _distance(x, y, _curve(landmarks[list(ids), :2]))
        mask = np.maximum(mask, strength * _step(1.1 - distance, 0.5))
    return mask


def _beard(x: Floats, y: Floats, z: Floats, landmarks: Floats) -> Floats:
    """Where a beard grows: below a line from the ears over the mouth corners to the nose, above the throat."""
    line_x = np.array([0.0, 12.0, 30.0, 48.0, 62.0, 90.0])
    nose_base, corner, chin = landmarks[33, 1], landmarks[48, 1], landmarks[8, 1]
    line_y = np.array([nose_base - 3.0, nose_base - 4.0, corner + 2.0, corner + 2.0, nose_base + 8.0, nose_base + 20.0])
    upper = np.interp(np.abs(x), line_x, line_y)
    beard: Floats = _step(upper - y, 3.0) * _step(y - (chin - 12.0), 4.0) * _step(z - 10.0, 6.0)
    return beard


def _cheek_points(landmarks: Floats) -> Floats:
    right = 0.5 * (landmarks[41] + landmarks[48]) + (-12.0, 0.0, 0.0)
    return np.stack([right, right * (-1.0, 1.0, 1.0)])


def _spots(x: Floats, y: Floats, centres: Floats, sigma: float) -> Floats:
    spots: Floats = np.max([np.exp(-((x - c[0]) ** 2 + (y - c[1]) ** 2) / (2.0 * sigma**2)) for c in centres], axis=0)
    return spots


def _noise(canvas: Canvas, generator: np.random.Generator, sigma: float) -> Floats:
    """Smooth noise of the surface with unit standard deviation and correlation length ``sigma`` in mm."""
    cell = sigma / 4.0
    low = canvas.position.reshape(-1, 3).min(0) - 4.0 * sigma
    shape = np.ceil((canvas.position.reshape(-1, 3).max(0) + 4.0 * sigma - low) / cell).astype(int)
    volume = gaussian_filter(generator.standard_normal(tuple(shape)), 4.0)
    coordinates = ((canvas.position - low) / cell).transpose(2, 0, 1)
    values = map_coordinates(volume, coordinates, order=1)
    inside = values[canvas.inside]
    noise: Floats = np.clip((values - inside.mean()) / inside.std(), -3.0, 3.0)
    return noise
