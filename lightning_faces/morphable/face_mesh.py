"""One predicted face as a mesh for files and viewers: a right-handed frame, its UV map, its facial actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_faces.batch import FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import Camera
from lightning_faces.geometry.rotation import euler_to_matrix
from lightning_faces.morphable.model import MorphableModel

Frame = Literal["object", "image"]


@dataclass(eq=False)
class FaceMesh:
    """One face. The frame is right-handed: x right, y up, z to the viewer; faces are counter-clockwise from outside.

    Attributes:
        vertices: ``[V, 3]``: millimetres of the object frame, or pixels of the image frame with y turned up, which is
            ``image * (1, -1, 1)``.
        faces: Int64 ``[F, 3]``.
        uv: ``[V_uv, 2]`` as in :class:`MorphableModel`, v down; None where the face model has no UV map.
        uv_faces: Int64 ``[F, 3]`` into ``uv``, -1 for a triangle that the UV map leaves out; None without a UV map.
        actions: For the name of each facial action, how it moves the vertices when it is full, ``[V, 3]``.
        weights: How much of each action is in ``vertices``, in their order.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    uv: NDArray[np.float64] | None = None
    uv_faces: NDArray[np.int64] | None = None
    actions: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)

    @classmethod
    def of_prediction(
        cls, prediction: FacePrediction, face: int, model: MorphableModel, frame: Frame = "object"
    ) -> FaceMesh:
        """The mesh of one face of a prediction.

        Facial actions come from the coefficients; a prediction without them gives a mesh without actions. An action of
        a face model without names is called by its number. The picture that a perspective camera takes of a moving
        face is no sum of moves: in its image frame an action moves the vertices as it would alone.

        Args:
            prediction: Of B faces. In the image frame, vertices are where it has them: in the crop, or in the
                photograph after ``to_file``.
            face: Which of the B.
            model: The face model of the method.
            frame: "object" (without the pose of the head) or "image" (as in the picture).

        Returns:
            The mesh; of the vertices that the method predicts and the triangles between them.

        Raises:
            ConfigurationError: If the method predicts too little for a mesh in this frame, or the face is not valid.

        Example:
            >>> model = MorphableModel.load("embedded")
            >>> coefficients = torch.zeros(1, model.num_coefficients)
            >>> coefficients[0, model.num_identity + model.expression_names.index("jawOpen")] = 0.5
            >>> faces = FacePrediction(torch.zeros(1, 68, 3), coefficients=coefficients)
            >>> mesh = FaceMesh.of_prediction(faces, 0, model)
            >>> dict(zip(mesh.actions, mesh.weights))["jawOpen"], mesh.vertices.shape
            (0.5, (4280, 3))
        """
        if prediction.valid is not None and not bool(prediction.valid[face]):
            reason = "" if prediction.reason is None else f" ({prediction.reason[face]})"
            raise ConfigurationError(f"Face {face} of the prediction is not valid{reason}: it has no mesh.")
        row = slice(face, face + 1)
        camera = prediction.camera
        camera = None if camera is None else Camera(camera.kind, camera.matrix[row].cpu(), camera.pose[row].cpu())
        ids = prediction.vertex_ids
        ids = torch.arange(model.num_vertices) if ids is None else ids.detach().cpu()
        shape, modes, weights = None, torch.zeros(0, model.num_vertices, 3), torch.zeros(0)
        if prediction.coefficients is not None:
            coefficients = prediction.coefficients[row].detach().to(model.mean)
            identity, expression = torch.split(coefficients, [model.num_identity, model.num_expression], dim=1)
            shape, weights = model.vertices(identity, expression).cpu()[:, ids], expression[0].cpu()
            modes = (model.expression_basis * model.expression_std[:, None, None]).cpu()
        placed = None if prediction.vertices is None else prediction.vertices[row].detach().cpu().float()
        if placed is None and shape is not None and camera is not None:
            placed = camera.project(shape)
        if shape is None and placed is not None and camera is not None:
            shape = _to_object(placed, camera)
        points = shape if frame == "object" else placed
        if points is None:
            needed = "coefficients, or vertices and a camera" if frame == "object" else "vertices"
            raise ConfigurationError(f"The method predicts no {needed}: it gives no mesh in the {frame} frame.")
        modes = modes[:, ids]
        if frame == "image":
            if shape is not None and camera is not None and len(modes):
                still = shape - torch.einsum("k,kvc->vc", weights, modes)
                modes = camera.project(still + modes) - camera.project(still)
            else:
                modes, weights = modes[:0], weights[:0]
            points, modes = points * points.new_tensor([1, -1, 1]), modes * modes.new_tensor([1, -1, 1])
        names = model.expression_names or [f"expression {k + 1}" for k in range(model.num_expression)]
        faces, uv, uv_faces = _triangles(model, ids)
        return cls(
            points[0].double().numpy(),
            faces,
            uv,
            uv_faces,
            dict(zip(names, modes.double().numpy())),
            [float(weight) for weight in weights],
        )


def _to_object(points: torch.Tensor, camera: Camera) -> torch.Tensor:
    """Object-frame points ``[1, V, 3]`` of image-frame ones, through the (nearest) weak perspective."""
    scale, angles, place = torch.split(camera.pose, [1, 3, 2], dim=1)
    upright = (points - torch.nn.functional.pad(place, (0, 1))[:, None]) * points.new_tensor([1, -1, 1])
    return upright @ euler_to_matrix(angles) / scale[:, None]


def _triangles(
    model: MorphableModel, ids: torch.Tensor
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """Triangles between some vertices, in their numbers, and the UV map of those triangles."""
    position = np.full(model.num_vertices, -1)
    position[ids.numpy()] = np.arange(len(ids))
    faces = position[model.faces.cpu().numpy()]
    kept = (faces >= 0).all(axis=1)
    if model.uv is None or model.uv_faces is None or model.uv_face_ids is None:
        return faces[kept], None, None
    uv_faces = np.full_like(faces, -1)
    uv_faces[model.uv_face_ids.cpu().numpy()] = model.uv_faces.cpu().numpy()
    return faces[kept], model.uv.double().cpu().numpy(), uv_faces[kept]
