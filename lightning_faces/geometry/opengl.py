"""Cameras as OpenGL, and what follows its conventions (WebGL, glTF viewers, pyrender), wants them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import Camera
from lightning_faces.geometry.rotation import euler_to_matrix


def opengl_matrix(camera: Camera, width: int, height: int, reach: float = 300.0) -> Tensor:
    """Matrices from the object frame to OpenGL's clip coordinates: projection times model-view.

    ``clip = M (X, Y, Z, 1)`` for columns, and after the division by w, x right and y up in [-1, 1] over the whole image
    and z from -1 (near) to 1 (far). A vertex is drawn where :meth:`Camera.project` puts it: pixel (u, v) has its centre
    at ``x = (2 u + 1) / width - 1``, ``y = 1 - (2 v + 1) / height``.

    Args:
        camera: Of B faces.
        width: Of the image, pixels.
        height: Of the image, pixels.
        reach: Millimetres before and behind the object's origin that are drawn.

    Returns:
        ``[B, 4, 4]``. OpenGL reads columns first: hand over the transpose where an API takes plain memory.

    Raises:
        ConfigurationError: If a perspective camera stands within the reach.

    Example:
        >>> camera = Camera.from_pose(torch.tensor([[2.0, 0.0, 0.0, 0.0, 49.5, 49.5]]))
        >>> clip = opengl_matrix(camera, 100, 100) @ torch.tensor([10.0, 5.0, 30.0, 1.0])
        >>> [round(x, 2) for x in clip[0].tolist()]
        [0.4, 0.2, -0.1, 1.0]
    """
    matrix = camera.matrix
    unit = torch.tensor([0.0, 0.0, 0.0, 1.0]).to(matrix)
    if camera.kind == "perspective":
        axis = torch.linalg.vector_norm(matrix[:, 2, :3], dim=1) * torch.sign(matrix[:, 2, 3])
        matrix = matrix / axis[:, None, None]  # w is the distance along the optical axis, mm
        distance = matrix[:, 2, 3]
        if not bool((distance > reach).all()):
            raise ConfigurationError(
                f"A camera is {float(distance.min()):.0f} mm from the object, within the reach of {reach} mm: take a "
                "smaller reach."
            )
        near, far = distance - reach, distance + reach
        depth = (distance / reach)[:, None] * matrix[:, 2] - (near * far / reach)[:, None] * unit
    else:
        towards = euler_to_matrix(camera.pose[:, 1:4])[:, 2]
        depth = torch.nn.functional.pad(-towards / reach, (0, 1))
    rows = (
        2.0 / width * matrix[:, 0] + (1.0 / width - 1.0) * matrix[:, 2],
        -2.0 / height * matrix[:, 1] + (1.0 - 1.0 / height) * matrix[:, 2],
        depth,
        matrix[:, 2],
    )
    return torch.stack(rows, dim=1)
