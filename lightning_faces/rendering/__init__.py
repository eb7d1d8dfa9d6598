"""Rasterising, shading, target maps and synthetic faces.

PyTorch3D, and its NDC, live only here: on devices other than the CPU, and behind :mod:`.rasterizer`, which gives
``FaceRasterizer``. All else works without it.
"""

from lightning_faces.rendering.geometry_view import geometry_view
from lightning_faces.rendering.renderer import FaceRenderer, PhongLight, Raster, phong, rasterize_image
from lightning_faces.rendering.synthesis import FaceSynthesizer, Scene, SynthesisOptions

__all__ = [
    "FaceRenderer",
    "FaceSynthesizer",
    "PhongLight",
    "Raster",
    "Scene",
    "SynthesisOptions",
    "geometry_view",
    "phong",
    "rasterize_image",
]
