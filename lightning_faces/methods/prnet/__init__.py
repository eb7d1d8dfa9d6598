"""Feng, Wu, Shao, Wang, Zhou: Joint 3D Face Reconstruction and Dense Alignment with Position Map Regression (2018)."""

from lightning_faces.methods.prnet.method import PRNet

__all__ = ["PRNet"]
