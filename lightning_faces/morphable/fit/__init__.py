"""Cameras and coefficients of a face model from landmarks or dense maps, without any network."""

from lightning_faces.morphable.fit.camera import CameraFit, fit_affine, fit_weak_perspective
from lightning_faces.morphable.fit.coefficients import solve_coefficients
from lightning_faces.morphable.fit.landmarks import fit_landmarks
from lightning_faces.morphable.fit.result import FaceFit

__all__ = ["CameraFit", "FaceFit", "fit_affine", "fit_landmarks", "fit_weak_perspective", "solve_coefficients"]
