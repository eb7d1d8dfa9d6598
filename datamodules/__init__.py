"""The data sets, one file each; importing this package makes their short names known to the command line."""

from datamodules.aflw2000 import AFLW20003D
from datamodules.base import FaceDataModule, FaceDataset
from datamodules.synthetic import SyntheticFaces

__all__ = ["AFLW20003D", "FaceDataModule", "FaceDataset", "SyntheticFaces"]
