"""What synthetic faces may look like."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from lightning_faces.errors import ConfigurationError

_FRACTION = (0.0, 1.0)
_RANGES = {
    "yaw_range": (0.0, 180.0), "face_fraction": (0.1, 1.0), "yaw_uniform": _FRACTION, "perspective": _FRACTION,
    "glasses": _FRACTION, "jpeg": _FRACTION, "dark": _FRACTION, "grey": _FRACTION,
}  # fmt: skip
"""Least and largest values of options; other numbers are at least 0."""


@dataclass(frozen=True)
class SynthesisOptions:
    """What synthetic faces look like. The booleans leave out one element at a time, for ablations.

    Attributes:
        yaw_range: Yaw in degrees is uniform within plus and minus this, ...
        yaw_uniform: ... for this part of the samples; the others are normal with ``yaw_std``.
        yaw_std: Degrees.
        pitch_std: Degrees.
        roll_std: Degrees.
        identity_scale: Standard deviations of identities are multiplied by this.
        stretch: Standard deviation of the logarithm of an extra stretch along each axis, within the model's modes.
        expression_scale: Expressions are multiplied by this.
        perspective: Part of the samples with visible perspective.
        face_fraction: Longer side of the landmarks' box over the side of the picture.
        hair: Hair, bald heads included; without it all are bald.
        face_drawing: Brows, lips, irises, lids, beard, blotches; without it a face is of one colour.
        lights: One to three coloured lights from anywhere; without it one white light near the viewer.
        glasses: Part of the subjects that wear glasses.
        backgrounds: Without it, one flat colour.
        background_folder: Folder of images without faces, used for half of the backgrounds.
        occluders: Things in front of the face, and cut-off pictures.
        degradation: Blur, noise, JPEG, colour cast, contrast, grey pictures.
        blur: Widths of blur, out of focus and by motion, are multiplied by this; at least 0.45 pixels stay.
        noise: The strengths of noise are multiplied by this.
        jpeg: Part of the samples that are compressed.
        dark: Part of the samples that are under-exposed.
        grey: Part of the samples without colour.

    Raises:
        ConfigurationError: If a value has the wrong type or is out of range.
    """

    yaw_range: float = 92.0
    yaw_uniform: float = 0.75
    yaw_std: float = 25.0
    pitch_std: float = 17.0
    roll_std: float = 17.0
    identity_scale: float = 1.1
    stretch: float = 0.035
    expression_scale: float = 1.0
    perspective: float = 0.6
    face_fraction: float = 0.6
    hair: bool = True
    face_drawing: bool = True
    lights: bool = True
    glasses: float = 0.14
    backgrounds: bool = True
    background_folder: str | None = None
    occluders: bool = True
    degradation: bool = True
    blur: float = 1.0
    noise: float = 1.0
    jpeg: float = 0.4
    dark: float = 0.12
    grey: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool):
                fits, wanted = isinstance(value, bool), "true or false"
            elif field.default is None:
                fits, wanted = value is None or isinstance(value, str), "the path of a folder, or none"
            else:
                low, high = _RANGES.get(field.name, (0.0, math.inf))
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                fits = number and math.isfinite(value) and low <= value <= high
                wanted = (
                    f"a number of at least {low:g}" if high == math.inf else f"a number between {low:g} and {high:g}"
                )
            if not fits:
                raise ConfigurationError(f"Synthesis option {field.name} is {value!r}; it must be {wanted}.")
            if isinstance(field.default, float):
                # The same value has the same hash, however it is written.
                object.__setattr__(self, field.name, float(value))
