"""Morphable face models: one interface over the embedded model and imported ones."""

from lightning_faces.morphable.model import MorphableModel

__all__ = ["MorphableModel"]
