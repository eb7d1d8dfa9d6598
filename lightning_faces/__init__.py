"""Multi-task training platform for 3D face alignment and reconstruction from one image."""

__version__ = "0.1.0"
