"""Frames, cameras, rotations, alignment and landmark schemes: pure torch, no input or output."""

from lightning_faces.geometry.alignment import apply_similarity, similarity_transform
from lightning_faces.geometry.camera import (
    Camera,
    box_of_points,
    compose_affine,
    crop_matrix,
    face_size,
    invert_affine,
    scale_of,
    transform_points,
    transform_pose,
    weak_perspective,
)
from lightning_faces.geometry.opengl import opengl_matrix
from lightning_faces.geometry.rotation import euler_to_matrix, matrix_to_euler

__all__ = [
    "Camera",
    "apply_similarity",
    "box_of_points",
    "compose_affine",
    "crop_matrix",
    "euler_to_matrix",
    "face_size",
    "invert_affine",
    "matrix_to_euler",
    "opengl_matrix",
    "scale_of",
    "similarity_transform",
    "transform_points",
    "transform_pose",
    "weak_perspective",
]
