"""Richardson, Sela, Kimmel: 3D Face Reconstruction by Learning from Synthetic Data (2016)."""

from lightning_faces.methods.richardson2016.method import Richardson2016

__all__ = ["Richardson2016"]
