"""What a picture shows, drawn or to be drawn: one row per picture, in named tensors.

Colours of things are linear RGB, those of backgrounds and of things in the way display values (gamma-encoded), both
with 1 as white. Lengths are millimetres on the mean face, angles radians, unless said otherwise. A value is ``[B, 1]``
where no shape is given. Things that a picture has or not are 0 or 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self


@dataclass(frozen=True)
class Rows:
    """Tensors with the same number of rows, or groups of them."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with each tensor changed, always in the same order."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            changed[field.name] = value.map(change) if isinstance(value, Rows) else change(value)
        return replace(self, **changed)

    def tensors(self) -> Iterator[Tensor]:
        """Each tensor, in the order of :meth:`map`."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Rows):
                yield from value.tensors()
            else:
                yield value


@dataclass(frozen=True)
class Skin(Rows):
    """The bare face.

    Attributes:
        colour: ``[B, 3]``.
        place: ``[B, 2]`` where in the noise the person is.
        blotches: Strength of uneven brightness, coarse.
        red_blotches: Strength of uneven redness.
        medium_blotches: Strength of uneven brightness, finer.
        grain: Strength of pores.
        flush: ``[B, 2]`` redness of cheeks and nose.
        under_eye: Darkness below the eyes.
        nostril: Darkness of the nostrils.
        freckles: Strength.
        gloss: Strength of highlights.
    """

    colour: Tensor
    place: Tensor
    blotches: Tensor
    red_blotches: Tensor
    medium_blotches: Tensor
    grain: Tensor
    flush: Tensor
    under_eye: Tensor
    nostril: Tensor
    freckles: Tensor
    gloss: Tensor


@dataclass(frozen=True)
class Hair(Rows):
    """Hair, or a cap, which is hair of a cloth's colour with a straight line.

    Attributes:
        colour: ``[B, 3]``.
        contrast: Of strands.
        gloss: Strength of highlights.
        line: ``[B, 24]`` height at which it begins, at azimuths -180, -165, ... degrees.
        thickness: By which it lifts the scalp.
        crown: How much more at the top, as a part.
        bumps: Uneven thickness.
        ragged: How uneven the hairline is.
        soft: Over how many millimetres the hairline fades.
        long: Whether hair hangs down.
        end: Height at which it ends.
        opening: ``[B, 2]`` azimuths between which it leaves the face free, to the left and right.
        flare: How it widens below the chin.
        wave: Depth of waves.
        phase: Of waves.
    """

    colour: Tensor
    contrast: Tensor
    gloss: Tensor
    line: Tensor
    thickness: Tensor
    crown: Tensor
    bumps: Tensor
    ragged: Tensor
    soft: Tensor
    long: Tensor
    end: Tensor
    opening: Tensor
    flare: Tensor
    wave: Tensor
    phase: Tensor


@dataclass(frozen=True)
class Brows(Rows):
    """Eyebrows.

    Attributes:
        colour: ``[B, 3]``.
        strength: Opacity.
        half: Half their height at the nose.
        shift: Above the landmarks.
        tilt: How much higher they end than they start.
        arch: Height of the bow.
        start: Where they start, as a part of the landmarks' line.
        end: Where they end.
    """

    colour: Tensor
    strength: Tensor
    half: Tensor
    shift: Tensor
    tilt: Tensor
    arch: Tensor
    start: Tensor
    end: Tensor


@dataclass(frozen=True)
class Lids(Rows):
    """Eyelids.

    Attributes:
        lashes: Darkness of the lashes.
        lash_width: Their width.
        colour: ``[B, 3]`` of the upper lid.
        strength: Opacity of this colour.
    """

    lashes: Tensor
    lash_width: Tensor
    colour: Tensor
    strength: Tensor


@dataclass(frozen=True)
class Lips(Rows):
    """Lips.

    Attributes:
        colour: ``[B, 3]``.
        strength: Opacity.
        soft: Width of their outline.
        gloss: Strength of highlights.
        line: Darkness of the line between them.
    """

    colour: Tensor
    strength: Tensor
    soft: Tensor
    gloss: Tensor
    line: Tensor


@dataclass(frozen=True)
class Eyes(Rows):
    """Eyeballs.

    Attributes:
        iris: ``[B, 3]`` colour.
        radius: Of the iris over the width of the eye.
        pupil: Radius over that of the iris.
        white: ``[B, 3]`` colour.
    """

    iris: Tensor
    radius: Tensor
    pupil: Tensor
    white: Tensor


@dataclass(frozen=True)
class Mouth(Rows):
    """Inside of the mouth.

    Attributes:
        raised: ``[B, 2]`` upper and lower teeth.
        colour: ``[B, 3]``.
        teeth: ``[B, 3]`` colour.
    """

    raised: Tensor
    colour: Tensor
    teeth: Tensor


@dataclass(frozen=True)
class Beard(Rows):
    """Beard and moustache.

    Attributes:
        beard: Opacity.
        moustache: Opacity.
        colour: ``[B, 3]``.
    """

    beard: Tensor
    moustache: Tensor
    colour: Tensor


@dataclass(frozen=True)
class Glasses(Rows):
    """Glasses.

    Attributes:
        worn: Whether there are any.
        dark: Whether they are sunglasses.
        width: Half the width of a lens.
        height: Half its height.
        rim: Thickness of the frame.
        drop: How far above the eyes' middle they sit.
        temple: Height of the temples.
        frame: ``[B, 3]`` colour.
        lens: ``[B, 3]`` colour of dark lenses.
    """

    worn: Tensor
    dark: Tensor
    width: Tensor
    height: Tensor
    rim: Tensor
    drop: Tensor
    temple: Tensor
    frame: Tensor
    lens: Tensor


@dataclass(frozen=True)
class Clothes(Rows):
    """Neck, shoulders and what is worn there.

    Attributes:
        colour: ``[B, 3]``.
        second: ``[B, 3]`` colour of the stripes.
        stripes: ``[B, 3]`` frequency down and across, opacity.
        collar: Height of the neckline.
        collar_depth: How far it dips in front.
        collar_width: Width of the dip.
        shoulders: Width over the usual one.
        neck: How much longer the neck is than usual.
    """

    colour: Tensor
    second: Tensor
    stripes: Tensor
    collar: Tensor
    collar_depth: Tensor
    collar_width: Tensor
    shoulders: Tensor
    neck: Tensor


@dataclass(frozen=True)
class Person(Rows):
    """Who is seen, but for the shape of the face."""

    skin: Skin
    hair: Hair
    brows: Brows
    lids: Lids
    lips: Lips
    eyes: Eyes
    mouth: Mouth
    beard: Beard
    glasses: Glasses
    clothes: Clothes


@dataclass(frozen=True)
class Gaze(Rows):
    """Where the person looks.

    Attributes:
        offset: ``[B, 2]`` of the irises.
        glint: ``[B, 2]`` place of the reflection in them.
        brightness: Of the reflection.
    """

    offset: Tensor
    glint: Tensor
    brightness: Tensor


@dataclass(frozen=True)
class View(Rows):
    """Where the camera stands.

    Attributes:
        angles: ``[B, 3]`` pitch, yaw, roll.
        rotation: ``[B, 3, 3]`` of the head, the same.
        torso_rotation: ``[B, 3, 3]``.
        distance: Of the camera, mm; 1e9 without perspective.
        place: ``[B, 2]`` by which the face is off the middle, as parts of the side.
        zoom: Factor of the face's size.
        gaze: Where the person looks.
    """

    angles: Tensor
    rotation: Tensor
    torso_rotation: Tensor
    distance: Tensor
    place: Tensor
    zoom: Tensor
    gaze: Gaze


@dataclass(frozen=True)
class Light(Rows):
    """Three directional lights, some of them off, and ambient light from above and below.

    Attributes:
        directions: ``[B, 9]``, view frame.
        colours: ``[B, 9]``.
        sharpness: Of shadows.
        sky: ``[B, 3]``.
        ground: ``[B, 3]``.
        wrap: How far light reaches around, as a part.
        key: Mean brightness of the skin in the picture.
    """

    directions: Tensor
    colours: Tensor
    sharpness: Tensor
    sky: Tensor
    ground: Tensor
    wrap: Tensor
    key: Tensor


@dataclass(frozen=True)
class Background(Rows):
    """What is behind. Coordinates go from -1 to 1 over the picture.

    Attributes:
        first: ``[B, 3]`` one end of the gradient.
        second: ``[B, 3]`` the other end.
        direction: ``[B, 2]`` of the gradient.
        shapes: ``[B, 48]``: of 6 shapes centre, angle, half sizes, whether a box, sharpness, opacity.
        colours: ``[B, 18]`` of the shapes.
        noise_scale: ``[B, 2]``.
        noise_place: ``[B, 2]``.
        noise: ``[B, 6]`` strengths of red, green, blue, all, medium, white.
        photograph: Whether a photograph of the user's folder is taken instead.
        photograph_crop: ``[B, 5]`` which, top, left, size, mirrored; uniform numbers.
    """

    first: Tensor
    second: Tensor
    direction: Tensor
    shapes: Tensor
    colours: Tensor
    noise_scale: Tensor
    noise_place: Tensor
    noise: Tensor
    photograph: Tensor
    photograph_crop: Tensor


@dataclass(frozen=True)
class Occlusion(Rows):
    """What is in front. Coordinates go from -1 to 1 over the picture.

    Attributes:
        shapes: ``[B, 16]``: of 2 shapes centre, angle, half sizes, exponent of roundness, sharpness, opacity.
        colours: ``[B, 6]`` of the shapes.
        lines: ``[B, 14]``: of 2 lines angle, place, bend, half width, red and blue, green, opacity.
        cut: ``[B, 4]`` left, right and lower end of the picture, brightness beyond.
    """

    shapes: Tensor
    colours: Tensor
    lines: Tensor
    cut: Tensor


@dataclass(frozen=True)
class Exposure(Rows):
    """What the camera and the file do to the picture.

    Attributes:
        blur: ``[B, 2]`` standard deviation across and down, pixels.
        saturation: Factor of colourfulness.
        cast: ``[B, 3]`` factors of the channels.
        middle: Brightness that contrast leaves as it is.
        contrast: Factor.
        brightness: Added.
        gamma: Exponent.
        luma_noise: Standard deviation of brightness.
        chroma_noise: Standard deviation of each channel.
        grain_place: ``[B, 2]`` where in the noise.
        jpeg: Factor of the quantisation tables, 0 without compression.
    """

    blur: Tensor
    saturation: Tensor
    cast: Tensor
    middle: Tensor
    contrast: Tensor
    brightness: Tensor
    gamma: Tensor
    luma_noise: Tensor
    chroma_noise: Tensor
    grain_place: Tensor
    jpeg: Tensor


@dataclass(frozen=True)
class Scene(Rows):
    """All that B pictures show.

    Attributes:
        identity: ``[B, Ki]`` standard deviations.
        expression: ``[B, Ke]`` standard deviations or activations.
        person: Who.
        view: From where.
        light: Lit how.
        background: In front of what.
        occlusion: Behind what.
        exposure: Taken with what.
    """

    identity: Tensor
    expression: Tensor
    person: Person
    view: View
    light: Light
    background: Background
    occlusion: Occlusion
    exposure: Exposure

    def __len__(self) -> int:
        return int(self.identity.shape[0])

    def take(self, rows: Tensor) -> Scene:
        """Some of the pictures, int64 ``[N]``."""
        return self.map(lambda value: value.index_select(0, rows))

    def to(self, device: torch.device | str) -> Scene:
        """The scene on another device."""
        return self.map(lambda value: value.to(device, non_blocking=True))

    def pack(self) -> Tensor:
        """One tensor ``[B, M]``, which goes to a device in one piece."""
        return torch.cat([value.flatten(1) for value in self.tensors()], dim=1)

    def unpack(self, packed: Tensor) -> Scene:
        """The scene that :meth:`pack` was called for, of whatever pictures and device; ``self`` gives the shapes."""
        shapes = [value.shape[1:] for value in self.tensors()]
        parts = zip(torch.split(packed, [shape.numel() for shape in shapes], dim=1), shapes)

        def part(_: Tensor) -> Tensor:
            values, shape = next(parts)
            return values.reshape(-1, *shape)

        return self.map(part)
