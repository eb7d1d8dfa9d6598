"""Cameras and coefficients of a face model from landmarks or dense maps, without any network."""

from lightning_faces.morphable.fit.camera import CameraFit, fit_affine, fit_weak_perspective
from lightning_faces.morphable.fit.coefficients import solve_coefficients
from lightning_faces.morphable.fit.dense import fit_dense, fit_dense_landmarks, point_cloud
from lightning_faces.morphable.fit.landmark_vertices import choose_landmark_vertices
from lightning_faces.morphable.fit.landmarks import fit_landmarks
from lightning_faces.morphable.fit.perspective import PerspectiveFit, fit_perspective
from lightning_faces.morphable.fit.result import FaceFit, LandmarkFit

__all__ = [
    "CameraFit",
    "FaceFit",
    "LandmarkFit",
    "PerspectiveFit",
    "choose_landmark_vertices",
    "fit_affine",
    "fit_dense",
    "fit_dense_landmarks",
    "fit_landmarks",
    "fit_perspective",
    "fit_weak_perspective",
    "point_cloud",
    "solve_coefficients",
]
