"""Heads: what a network gives, with its loss and its reading as faces; methods are made of them.

:mod:`lightning_faces.heads.base` says what a head is and how features reach it.
"""

from lightning_faces.heads.base import Features, FeatureShape, Head
from lightning_faces.heads.depth import DepthHead
from lightning_faces.heads.landmarks import LandmarkHead
from lightning_faces.heads.position_map import PositionMapHead
from lightning_faces.heads.terms import Term

__all__ = ["DepthHead", "FeatureShape", "Features", "Head", "LandmarkHead", "PositionMapHead", "Term"]
