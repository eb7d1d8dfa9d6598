"""Random changes of training samples: one class per paper, every number an option.

Geometry is one 2x3 similarity that the crop applies to the image and to every target (``components/transform.py``);
colour, noise and occlusion are albumentations transforms on the crop. All randomness comes from the generator of the
sample.
"""

from __future__ import annotations

import math
import os
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.components.options import check_number, check_range
from lightning_faces.geometry.landmarks import outer_eye_corners

Range = tuple[float, float]


def similarity_about_centre(
    image_size: int, scale: float, degrees: float, shift: tuple[float, float]
) -> NDArray[np.float64]:
    """A 2x3 matrix that scales and turns a square image about its centre and then moves it.

    Args:
        image_size: Side in pixels; the centre is at ``(image_size - 1) / 2``.
        scale: Factor on the size of the face.
        degrees: Rotation, clockwise as seen (y points down).
        shift: Translation in pixels (x, y).
    """
    cosine, sine = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    centre = (image_size - 1) / 2
    return np.array(
        [
            [cosine, -sine, centre * (1 - cosine + sine) + shift[0]],
            [sine, cosine, centre * (1 - sine - cosine) + shift[1]],
        ]
    )


def _albumentations() -> ModuleType:
    # The import takes seconds, and few need it; without the variable, it asks the network for a newer release.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    module: ModuleType = albumentations
    return module


