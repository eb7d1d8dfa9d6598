"""Multi-task training platform for 3D face alignment and reconstruction from one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_faces.predict.predictor import FacePredictor

__version__ = "0.1.0"
__all__ = ["load"]


def load(name_or_path: Any = None, **options: Any) -> FacePredictor:
    """A predictor of faces in photographs: ``lightning_faces.load().predict("photo.jpg")``.

    Args:
        name_or_path: Name of weights that come with this installation, or a checkpoint of your own; None takes the
            installation's default.
        **options: As :func:`lightning_faces.predict.predictor.load` takes them: device, detector, margin, and arguments
            of the method.

    Raises:
        ConfigurationError: If there are no such weights.
        DataError: If the file cannot be used.
    """
    # What training and prediction need takes seconds to import.
    from lightning_faces.predict.predictor import load as load_predictor

    return load_predictor(name_or_path, **options)
