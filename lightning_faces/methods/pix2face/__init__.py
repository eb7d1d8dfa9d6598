"""Crispell and Bazik: Pix2face, direct 3D face model estimation (2017)."""

from lightning_faces.methods.pix2face.method import Pix2Face

__all__ = ["Pix2Face"]