class _Augmentation:
    flip: float

    def __init__(self, flip: float, transforms: list[tuple[str, dict[str, Any]]]) -> None:
        check_number("augmentation option flip", flip, 0, 1)
        self.flip = flip
        self.transforms = transforms
        self._pipeline: Any = None
        if transforms:
            # Not first in a loader process: W&B, which watches imports in a running run, does not let a forked one.
            _albumentations()

    def appearance(
        self, image: NDArray[np.uint8], landmarks: NDArray[np.float32] | None, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Change a crop ``[H, W, 3]`` without moving it."""
        if not self.transforms:
            return image
        if self._pipeline is None:
            module = _albumentations()
            self._pipeline = module.Compose([getattr(module, name)(**options) for name, options in self.transforms])
        self._pipeline.set_random_seed(int(rng.integers(2**31)))
        changed: NDArray[np.uint8] = self._pipeline(image=image)["image"]
        return changed


def _check_range(name: str, value: Range, low: float) -> Range:
    check_range(f"augmentation option {name}", value, low)
    return value


def _check_least(**values: float) -> None:
    """Refuse options that are no numbers of at least 0."""
    for name, value in values.items():
        check_number(f"augmentation option {name}", value, 0)


class MildAugmentation(_Augmentation):
    """Small changes of the crop, as a good detector's box varies, and reflection.

    Args:
        scale: Range of the factor on the size of the face, uniform.
        rotation: Standard deviation in degrees.
        translation: Standard deviation as a fraction of the image, for x and for y.
        flip: Probability of a reflection.
    """

    def __init__(
        self, scale: Range = (0.93, 1.09), rotation: float = 8.0, translation: float = 0.02, flip: float = 0.5
    ) -> None:
        super().__init__(flip, [])
        self.scale = _check_range("scale", scale, 0.1)
        _check_least(rotation=rotation, translation=translation)
        self.rotation, self.translation = rotation, translation

    def matrix(self, image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random similarity."""
        shift = rng.normal(0, self.translation * image_size, size=2)
        return similarity_about_centre(
            image_size, rng.uniform(*self.scale), rng.normal(0, self.rotation), (shift[0], shift[1])
        )


class ZhaoAugmentation(_Augmentation):
    """Zhao 2016, section 4.2: scale 0.5 to 2, rotation +-10 degrees, translation and reflection, occluding boxes.

    The paper gives no size of the translation, no number, place or colour of the boxes and no distribution of the
    scale; here the scale is uniform in its logarithm, and the one box lies with its centre in the face's box.

    Args:
        scale: Range of the factor on the size of the face.
        rotation: Largest rotation in degrees, uniform.
        translation: Largest shift as a fraction of the image, uniform in x and y.
        flip: Probability of a reflection.
        occlusion: Probability of an occluding box.
        occluder_size: Range of the box's side over the distance of the outer eye corners (in 3D where there is depth).
        occluder_fill: Colour of the box: "black", one random "colour", or "noise".
    """

    def __init__(
        self,
        scale: Range = (0.5, 2.0),
        rotation: float = 10.0,
        translation: float = 0.1,
        flip: float = 0.5,
        occlusion: float = 0.25,
        occluder_size: Range = (0.2, 0.4),
        occluder_fill: Literal["black", "colour", "noise"] = "black",
    ) -> None:
        super().__init__(flip, [])
        self.scale = _check_range("scale", scale, 0.01)
        self.occluder_size = _check_range("occluder_size", occluder_size, 0.0)
        _check_least(rotation=rotation, translation=translation)
        self.rotation, self.translation = rotation, translation
        check_number("augmentation option occlusion", occlusion, 0, 1)
        self.occlusion, self.occluder_fill = occlusion, occluder_fill

    def matrix(self, image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random similarity."""
        scale = math.exp(rng.uniform(math.log(self.scale[0]), math.log(self.scale[1])))
        x, y = rng.uniform(-self.translation, self.translation, size=2) * image_size
        return similarity_about_centre(image_size, scale, rng.uniform(-self.rotation, self.rotation), (x, y))

    def appearance(
        self, image: NDArray[np.uint8], landmarks: NDArray[np.float32] | None, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Cover part of the face by a box; nothing is done where there are no landmarks to measure the eyes by."""
        if rng.random() >= self.occlusion or landmarks is None:
            return image
        right, left = outer_eye_corners(len(landmarks))
        side = rng.uniform(*self.occluder_size) * float(np.linalg.norm(landmarks[left] - landmarks[right]))
        low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
        start = np.round(rng.uniform(low, high) - side / 2).astype(int)
        limit = (image.shape[1], image.shape[0])
        corner, opposite = np.clip(start, 0, limit), np.clip(start + round(side), 0, limit)
        if (opposite <= corner).any():
            return image
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        from albumentations.augmentations.dropout.functional import cutout

        fill = {"black": 0, "colour": "random_uniform", "noise": "random"}[self.occluder_fill]
        covered: NDArray[np.uint8] = cutout(image, np.array([[*corner, *opposite]]), fill, rng)
        return covered


class PRNetAugmentation(_Augmentation):
    """PRNet, section 3.3: rotation +-45 degrees, shift 10 %, scale 0.9 to 1.2, channel gains, noise-texture occluders.

    The paper does not say how often or how large the occluders are.

    Args:
        scale: Range of the factor on the size of the face, uniform.
        rotation: Largest rotation in degrees, uniform.
        translation: Largest shift as a fraction of the image, uniform in x and y.
        channel_gain: Range of the factor on each colour channel.
        occlusion: Probability of occluders.
        occluders: Range of their number.
        occluder_size: Range of their sides over the image's.
        flip: Probability of a reflection; the paper uses none, and a reflected face has no position map.
    """

    def __init__(
        self,
        scale: Range = (0.9, 1.2),
        rotation: float = 45.0,
        translation: float = 0.1,
        channel_gain: Range = (0.6, 1.4),
        occlusion: float = 0.25,
        occluders: tuple[int, int] = (1, 2),
        occluder_size: Range = (0.1, 0.3),
        flip: float = 0.0,
    ) -> None:
        check_number("augmentation option occlusion", occlusion, 0, 1)
        _check_range("occluders", occluders, 1)
        _check_range("occluder_size", occluder_size, 0.0)
        _check_range("channel_gain", channel_gain, 0.0)
        holes = {"hole_height_range": occluder_size, "hole_width_range": occluder_size, "num_holes_range": occluders}
        gains = {"multiplier": channel_gain, "per_channel": True, "elementwise": False, "p": 1.0}
        super().__init__(
            flip,
            [("MultiplicativeNoise", gains), ("CoarseDropout", {**holes, "fill": "random", "p": occlusion})],
        )
        self.scale = _check_range("scale", scale, 0.1)
        _check_least(rotation=rotation, translation=translation)
        self.rotation, self.translation = rotation, translation

    def matrix(self, image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random similarity."""
        x, y = rng.uniform(-self.translation, self.translation, size=2) * image_size
        degrees = rng.uniform(-self.rotation, self.rotation)
        return similarity_about_centre(image_size, rng.uniform(*self.scale), degrees, (x, y))


class Pix2faceAugmentation(_Augmentation):
    """pix2face: random resize-crop, gamma and colour balance, with the numbers of its published ``data.py``.

    That code takes a crop of 1 to 1.8 times the face box, shifted by up to a quarter of it, where its test crop is 1.4
    times: set the data's margin to 1.4 as well. It applies gamma to values up to 255, which leaves most images white or
    black; here gamma acts on values up to 1.

    Args:
        margin: Side of the plain crop over the box's, as in the data.
        crop: Range of the side of the crop over the box's, uniform.
        translation: Largest shift as a fraction of the box, uniform in x and y.
        rotation: Largest rotation in degrees, uniform.
        gamma: Range of the exponent.
        colour_balance: Largest loss of a colour channel, relative to the strongest.
        flip: Probability of a reflection; the code uses none, and a reflected face has no PNCC.
    """

    def __init__(
        self,
        margin: float = 1.4,
        crop: Range = (1.0, 1.8),
        translation: float = 0.25,
        rotation: float = 20.0,
        gamma: Range = (0.8, 1.2),
        colour_balance: float = 0.2,
        flip: float = 0.0,
    ) -> None:
        _check_range("gamma", gamma, 0.01)
        limits = (100 * gamma[0], 100 * gamma[1])
        super().__init__(flip, [("RandomGamma", {"gamma_limit": limits, "p": 1.0})])
        self.margin, self.crop = margin, _check_range("crop", crop, 0.1)
        check_number("augmentation option margin", margin, 0.1)
        check_number("augmentation option colour_balance", colour_balance, 0, 0.99)
        _check_least(rotation=rotation, translation=translation)
        self.rotation, self.translation, self.colour_balance = rotation, translation, colour_balance

    def matrix(self, image_size: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """A random similarity: shift, then resize and turn about the centre of the crop."""
        scale = self.margin / rng.uniform(*self.crop)
        degrees = rng.uniform(-self.rotation, self.rotation)
        moved = similarity_about_centre(image_size, scale, degrees, (0.0, 0.0))
        shift = rng.uniform(-self.translation, self.translation, size=2) * image_size / self.margin
        moved[:, 2] += moved[:, :2] @ shift
        return moved

    def appearance(
        self, image: NDArray[np.uint8], landmarks: NDArray[np.float32] | None, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Weaken colour channels, then apply gamma."""
        gains = 1 - self.colour_balance * rng.random(3)
        balanced = (image * (gains / gains.max())).round().astype(np.uint8)
        return super().appearance(balanced, landmarks, rng)
