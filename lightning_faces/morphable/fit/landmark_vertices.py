"""Which vertex of a face model a landmark is, learned from labelled images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError


@torch.no_grad()
def choose_landmark_vertices(frames: Iterable[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """For each landmark the vertex with the least mean reprojection error (Pix2face 2017, section 4).

    Landmarks are independent of each other; two may take one vertex.

    Args:
        frames: Batches of projected vertices ``[B, V, 2 or 3]`` of fitted faces, labels ``[B, L, 2 or 3]`` in the same
            image frame, pixels, and bool ``[B, L]``, which labels there are. Only x and y are used.

    Returns:
        Int64 ``[L]`` vertices, and their mean errors ``[L]`` in pixels.

    Raises:
        ConfigurationError: If a landmark is labelled in no frame.

    Example:
        >>> vertices = torch.tensor([[[0.0, 0.0], [5.0, 5.0], [9.0, 9.0]]])
        >>> labels = torch.tensor([[[8.0, 9.0], [0.0, 1.0]]])
        >>> choose_landmark_vertices([(vertices, labels, torch.ones(1, 2, dtype=torch.bool))])
        (tensor([2, 0]), tensor([1., 1.]))
    """
    total, count = torch.zeros(0, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for vertices, labels, mask in frames:
        known = mask & labels[..., :2].isfinite().all(dim=2)
        wanted = torch.where(known[..., None], labels[..., :2], 0.0)
        # Through products of matrices, as is usual, distances would be off by hundredths of a pixel.
        distance = torch.cdist(wanted, vertices[..., :2], compute_mode="donot_use_mm_for_euclid_dist")
        summed = (distance.double() * known[..., None]).sum(dim=0)
        total = summed if total.numel() == 0 else total + summed
        count = known.sum(dim=0) if count.numel() == 0 else count + known.sum(dim=0)
    missing = torch.nonzero(count == 0).flatten().tolist()
    if missing or count.numel() == 0:
        which = f"Landmarks {missing} are" if count.numel() else "Nothing is"
        raise ConfigurationError(f"{which} labelled in no frame: give frames to choose the vertices by.")
    error, vertex = (total / count[:, None]).min(dim=1)
    return vertex, error.float()
