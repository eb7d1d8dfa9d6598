"""Maps in UV space: how they are made for a mesh, vertices spread over them, and points read back.

The centre of texel (row i, column j) of a map of side U lies at ``((j + 0.5) / U, (i + 0.5) / U)`` in the model's UV.
"""

from lightning_faces.morphable.uv.grid import REGIONS, UVGrid
from lightning_faces.morphable.uv.position_map import PositionMap

__all__ = ["REGIONS", "PositionMap", "UVGrid"]
