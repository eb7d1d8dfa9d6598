"""Rasterising, shading, target maps and synthetic faces. PyTorch3D, and its NDC, live only here."""

from lightning_faces.rendering.rasterizer import FaceRasterizer
from lightning_faces.rendering.renderer import FaceRenderer, PhongLight, Raster, phong, rasterize_image
from lightning_faces.rendering.synthesis import FaceSynthesizer, Scene, SynthesisOptions

__all__ = [
    "FaceRasterizer",
    "FaceRenderer",
    "FaceSynthesizer",
    "PhongLight",
    "Raster",
    "Scene",
    "SynthesisOptions",
    "phong",
    "rasterize_image",
]
