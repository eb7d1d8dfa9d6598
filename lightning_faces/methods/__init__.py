"""The methods, one file each; importing this package makes their short names known to the command line."""

from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.mean_landmarks import MeanLandmarks
from lightning_faces.methods.multitask import MultiTask
from lightning_faces.methods.parm import PARM
from lightning_faces.methods.pix2face import Pix2Face
from lightning_faces.methods.prnet import PRNet
from lightning_faces.methods.richardson2016 import Richardson2016
from lightning_faces.methods.zhao2016 import Zhao2016

__all__ = ["PARM", "FaceMethod", "MeanLandmarks", "MultiTask", "PRNet", "Pix2Face", "Richardson2016", "Zhao2016"]
