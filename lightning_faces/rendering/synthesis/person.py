"""Who a picture shows: drawing of skin, hair, features, expression and clothes.

Numbers are drawn in a fixed order, which decides what a seed looks like. They are in double precision, rounded when the
scene is complete: the last bit of a float32 function can depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.synthesis.mesh import HAIRLINE
from lightning_faces.rendering.synthesis.noise import Draws
from lightning_faces.rendering.synthesis.options import SynthesisOptions
from lightning_faces.rendering.synthesis.scene import (
    Beard,
    Brows,
    Clothes,
    Eyes,
    Glasses,
    Hair,
    Lids,
    Lips,
    Mouth,
    Person,
    Skin,
)

GAMMA = 2.2
# sRGB skin colours from light to dark.
_SKIN = ((250, 222, 200), (241, 205, 178), (224, 176, 144), (190, 136, 104), (141, 93, 66), (92, 58, 41), (58, 38, 29))
# sRGB hair colours and how common they are.
_HAIR = (
    ((18, 16, 16), 0.30), ((42, 29, 22), 0.26), ((70, 46, 30), 0.14), ((104, 70, 44), 0.09), ((164, 124, 78), 0.07),
    ((205, 172, 122), 0.05), ((122, 56, 30), 0.03), ((150, 148, 146), 0.04), ((222, 220, 216), 0.02),
)  # fmt: skip
_IRIS = ((48, 28, 18), (74, 46, 26), (98, 74, 40), (84, 96, 66), (84, 112, 134), (120, 138, 148))
_IRIS_SHARE = (0.40, 0.25, 0.10, 0.08, 0.10, 0.07)
# Facial actions: how often they are seen, and how strong they are at most.
_PAIRED_ACTIONS = (
    ("eyeSquint", 0.25, 0.9), ("eyeWide", 0.12, 0.9), ("browDown", 0.22, 0.9), ("browOuterUp", 0.2, 0.9),
    ("mouthFrown", 0.15, 0.8), ("mouthStretch", 0.12, 0.7), ("mouthPress", 0.1, 0.7), ("mouthDimple", 0.1, 0.7),
    ("mouthLowerDown", 0.14, 0.8), ("mouthUpperUp", 0.1, 0.6), ("noseSneer", 0.12, 0.7),
)  # fmt: skip
_SINGLE_ACTIONS = (
    ("browInnerUp", 0.2, 0.9), ("mouthPucker", 0.1, 0.8), ("mouthFunnel", 0.1, 0.6), ("mouthRollLower", 0.1, 0.6),
    ("mouthRollUpper", 0.08, 0.6), ("mouthShrugLower", 0.1, 0.6), ("mouthShrugUpper", 0.08, 0.5),
    ("cheekPuff", 0.08, 0.7), ("jawForward", 0.08, 0.6), ("jawLeft", 0.07, 0.5), ("jawRight", 0.07, 0.5),
    ("mouthLeft", 0.07, 0.5), ("mouthRight", 0.07, 0.5),
)  # fmt: skip


def linear(colour: Tensor) -> Tensor:
    """Linear RGB of 8-bit sRGB, by a plain power."""
    return (colour / 255.0) ** GAMMA


def _choose(draw: Tensor, shares: Sequence[float]) -> Tensor:
    """Index drawn by shares from a uniform number ``[B, 1]``; ``[B]``."""
    edges = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(edges / edges[-1], draw[:, 0].contiguous(), right=True).clamp_max(len(shares) - 1)


def draw_identity(who: Draws, model: MorphableModel, options: SynthesisOptions, stretches: Tensor) -> Tensor:
    """Identity coefficients ``[B, Ki]``; ``stretches`` ``[3, Ki]`` are those of a mean stretched along an axis."""
    identity = who.normal(std=options.identity_scale, count=model.num_identity)
    stretch = torch.expm1(who.normal(std=options.stretch, count=3))
    for axis in range(3):
        identity = identity + stretch[:, axis : axis + 1] * stretches[axis]
    return identity


def draw_expression(moment: Draws, model: MorphableModel) -> Tensor:
    """Expression coefficients ``[B, Ke]``: facial actions where the model names them, else its modes at random."""
    names = {name: index for index, name in enumerate(model.expression_names)}
    if "jawOpen" not in names:
        count = model.num_expression
        strength = moment.uniform(0.0, 1.0)
        if model.expression_kind == "pca":
            return moment.normal(count=count) * strength
        return (moment.uniform(-0.7, 1.0, count)).clamp_min(0.0) * strength
    columns = [0.0 * moment.uniform()[:, 0]] * len(names)

    def put(name: str, amount: Tensor) -> None:
        # Other models have as a pair what the embedded model has once (browInnerUp, cheekPuff).
        for known in (name,) if name in names else (name + "Left", name + "Right"):
            if known in names:
                columns[names[known]] = columns[names[known]] + amount[:, 0]

    def put_pair(name: str, amount: Tensor) -> None:
        lopsided = moment.normal(std=0.15)
        alone = moment.uniform()
        put(name + "Left", amount * (1.0 + lopsided).clamp_min(0.0) * (alone > 0.06))
        put(name + "Right", amount * (1.0 - lopsided).clamp_min(0.0) * (alone < 0.94))

    smile = moment.happens(0.45) * moment.uniform(0.15, 1.0)
    put_pair("mouthSmile", smile)
    put_pair("cheekSquint", smile * moment.uniform(0.0, 0.9))
    put_pair("mouthUpperUp", smile * (moment.uniform(-0.6, 0.7)).clamp_min(0.0))
    put("jawOpen", moment.happens(0.45) * moment.uniform() ** 1.4)
    put_pair("eyeBlink", moment.happens(0.25) * moment.uniform(0.15, 1.0))
    for name, probability, most in _PAIRED_ACTIONS:
        put_pair(name, moment.happens(probability) * moment.uniform(0.0, most))
    for name, probability, most in _SINGLE_ACTIONS:
        put(name, moment.happens(probability) * moment.uniform(0.0, most))
    look_x, look_y = moment.normal(std=0.35), moment.normal(std=0.25)
    for side, inwards in (("Left", -1.0), ("Right", 1.0)):
        put("eyeLookIn" + side, (inwards * look_x).clamp(0.0, 1.0))
        put("eyeLookOut" + side, (-inwards * look_x).clamp(0.0, 1.0))
        put("eyeLookUp" + side, look_y.clamp(0.0, 1.0))
        put("eyeLookDown" + side, (-look_y).clamp(0.0, 1.0))
    return torch.stack(columns, dim=1)


@dataclass(frozen=True)
class _Colouring:
    """Colours that the features of a person have in common.

    Attributes:
        skin: ``[B, 3]`` linear RGB.
        darkness: ``[B, 1]`` of the skin, 0 to 1.
        dimmed: ``[B, 1]`` factor of white things beside dark skin.
        hair_like: ``[B, 3]`` near the hair's natural colour.
        made_up: ``[B, 1]`` whether there is make-up.
        drawn: 1, or 0 where faces are of one colour.
    """

    skin: Tensor
    darkness: Tensor
    dimmed: Tensor
    hair_like: Tensor
    made_up: Tensor
    drawn: float


def draw_person(who: Draws, options: SynthesisOptions) -> Person:
    """A person, but for the shape of the face."""
    drawn = float(options.face_drawing)
    tone = torch.where(who.happens(0.6) > 0.5, who.uniform(0.0, 0.42), who.uniform(0.15, 1.0)) * (len(_SKIN) - 1)
    darkness = tone / (len(_SKIN) - 1)
    skin = _skin(who, tone, darkness, drawn)
    dimmed = 0.45 + 0.55 * (skin.colour.mean(1, keepdim=True) / 0.5).clamp(0.0, 1.0)

    shares = [share for _, share in _HAIR]
    palette = torch.tensor([c for c, _ in _HAIR], dtype=torch.float64)
    # Dark skin mostly goes with black hair.
    pick = who.uniform() * torch.where(darkness > 0.55, 0.5, 1.0)
    natural = linear(palette[_choose(pick, shares)]) * torch.exp(who.normal(std=0.2) + who.normal(std=0.08, count=3))
    dyed = who.happens(0.05) > 0.5
    hair = _hair(who, torch.where(dyed, who.uniform(0.0, 0.9, 3) ** 1.6, natural), options)
    brown = linear(palette[_choose(who.uniform(0.0, 0.85), shares)])
    hair_like = torch.lerp(torch.where(dyed, brown, natural) * 0.7, brown, who.uniform(0.0, 0.6))

    brows = _brows(who, torch.minimum(hair_like, skin.colour * 0.75), drawn)
    lashes, lash_width = who.uniform(0.45, 1.1) * drawn, torch.exp(who.normal(0.0, 0.3))
    colours = _Colouring(skin.colour, darkness, dimmed, hair_like, who.happens(0.22), drawn)
    return Person(
        skin=skin,
        hair=hair,
        brows=brows,
        lids=_lids(who, lashes, lash_width, colours),
        lips=_lips(who, colours),
        eyes=_eyes(who, colours),
        mouth=_mouth(who, colours),
        beard=_beard(who, colours),
        glasses=_glasses(who, options),
        clothes=_clothes(who),
    )


def _skin(who: Draws, tone: Tensor, darkness: Tensor, drawn: float) -> Skin:
    palette = torch.tensor(_SKIN, dtype=torch.float64)
    low = tone[:, 0].floor().long().clamp_max(len(_SKIN) - 2)
    colour = torch.lerp(palette[low], palette[low + 1], tone - low[:, None])
    return Skin(
        colour=linear(colour) * torch.exp(who.normal(std=0.07, count=3) + who.normal(std=0.08)),
        place=who.uniform(count=2),
        blotches=who.uniform(0.0, 1.0) ** 2 * 0.13 * drawn,
        red_blotches=who.uniform(0.0, 0.1) * drawn,
        medium_blotches=who.uniform(0.0, 0.09) * drawn,
        grain=who.uniform(0.01, 0.09) * drawn,
        flush=who.uniform(0.0, 1.0, 2) * drawn,
        under_eye=who.uniform(-0.2, 0.6).clamp_min(0.0) * drawn,
        nostril=who.uniform(0.2, 0.85) * drawn,
        freckles=who.happens(0.15) * who.uniform(0.2, 1.0) * (1.0 - darkness) * drawn,
        gloss=who.uniform(0.01, 0.12),
    )


def _hair(who: Draws, colour: Tensor, options: SynthesisOptions) -> Hair:
    contrast, gloss = who.uniform(0.15, 0.55), who.uniform(0.0, 0.35)
    line = torch.tensor(HAIRLINE + HAIRLINE[-2:0:-1], dtype=torch.float64).roll(12)[None]
    azimuth = (torch.arange(24) - 12).abs() * 15.0
    front = torch.clamp(1.0 - azimuth / 60.0, 0.0, 1.0)[None]
    line = line + who.normal(0.0, 6.0) + who.normal(std=3.0, count=24)
    line = line + front * who.normal(0.0, 9.0)
    receding = who.happens(0.15) * who.uniform(8.0, 45.0)
    temple = torch.exp(-0.5 * ((azimuth - 38.0) / 18.0).square())[None]
    line = line + receding * (0.7 * front + temple)
    # A fringe hangs into the forehead, on one side more than on the other.
    fringe = who.happens(0.28) * who.uniform(8.0, 42.0)
    parted = 1.0 + who.normal(std=0.35) * torch.sin((torch.arange(24) - 12) * math.pi / 12.0)[None]
    line = line - fringe * front**0.7 * parted
    sideburn = torch.exp(-0.5 * ((azimuth - 78.0) / 9.0).square())[None]
    line = line - sideburn * who.uniform(-12.0, 38.0)
    bald = who.happens(0.09) if options.hair else torch.ones_like(receding)
    short, full, huge = who.uniform(0.5, 7.0), who.uniform(6.0, 26.0), who.uniform(25.0, 60.0)
    style = who.uniform()
    thick = torch.where(style < 0.38, short, torch.where(style < 0.94, full, huge)) * (1.0 - bald)
    crown, bumps = who.uniform(-0.2, 0.9), thick * who.uniform(0.0, 0.22)
    ragged, soft, long = who.uniform(0.1, 1.1), who.uniform(0.4, 3.5), who.happens(0.48) * (1.0 - bald)
    length = who.uniform()
    end = 20.0 - 40.0 * length - 230.0 * length * who.uniform()
    opening = who.uniform(0.8, 1.7)
    return Hair(
        colour=colour,
        contrast=contrast,
        gloss=gloss,
        line=line + bald * 400.0,
        thickness=thick,
        crown=crown,
        bumps=bumps,
        ragged=ragged,
        soft=soft,
        long=long,
        end=end,
        opening=opening + who.normal(std=0.12, count=2),
        flare=who.normal(0.25, 0.45),
        wave=who.happens(0.5) * who.uniform(0.0, 7.0),
        phase=who.uniform(0.0, 6.28),
    )


def _brows(who: Draws, colour: Tensor, drawn: float) -> Brows:
    return Brows(
        colour=colour,
        strength=torch.where(who.happens(0.12) > 0.5, who.uniform(0.15, 0.6), who.uniform(0.65, 1.15)) * drawn,
        half=who.uniform(2.0, 5.4),
        shift=who.normal(-1.2, 1.6),
        tilt=who.normal(0.0, 3.0),
        arch=who.normal(0.0, 6.0),
        start=who.uniform(-0.08, 0.14),
        end=who.uniform(0.85, 1.12),
    )


def _lids(who: Draws, lashes: Tensor, lash_width: Tensor, colours: _Colouring) -> Lids:
    natural = colours.skin * who.uniform(0.55, 1.0)
    return Lids(
        lashes=lashes,
        lash_width=lash_width,
        colour=torch.where(colours.made_up > 0.5, colours.skin * who.uniform(0.05, 0.9, 3), natural),
        strength=(0.35 + 0.4 * colours.made_up) * who.uniform() * colours.drawn,
    )


def _lips(who: Draws, colours: _Colouring) -> Lips:
    tint = torch.stack([who.normal(m, s)[:, 0] for m, s in ((-0.15, 0.2), (-0.75, 0.25), (-0.6, 0.25))], 1)
    natural = colours.skin * torch.exp(tint)
    painted = linear(torch.cat((who.uniform(110, 235), who.uniform(15, 90), who.uniform(25, 100)), dim=1))
    return Lips(
        colour=torch.where(colours.made_up * who.happens(0.7) > 0.5, painted, natural),
        strength=who.uniform(0.5, 1.0) * colours.drawn,
        soft=who.uniform(0.3, 1.4),
        gloss=who.uniform(0.0, 0.35) * colours.drawn,
        line=who.uniform(0.3, 0.85) * colours.drawn,
    )


def _eyes(who: Draws, colours: _Colouring) -> Eyes:
    pick = _choose(who.uniform() * torch.where(colours.darkness > 0.5, 0.6, 1.0), _IRIS_SHARE)
    if not colours.drawn:
        return Eyes(
            iris=colours.skin, radius=who.uniform(0.19, 0.235), pupil=who.uniform(0.28, 0.62) * 0.0, white=colours.skin
        )
    return Eyes(
        iris=linear(torch.tensor(_IRIS, dtype=torch.float64)[pick]) * torch.exp(who.normal(std=0.25)),
        radius=who.uniform(0.19, 0.235),
        pupil=who.uniform(0.28, 0.62),
        white=who.uniform(0.38, 0.62) * colours.dimmed * torch.tensor([[1.0, 0.94, 0.9]]),
    )


def _mouth(who: Draws, colours: _Colouring) -> Mouth:
    return Mouth(
        raised=who.normal(std=1.0, count=2),
        colour=torch.cat((who.uniform(0.06, 0.25), who.uniform(0.01, 0.05), who.uniform(0.01, 0.05)), 1),
        teeth=who.uniform(0.25, 0.62) * colours.dimmed * torch.tensor([[1.0, 0.93, 0.8]]),
    )


def _beard(who: Draws, colours: _Colouring) -> Beard:
    bearded, kind = who.uniform(), who.uniform()
    amount = torch.where(
        bearded < 0.17, who.uniform(0.35, 1.0), torch.where(bearded < 0.36, who.uniform(0.05, 0.4), 0.0)
    )
    return Beard(
        beard=amount * (kind < 0.75) * colours.drawn,
        moustache=amount * (kind > 0.12) * who.uniform(0.5, 1.2) * colours.drawn,
        colour=torch.minimum(colours.hair_like * 0.9, colours.skin * 0.5),
    )


def _glasses(who: Draws, options: SynthesisOptions) -> Glasses:
    worn, dark = who.happens(options.glasses), who.happens(0.25)
    width, height = who.uniform(23.0, 31.0), who.uniform(13.0, 25.0)
    rim = torch.where(who.happens(0.5) > 0.5, who.uniform(0.7, 1.6), who.uniform(1.6, 4.5))
    drop, temple = who.uniform(-5.0, 2.0), who.uniform(1.5, 6.0)
    frame = torch.where(who.happens(0.65) > 0.5, who.uniform(0.005, 0.05), who.uniform(0.05, 0.6))
    return Glasses(
        worn=worn,
        dark=dark,
        width=width,
        height=height,
        rim=rim,
        drop=drop,
        temple=temple,
        frame=frame * (1.0 + who.normal(std=0.2, count=3)).clamp_min(0.1),
        lens=who.uniform(0.005, 0.07) * (1.0 + who.normal(std=0.3, count=3)).clamp_min(0.1),
    )


def _clothes(who: Draws) -> Clothes:
    dark = torch.where(who.happens(0.45) > 0.5, who.uniform(0.01, 0.08), who.uniform(0.1, 0.85))
    return Clothes(
        colour=(dark * torch.exp(who.normal(std=0.5, count=3)).clamp(0.2, 2.0)).clamp_max(0.9),
        second=who.uniform(0.02, 0.85) * torch.exp(who.normal(std=0.4, count=3)).clamp(0.3, 1.8),
        stripes=torch.cat((who.normal(std=0.2), who.normal(std=0.2), who.happens(0.35) * who.uniform(0.3, 1.0)), 1),
        collar=torch.where(who.happens(0.15) > 0.5, who.uniform(-118.0, -95.0), who.uniform(-185.0, -120.0)),
        collar_depth=who.happens(0.5) * who.uniform(0.0, 90.0),
        collar_width=who.uniform(25.0, 110.0),
        shoulders=who.uniform(0.78, 1.12),
        neck=who.uniform(-14.0, 22.0),
    )
