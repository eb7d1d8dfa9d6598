"""PARM: cascaded regression of a face model's parameters by landmark updates."""

from lightning_faces.methods.parm.method import PARM

__all__ = ["PARM"]
