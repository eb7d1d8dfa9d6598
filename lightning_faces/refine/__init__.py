"""What a face model cannot span: relief from shading, and a photograph's texture (Richardson 2016, sections 7, 8)."""

from lightning_faces.refine.shape_from_shading import RefinedDepth, depth_mesh, normals_of_depth, shape_from_shading
from lightning_faces.refine.texture import FaceTexture, TextureRecovery, vertex_colours

__all__ = [
    "FaceTexture",
    "RefinedDepth",
    "TextureRecovery",
    "depth_mesh",
    "normals_of_depth",
    "shape_from_shading",
    "vertex_colours",
]
