"""The data sets, one file each; importing this package makes their short names known to the command line."""

from datamodules.aflw2000 import AFLW20003D
from datamodules.aflwlfpa import AFLWLFPA
from datamodules.augment import MildAugmentation, Pix2faceAugmentation, PRNetAugmentation, ZhaoAugmentation
from datamodules.base import FaceDataModule, FaceDataset
from datamodules.bp4d import BP4D
from datamodules.florence import Florence
from datamodules.image_folder import ImageFolder
from datamodules.menpo import Menpo3D
from datamodules.mixed import Mixed
from datamodules.synthetic import SyntheticFaces
from datamodules.table import Table
from datamodules.threedfaw import ThreeDFAW
from datamodules.w300lp import W300LP
from datamodules.w3003d import W3003D

__all__ = [
    "AFLW20003D",
    "AFLWLFPA",
    "BP4D",
    "W300LP",
    "W3003D",
    "FaceDataModule",
    "FaceDataset",
    "Florence",
    "ImageFolder",
    "Menpo3D",
    "MildAugmentation",
    "Mixed",
    "PRNetAugmentation",
    "Pix2faceAugmentation",
    "SyntheticFaces",
    "Table",
    "ThreeDFAW",
    "ZhaoAugmentation",
]
