"""Multi-task training: one network, every target that the platform has, any mix of data sets."""

from lightning_faces.methods.multitask.method import MultiTask

__all__ = ["MultiTask"]
