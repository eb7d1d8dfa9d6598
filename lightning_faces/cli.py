"""The command line from Python: ``main(["fit", "--config", "configs/quickstart.yaml"])``."""

from lightning_faces.__main__ import main

__all__ = ["main"]
