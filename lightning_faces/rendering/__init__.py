"""Rasterising, shading, target maps and synthetic faces. PyTorch3D, and its NDC, live only here."""

from lightning_faces.rendering.rasterizer import FaceRasterizer

__all__ = ["FaceRasterizer"]
