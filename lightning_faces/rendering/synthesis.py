"""Synthetic photographs of faces with exact targets, from seeds: no photograph of a face and no trained weight goes in.

A scene is drawn on the CPU from its seed (and its subject's) alone, so that sample i is the same in any batch, worker
and process. Rendering is the same code on CPU and CUDA; on the CPU it goes image by image, which is faster there and
makes the result independent of the batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import box_of_points, euler_to_matrix
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.maps import FaceMaps
from lightning_faces.rendering.noise import Draws
from lightning_faces.rendering.painting import FacePaint
from lightning_faces.rendering.photograph import BACKGROUND_SHAPES, LINES, OCCLUDERS, Photograph, power
from lightning_faces.rendering.renderer import Raster, rasterize_together, to_view
from lightning_faces.rendering.scene_mesh import HAIRLINE, NUM_PARTS, SKIN, SceneMesh

SYNTHESIS_VERSION = 5
"""Changes whenever the same seed gives another picture or target: part of the name of cached samples."""

EXTRA_TARGETS = frozenset(
    {
        "pncc", "offsets", "face_mask", "depth", "normals", "position_map", "shading", "geometry_mask",
        "previous_coefficients",
    }
)  # fmt: skip
"""Targets that :meth:`FaceSynthesizer.render` gives on request."""
REGION_TARGETS = frozenset({"pncc", "offsets", "face_mask", "depth", "normals"})
PREVIOUS_TARGETS = frozenset({"shading", "geometry_mask", "previous_coefficients"})
PLAIN_TARGETS = frozenset({"image", "landmarks", "visible", "pose", "coefficients", "vertices"})
"""Targets that it always gives."""
LIGHTS = 3
GEOMETRY_CHUNK = 8
"""Shapes are computed in matrix products of exactly this many rows, so that a row does not depend on its batch."""
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


@dataclass(frozen=True)
class Scene:
    """Parameters of a batch of pictures, CPU tensors with B rows.

    Attributes:
        identity: ``[B, Ki]`` standard deviations.
        expression: ``[B, Ke]`` standard deviations or activations.
        previous: ``[B, Ki + Ke]``, Richardson's alpha_t: uniform between a random face and the true one.
        look: Everything else by name, ``[B, C]`` (rotations ``[B, 3, 3]``); angles are in radians.
    """

    identity: Tensor
    expression: Tensor
    previous: Tensor
    look: dict[str, Tensor]

    def __len__(self) -> int:
        return int(self.identity.shape[0])

    def take(self, rows: Tensor) -> Scene:
        """Some of the rows, int64 ``[N]``."""
        look = {key: value.index_select(0, rows) for key, value in self.look.items()}
        identity, expression, previous = (
            value.index_select(0, rows) for value in (self.identity, self.expression, self.previous)
        )
        return Scene(identity, expression, previous, look)

    def to(self, device: torch.device | str) -> Scene:
        """The scene on another device."""
        look = {key: value.to(device, non_blocking=True) for key, value in self.look.items()}
        return Scene(self.identity.to(device), self.expression.to(device), self.previous.to(device), look)


def _linear(colour: Tensor) -> Tensor:
    return (colour / 255.0) ** GAMMA


def _choose(draw: Tensor, shares: Sequence[float]) -> Tensor:
    """Index drawn by shares from a uniform number ``[B, 1]``; ``[B]``."""
    edges = torch.tensor(shares, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(edges / edges[-1], draw[:, 0].contiguous(), right=True).clamp_max(len(shares) - 1)


class FaceSynthesizer(nn.Module):
    """Draws scenes from seeds and renders them with targets.

    Build it on the CPU and move it with ``.to(device)``, the face model included; scenes are always drawn on the CPU.

    Args:
        model: The face model, in float32; its UV map and region masks are used where it has them. Its albedo is not:
            skin, lips, brows and irises are painted (``painting.py``) in colours that are drawn.
        image_size: Side of the pictures in pixels.
        options: What faces look like.
        position_map_size: Side U of the position map.

    Raises:
        ConfigurationError: If the pictures are too small, or the model is in another precision.
    """

    stretch_identity: Tensor
    ambient_visibility: Tensor
    wrap_colour: Tensor
    towards_viewer: Tensor

    def __init__(
        self,
        model: MorphableModel,
        image_size: int,
        options: SynthesisOptions = SynthesisOptions(),
        position_map_size: int = 64,
    ) -> None:
        super().__init__()
        if image_size < 16:
            raise ConfigurationError(f"Pictures of {image_size} pixels are too small for a face: use at least 16.")
        if model.mean.dtype != torch.float32:
            raise ConfigurationError(
                f"Face model {model.name!r} is in {str(model.mean.dtype).removeprefix('torch.')}, but synthetic faces "
                "are drawn in float32: convert it with .float() first."
            )
        self.model = model
        self.image_size = image_size
        self.options = options
        self.scene_mesh = SceneMesh(model)
        mean_landmarks = model.landmarks(model.mean[None])[0]
        canonical = (mean_landmarks - mean_landmarks.new_tensor(self.scene_mesh.shift)) / self.scene_mesh.scale
        self.paint = FacePaint(self.scene_mesh, canonical.cpu())
        self.maps = FaceMaps(model, image_size, position_map_size)
        self.photograph = Photograph(image_size, self.paint.bank, options.background_folder)
        # Coefficients of the mean face stretched along x, y and z, by least squares in the identity modes.
        centred = model.mean - model.mean.mean(0)
        basis = (model.identity_basis * model.identity_std[:, None, None]).double()
        axes = torch.stack([centred.double() * torch.eye(3, dtype=torch.float64)[k] for k in range(3)])
        gram = basis.flatten(1) @ basis.flatten(1).T
        stretch = torch.linalg.solve(gram, basis.flatten(1) @ axes.flatten(1).T).T
        self.register_buffer("stretch_identity", stretch, persistent=False)
        self.register_buffer("ambient_visibility", 2.0 * self.scene_mesh.visibility.mean(0), persistent=False)
        self.register_buffer("wrap_colour", torch.tensor([[1.0], [0.45], [0.3]]), persistent=False)
        self.register_buffer("towards_viewer", torch.tensor([0.0, 0.0, 1.0]), persistent=False)

    # ---- drawing ----------------------------------------------------------------------------------------------------

    def sample(self, seeds: Sequence[int], yaw_thirds: bool = False, subject: Sequence[int] | None = None) -> Scene:
        r"""Draw scenes; row i depends on ``seeds[i]``, ``subject[i]`` and the options alone.

        Args:
            seeds: Non-negative integers of any size, one per picture.
            yaw_thirds: Draw \\|yaw\\| uniformly from 0-30, 30-60 or 60-90 degrees, by the seed modulo 3.
            subject: Seeds of the subjects: identity, expression, skin, hair and clothes depend on them alone, so that
                the views of a subject show one moment (CVGTCE compares them). By default the pictures' own seeds.

        Returns:
            The scenes, on the CPU.

        Raises:
            ConfigurationError: If there are no seeds.
        """
        if len(seeds) == 0:
            raise ConfigurationError("No seeds were given to draw synthetic faces from: give at least one.")
        subject = seeds if subject is None else subject
        who, moment, view = Draws(subject, 1), Draws(subject, 3), Draws(seeds, 2)
        # In double precision, rounded at the end: the last bit of a float32 function can depend on the batch.
        look = self._person(who)
        identity = self._identity(who)
        expression = self._expression(moment) * self.options.expression_scale
        look |= self._pose(view, seeds, yaw_thirds)
        look |= self._light(view, look)
        look |= self._surroundings(view)
        other = torch.cat((view.normal(count=self.model.num_identity), self._expression(view)), dim=1)
        true = torch.cat((identity, expression), dim=1)
        previous = torch.lerp(true, other, view.uniform())
        return Scene(
            identity.float(), expression.float(), previous.float(), {key: value.float() for key, value in look.items()}
        )

    @cached_property
    def _layout(self) -> dict[str, torch.Size]:
        """Names and shapes of a scene's values, one picture's."""
        one = self.sample([0])
        values = {"identity": one.identity, "expression": one.expression, "previous": one.previous, **one.look}
        return {key: value.shape[1:] for key, value in values.items()}

    def pack(self, scene: Scene) -> Tensor:
        """A scene as one tensor ``[B, M]``, which goes to a device in one piece."""
        values = {"identity": scene.identity, "expression": scene.expression, "previous": scene.previous, **scene.look}
        return torch.cat([values[key].flatten(1) for key in self._layout], dim=1)

    def unpack(self, packed: Tensor) -> Scene:
        """The scene that :meth:`pack` was given, on the tensor's device."""
        parts = torch.split(packed, [shape.numel() for shape in self._layout.values()], dim=1)
        look = {key: part.reshape(-1, *shape) for (key, shape), part in zip(self._layout.items(), parts, strict=True)}
        return Scene(look.pop("identity"), look.pop("expression"), look.pop("previous"), look)

    def _identity(self, who: Draws) -> Tensor:
        identity = who.normal(std=self.options.identity_scale, count=self.model.num_identity)
        stretch = torch.expm1(who.normal(std=self.options.stretch, count=3))
        for axis in range(3):
            identity = identity + stretch[:, axis : axis + 1] * self.stretch_identity[axis].cpu()
        return identity

    def _expression(self, view: Draws) -> Tensor:
        names = {name: index for index, name in enumerate(self.model.expression_names)}
        if "jawOpen" not in names:
            count = self.model.num_expression
            strength = view.uniform(0.0, 1.0)
            if self.model.expression_kind == "pca":
                return view.normal(count=count) * strength
            return (view.uniform(-0.7, 1.0, count)).clamp_min(0.0) * strength
        columns = [torch.zeros(view.uniform().shape[0], dtype=torch.float64)] * len(names)

        def put(name: str, amount: Tensor) -> None:
            # Other models have as a pair what the embedded model has once (browInnerUp, cheekPuff).
            for known in (name,) if name in names else (name + "Left", name + "Right"):
                if known in names:
                    columns[names[known]] = columns[names[known]] + amount[:, 0]

        def put_pair(name: str, amount: Tensor) -> None:
            lopsided = view.normal(std=0.15)
            alone = view.uniform()
            put(name + "Left", amount * (1.0 + lopsided).clamp_min(0.0) * (alone > 0.06))
            put(name + "Right", amount * (1.0 - lopsided).clamp_min(0.0) * (alone < 0.94))

        smile = view.happens(0.45) * view.uniform(0.15, 1.0)
        put_pair("mouthSmile", smile)
        put_pair("cheekSquint", smile * view.uniform(0.0, 0.9))
        put_pair("mouthUpperUp", smile * (view.uniform(-0.6, 0.7)).clamp_min(0.0))
        put("jawOpen", view.happens(0.45) * view.uniform() ** 1.4)
        put_pair("eyeBlink", view.happens(0.25) * view.uniform(0.15, 1.0))
        for name, probability, most in (
            ("eyeSquint", 0.25, 0.9), ("eyeWide", 0.12, 0.9), ("browDown", 0.22, 0.9), ("browOuterUp", 0.2, 0.9),
            ("mouthFrown", 0.15, 0.8), ("mouthStretch", 0.12, 0.7), ("mouthPress", 0.1, 0.7), ("mouthDimple", 0.1, 0.7),
            ("mouthLowerDown", 0.14, 0.8), ("mouthUpperUp", 0.1, 0.6), ("noseSneer", 0.12, 0.7),
        ):  # fmt: skip
            put_pair(name, view.happens(probability) * view.uniform(0.0, most))
        for name, probability, most in (
            ("browInnerUp", 0.2, 0.9), ("mouthPucker", 0.1, 0.8), ("mouthFunnel", 0.1, 0.6),
            ("mouthRollLower", 0.1, 0.6), ("mouthRollUpper", 0.08, 0.6), ("mouthShrugLower", 0.1, 0.6),
            ("mouthShrugUpper", 0.08, 0.5),
            ("cheekPuff", 0.08, 0.7), ("jawForward", 0.08, 0.6), ("jawLeft", 0.07, 0.5), ("jawRight", 0.07, 0.5),
            ("mouthLeft", 0.07, 0.5), ("mouthRight", 0.07, 0.5),
        ):  # fmt: skip
            put(name, view.happens(probability) * view.uniform(0.0, most))
        look_x, look_y = view.normal(std=0.35), view.normal(std=0.25)
        for side, inwards in (("Left", -1.0), ("Right", 1.0)):
            put("eyeLookIn" + side, (inwards * look_x).clamp(0.0, 1.0))
            put("eyeLookOut" + side, (-inwards * look_x).clamp(0.0, 1.0))
            put("eyeLookUp" + side, look_y.clamp(0.0, 1.0))
            put("eyeLookDown" + side, (-look_y).clamp(0.0, 1.0))
        return torch.stack(columns, dim=1)

    def _person(self, who: Draws) -> dict[str, Tensor]:
        drawn = float(self.options.face_drawing)
        look: dict[str, Tensor] = {}
        palette = torch.tensor(_SKIN, dtype=torch.float64)
        tone = torch.where(who.happens(0.6) > 0.5, who.uniform(0.0, 0.42), who.uniform(0.15, 1.0)) * (len(_SKIN) - 1)
        low = tone[:, 0].floor().long().clamp_max(len(_SKIN) - 2)
        colour = torch.lerp(palette[low], palette[low + 1], tone - low[:, None])
        skin = _linear(colour) * torch.exp(who.normal(std=0.07, count=3) + who.normal(std=0.08))
        look["skin"] = skin
        darkness = tone / (len(_SKIN) - 1)
        dimmed = 0.45 + 0.55 * (skin.mean(1, keepdim=True) / 0.5).clamp(0.0, 1.0)
        look["noise_offset"] = who.uniform(count=2)
        look["blotch"] = who.uniform(0.0, 1.0) ** 2 * 0.13 * drawn
        look["blotch_red"] = who.uniform(0.0, 0.1) * drawn
        look["blotch_medium"] = who.uniform(0.0, 0.09) * drawn
        look["skin_grain"] = who.uniform(0.01, 0.09) * drawn
        look["flush"] = who.uniform(0.0, 1.0, 2) * drawn
        look["under_eye"] = who.uniform(-0.2, 0.6).clamp_min(0.0) * drawn
        look["nostril"] = who.uniform(0.2, 0.85) * drawn
        look["freckles"] = who.happens(0.15) * who.uniform(0.2, 1.0) * (1.0 - darkness) * drawn
        look["skin_gloss"] = who.uniform(0.01, 0.12)

        shares = [share for _, share in _HAIR]
        hair_palette = torch.tensor([c for c, _ in _HAIR], dtype=torch.float64)
        # Dark skin mostly goes with black hair.
        pick = who.uniform() * torch.where(darkness > 0.55, 0.5, 1.0)
        hair = _linear(hair_palette[_choose(pick, shares)]) * torch.exp(
            who.normal(std=0.2) + who.normal(std=0.08, count=3)
        )
        dyed = who.happens(0.05) > 0.5
        look["hair_colour"] = torch.where(dyed, who.uniform(0.0, 0.9, 3) ** 1.6, hair)
        look["hair_contrast"] = who.uniform(0.15, 0.55)
        look["hair_gloss"] = who.uniform(0.0, 0.35)
        self._hair(who, look)

        brown = _linear(hair_palette[_choose(who.uniform(0.0, 0.85), shares)])
        hair_like = torch.lerp(torch.where(dyed, brown, hair) * 0.7, brown, who.uniform(0.0, 0.6))
        look["brow_colour"] = torch.minimum(hair_like, skin * 0.75)
        look["brow_strength"] = (
            torch.where(who.happens(0.12) > 0.5, who.uniform(0.15, 0.6), who.uniform(0.65, 1.15)) * drawn
        )
        look["brow_half"] = who.uniform(2.0, 5.4)
        look["brow_shift"] = who.normal(-1.2, 1.6)
        look["brow_tilt"] = who.normal(0.0, 3.0)
        look["brow_arch"] = who.normal(0.0, 6.0)
        look["brow_start"] = who.uniform(-0.08, 0.14)
        look["brow_end"] = who.uniform(0.85, 1.12)
        look["lashes"] = who.uniform(0.45, 1.1) * drawn
        look["lash_width"] = torch.exp(who.normal(0.0, 0.3))
        made_up = who.happens(0.22)
        natural_lid = skin * who.uniform(0.55, 1.0)
        look["lid_colour"] = torch.where(made_up > 0.5, skin * who.uniform(0.05, 0.9, 3), natural_lid)
        look["lid_strength"] = (0.35 + 0.4 * made_up) * who.uniform() * drawn
        natural = skin * torch.exp(
            torch.stack([who.normal(m, s)[:, 0] for m, s in ((-0.15, 0.2), (-0.75, 0.25), (-0.6, 0.25))], 1)
        )
        painted = _linear(torch.cat((who.uniform(110, 235), who.uniform(15, 90), who.uniform(25, 100)), dim=1))
        look["lip_colour"] = torch.where(made_up * who.happens(0.7) > 0.5, painted, natural)
        look["lip_strength"] = who.uniform(0.5, 1.0) * drawn
        look["lip_soft"] = who.uniform(0.3, 1.4)
        look["lip_gloss"] = who.uniform(0.0, 0.35) * drawn
        look["mouth_line"] = who.uniform(0.3, 0.85) * drawn
        iris = torch.tensor(_IRIS, dtype=torch.float64)[
            _choose(who.uniform() * torch.where(darkness > 0.5, 0.6, 1.0), _IRIS_SHARE)
        ]
        plain = skin if not self.options.face_drawing else None
        look["iris_colour"] = _linear(iris) * torch.exp(who.normal(std=0.25)) if plain is None else plain
        look["iris_radius"] = who.uniform(0.19, 0.235)
        look["pupil"] = who.uniform(0.28, 0.62) * drawn
        look["eye_white"] = (
            (who.uniform(0.38, 0.62) * dimmed * torch.tensor([[1.0, 0.94, 0.9]])) if plain is None else plain
        )
        look["teeth_height"] = who.normal(std=1.0, count=2)
        look["mouth_colour"] = torch.cat((who.uniform(0.06, 0.25), who.uniform(0.01, 0.05), who.uniform(0.01, 0.05)), 1)
        look["tooth_colour"] = who.uniform(0.25, 0.62) * dimmed * torch.tensor([[1.0, 0.93, 0.8]])

        bearded = who.uniform()
        kind = who.uniform()
        amount = torch.where(
            bearded < 0.17, who.uniform(0.35, 1.0), torch.where(bearded < 0.36, who.uniform(0.05, 0.4), 0.0)
        )
        look["beard"] = amount * (kind < 0.75) * drawn
        look["moustache"] = amount * (kind > 0.12) * who.uniform(0.5, 1.2) * drawn
        look["beard_colour"] = torch.minimum(hair_like * 0.9, skin * 0.5)

        wears = who.happens(self.options.glasses)
        look["glasses"] = wears
        look["sunglasses"] = who.happens(0.25)
        look["glasses_width"] = who.uniform(23.0, 31.0)
        look["glasses_height"] = who.uniform(13.0, 25.0)
        look["glasses_frame"] = torch.where(who.happens(0.5) > 0.5, who.uniform(0.7, 1.6), who.uniform(1.6, 4.5))
        look["glasses_drop"] = who.uniform(-5.0, 2.0)
        look["glasses_temple"] = who.uniform(1.5, 6.0)
        frame = torch.where(who.happens(0.65) > 0.5, who.uniform(0.005, 0.05), who.uniform(0.05, 0.6))
        look["frame_colour"] = frame * (1.0 + who.normal(std=0.2, count=3)).clamp_min(0.1)
        look["lens_colour"] = who.uniform(0.005, 0.07) * (1.0 + who.normal(std=0.3, count=3)).clamp_min(0.1)

        dark_cloth = torch.where(who.happens(0.45) > 0.5, who.uniform(0.01, 0.08), who.uniform(0.1, 0.85))
        look["cloth"] = dark_cloth * torch.exp(who.normal(std=0.5, count=3)).clamp(0.2, 2.0)
        look["cloth"] = look["cloth"].clamp_max(0.9)
        look["cloth_second"] = who.uniform(0.02, 0.85) * torch.exp(who.normal(std=0.4, count=3)).clamp(0.3, 1.8)
        look["stripes"] = torch.cat(
            (who.normal(std=0.2), who.normal(std=0.2), who.happens(0.35) * who.uniform(0.3, 1.0)), 1
        )
        look["collar"] = torch.where(who.happens(0.15) > 0.5, who.uniform(-118.0, -95.0), who.uniform(-185.0, -120.0))
        look["collar_depth"] = who.happens(0.5) * who.uniform(0.0, 90.0)
        look["collar_width"] = who.uniform(25.0, 110.0)
        look["shoulder_width"] = who.uniform(0.78, 1.12)
        look["neck_length"] = who.uniform(-14.0, 22.0)
        return look

    def _hair(self, who: Draws, look: dict[str, Tensor]) -> None:
        """Hairline, thickness and length; a cap is hair of a cloth's colour with a straight line."""
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
        bald = who.happens(0.09) if self.options.hair else torch.ones_like(receding)
        look["hairline"] = line + bald * 400.0
        short = who.uniform(0.5, 7.0)
        full = who.uniform(6.0, 26.0)
        huge = who.uniform(25.0, 60.0)
        style = who.uniform()
        thick = torch.where(style < 0.38, short, torch.where(style < 0.94, full, huge)) * (1.0 - bald)
        look["hair_thickness"] = thick
        look["hair_crown"] = who.uniform(-0.2, 0.9)
        look["hair_bumps"] = thick * who.uniform(0.0, 0.22)
        look["hair_ragged"] = who.uniform(0.1, 1.1)
        look["hair_soft"] = who.uniform(0.4, 3.5)
        look["hair_long"] = who.happens(0.48) * (1.0 - bald)
        length = who.uniform()
        look["hair_end"] = 20.0 - 40.0 * length - 230.0 * length * who.uniform()
        open_angle = who.uniform(0.8, 1.7)
        look["hair_open"] = open_angle + who.normal(std=0.12, count=2)
        look["hair_flare"] = who.normal(0.25, 0.45)
        look["hair_wave"] = who.happens(0.5) * who.uniform(0.0, 7.0)
        look["hair_phase"] = who.uniform(0.0, 6.28)

    def _pose(self, view: Draws, seeds: Sequence[int], yaw_thirds: bool) -> dict[str, Tensor]:
        options = self.options
        spread = view.uniform(-options.yaw_range, options.yaw_range)
        near = view.normal(std=options.yaw_std)
        yaw = torch.where(view.happens(options.yaw_uniform) > 0.5, spread, near).clamp(
            -options.yaw_range, options.yaw_range
        )
        third = torch.tensor([int(seed) % 3 for seed in seeds], dtype=torch.float64)[:, None]
        even = 30.0 * (third + view.uniform()) * (2.0 * view.happens(0.5) - 1.0)
        if yaw_thirds:
            yaw = even
        # Turned far, a large pitch or roll leaves the view of any photograph.
        pitch = view.normal(std=options.pitch_std)
        roll = view.normal(std=options.roll_std)
        angles = torch.cat((pitch, yaw, roll), dim=1) * (math.pi / 180.0)
        follow = torch.cat((view.uniform(0.0, 0.4), view.uniform(0.1, 1.0), view.uniform(0.0, 0.5)), dim=1)
        torso = angles * follow + view.normal(std=0.09, count=3)
        distance = torch.where(view.happens(options.perspective) > 0.5, torch.exp(view.uniform(6.1, 7.6)), 1e9)
        return {
            "angles": angles,
            "rotation": euler_to_matrix(angles),
            "torso_rotation": euler_to_matrix(torso),
            "distance": distance,
            "place": view.normal(std=0.012, count=2),
            "zoom": torch.exp(view.normal(std=0.03)),
            "gaze": torch.cat((view.normal(std=0.9), view.normal(std=0.5)), dim=1),
            "glint": torch.cat((view.normal(std=1.5), view.normal(1.0, 1.0)), dim=1),
            "glint_strength": view.happens(0.7) * view.uniform(0.05, 0.6),
        }

    def _light(self, view: Draws, look: dict[str, Tensor]) -> dict[str, Tensor]:
        light: dict[str, Tensor] = {}
        directions, colours = [], []
        for k in range(LIGHTS):
            around = view.normal(std=1.0) if k < 2 else math.pi + view.normal(std=0.9)
            up = view.normal(0.5, 0.5)
            directions.append(torch.cat((around.sin() * up.cos(), up.sin(), around.cos() * up.cos()), dim=1))
            power = view.uniform(0.6, 1.6) if k == 0 else view.happens(0.5) * view.uniform(0.0, 1.2 if k == 1 else 1.6)
            warm = view.normal(0.05, 0.12)
            colours.append(power * torch.exp(torch.cat((warm, 0.0 * warm, -warm), 1) + view.normal(std=0.04, count=3)))
        light["light_directions"] = torch.cat(directions, dim=1)
        light["light_colours"] = torch.cat(colours, dim=1)
        light["light_sharpness"] = torch.exp(view.uniform(1.6, 4.2))
        sky = view.uniform(0.12, 0.85)
        tint = view.normal(std=0.09)
        light["sky"] = sky * torch.exp(torch.cat((-tint, 0.0 * tint, tint), 1))
        light["ground"] = sky * view.uniform(0.15, 0.9) * torch.exp(torch.cat((tint, 0.3 * tint, -tint), 1))
        light["wrap"] = view.uniform(0.05, 0.35)
        if not self.options.lights:
            zero = torch.zeros_like(light["sky"])
            light["light_directions"] = torch.cat((zero[:, :2] + 0.2, zero[:, :1] + 1.0, zero, zero), 1)
            light["light_colours"] = torch.cat((zero + 0.8, zero, zero), 1)
            light["sky"] = light["ground"] = zero + 0.5
        brightness = (look["skin"] * torch.tensor([[0.3, 0.6, 0.1]])).sum(1, keepdim=True)
        key = 0.23 * (brightness / 0.3) ** 0.55 * torch.exp(view.normal(std=0.28))
        dark = view.happens(self.options.dark)
        light["key"] = key * torch.where(dark > 0.5, torch.exp(view.uniform(-2.6, -0.7)), 1.0)
        return light

    def _surroundings(self, view: Draws) -> dict[str, Tensor]:
        look: dict[str, Tensor] = {}
        options = self.options
        grey_base = view.uniform(0.02, 0.98)
        extreme = view.uniform()
        grey_base = torch.where(extreme < 0.16, 1.05, torch.where(extreme < 0.32, -0.02, grey_base))
        vivid = 0.04 + 0.16 * view.uniform() ** 2
        look["bg_first"] = (grey_base + vivid * view.normal(count=3)).clamp(0.0, 1.0)
        look["bg_second"] = (look["bg_first"] + view.normal(std=0.2) + 0.6 * vivid * view.normal(count=3)).clamp(
            0.0, 1.0
        )
        direction, steep = view.uniform(0.0, 6.28), view.uniform(0.2, 3.0)
        look["bg_direction"] = torch.cat((direction.cos(), direction.sin()), 1) * steep
        plain = view.happens(0.2)
        shapes = []
        for _ in range(BACKGROUND_SHAPES):
            present = view.happens(0.6) * (1.0 - plain)
            shapes.append(torch.cat((
                view.uniform(-1.2, 1.2, 2), view.normal(std=0.6), torch.exp(view.uniform(-3.0, 0.4, 2)),
                view.happens(0.6), torch.exp(view.uniform(0.7, 3.6)), present * view.uniform(0.3, 1.0),
            ), 1))  # fmt: skip
        look["bg_shapes"] = torch.cat(shapes, 1)
        light_dark = view.uniform(0.0, 1.0, BACKGROUND_SHAPES).repeat_interleave(3, 1)
        look["bg_colours"] = (light_dark + vivid * view.normal(count=3 * BACKGROUND_SHAPES)).clamp(0.0, 1.0)
        look["bg_noise_scale"] = torch.exp(view.uniform(-2.8, 0.2, 2))
        look["bg_noise_offset"] = view.uniform(count=2)
        strength = view.uniform(0.0, 1.0) ** 1.5 * (1.0 - plain)
        look["bg_noise"] = strength * torch.cat((
            view.normal(std=0.04, count=3), view.normal(std=0.2), view.normal(std=0.16), view.uniform(0.0, 0.05),
        ), 1)  # fmt: skip
        look["bg_photo"] = view.happens(0.5)
        look["bg_photo_crop"] = view.uniform(count=5)
        if not options.backgrounds:
            present = torch.tensor([1.0] * 7 + [0.0], dtype=torch.float64).repeat(BACKGROUND_SHAPES)
            look["bg_shapes"] = look["bg_shapes"] * present
            for key in ("bg_noise", "bg_direction", "bg_photo"):
                look[key] = torch.zeros_like(look[key])
            look["bg_second"] = look["bg_first"]

        any_occluder = view.happens(0.3) if options.occluders else 0.0 * view.happens(0.3)
        occluders, colours = [], []
        skin = _linear(torch.tensor([200.0, 150.0, 120.0], dtype=torch.float64)) ** (1.0 / GAMMA)
        for k in range(OCCLUDERS):
            present = any_occluder * (1.0 if k == 0 else view.happens(0.4))
            long = torch.exp(view.uniform(-2.2, -0.8))
            occluders.append(torch.cat((
                view.normal(std=0.5, count=2), view.uniform(0.0, 3.14), long, long * torch.exp(view.uniform(-1.6, 0.5)),
                torch.exp(view.uniform(0.4, 2.0)), torch.exp(view.uniform(2.0, 4.0)),
                present * torch.where(view.happens(0.8) > 0.5, 1.0, view.uniform(0.3, 0.9)),
            ), 1))  # fmt: skip
            hand = skin * torch.exp(view.normal(std=0.3) + view.normal(std=0.06, count=3))
            colours.append(torch.where(view.happens(0.4) > 0.5, hand, view.uniform(0.0, 1.0, 3)).clamp(0.0, 1.0))
        look["occluders"] = torch.cat(occluders, 1)
        look["occluder_colours"] = torch.cat(colours, 1)
        lines = []
        for _ in range(LINES):
            present = view.happens(0.07 if options.occluders else 0.0)
            lines.append(torch.cat((
                view.uniform(0.0, 3.14), view.uniform(-0.6, 0.6), view.normal(std=0.3),
                torch.exp(view.uniform(-5.0, -2.8)), view.uniform(0.0, 1.0, 2), present * view.uniform(0.5, 1.0),
            ), 1))  # fmt: skip
        look["lines"] = torch.cat(lines, 1)
        cut = view.uniform()
        where = view.uniform(0.45, 0.85)
        scale = 1.0 if options.occluders else 0.0
        edges = [
            torch.where((cut > low * scale) & (cut < high * scale), where, 9.0)
            for low, high in ((0.0, 0.05), (0.05, 0.1), (0.1, 0.18))
        ]
        look["cut"] = torch.cat((-edges[0], edges[1], edges[2], view.happens(0.15) * view.uniform()), 1)

        soft = torch.exp(view.uniform(-0.8, 0.1))
        very = view.happens(0.1) * view.uniform(0.2, 1.2)
        motion = view.happens(0.04) * view.uniform(0.5, 1.6)
        sideways = view.happens(0.5)
        scale = self.image_size / 136.0
        look["blur"] = (
            torch.cat((soft + very + motion * sideways, soft + very + motion * (1.0 - sideways)), 1)
            * (scale * options.blur)
        ).clamp_min(0.45)
        look["saturation"] = torch.exp(view.normal(std=0.25)) * (1.0 - view.happens(options.grey))
        look["cast"] = torch.exp(view.normal(std=0.05, count=3) * torch.where(view.happens(0.12) > 0.5, 4.0, 1.0))
        look["middle"] = view.uniform(0.3, 0.6)
        look["contrast"] = torch.exp(view.normal(0.06, 0.22))
        look["brightness"] = view.normal(std=0.05)
        look["gamma"] = torch.exp(view.normal(std=0.14))
        noisy = view.uniform() ** 3
        look["noise_luma"] = (noisy * view.uniform(0.0, 0.05) + 0.003) * options.noise
        look["noise_chroma"] = (noisy * view.uniform(0.0, 0.03) + 0.001) * options.noise
        look["grain_offset"] = view.uniform(count=2)
        quality = view.uniform(25.0, 95.0)
        scale_factor = torch.where(quality < 50.0, 50.0 / quality, 2.0 - quality / 50.0)
        look["jpeg"] = view.happens(options.jpeg) * scale_factor
        if not options.degradation:
            plain_values = {"blur": 0.5, "saturation": 1.0, "cast": 1.0, "contrast": 1.0, "gamma": 1.0}
            for key in (
                "blur",
                "saturation",
                "cast",
                "contrast",
                "brightness",
                "gamma",
                "noise_luma",
                "noise_chroma",
                "jpeg",
            ):
                look[key] = torch.full_like(look[key], plain_values.get(key, 0.0))
        return look

    # ---- rendering --------------------------------------------------------------------------------------------------

    def shapes(self, coefficients: Tensor) -> Tensor:
        """Vertices ``[B, V, 3]`` of coefficients ``[B, K]``, mm; a row does not depend on the others."""
        count = coefficients.shape[0]
        identity, expression = torch.split(coefficients, [self.model.num_identity, self.model.num_expression], dim=1)
        if coefficients.device.type != "cpu":
            return self.model.vertices(identity, expression)
        chunks = []
        for start in range(0, count, GEOMETRY_CHUNK):
            missing = max(0, start + GEOMETRY_CHUNK - count)
            padded = (
                nn.functional.pad(value[start : start + GEOMETRY_CHUNK], (0, 0, 0, missing))
                for value in (identity, expression)
            )
            chunks.append(self.model.vertices(*padded)[: GEOMETRY_CHUNK - missing])
        return torch.cat(chunks)

    def render(self, scene: Scene, targets: Sequence[str] = ()) -> dict[str, Tensor]:
        """Pictures and targets of scenes, on the synthesizer's device.

        Args:
            scene: From :meth:`sample`.
            targets: What is wanted besides ``image``, ``landmarks``, ``visible``, ``pose``, ``coefficients`` and
                ``vertices``.

        Returns:
            By name, as in ``FaceBatch``: ``image`` ``[B, 3, H, W]`` in [0, 1], ``landmarks`` ``[B, 68, 3]`` of the
            embedding "bfm", ``visible`` bool ``[B, 68]``, ``pose`` ``[B, 6]``, ``coefficients`` ``[B, K]``,
            ``vertices`` ``[B, V, 3]`` (image frame), and the targets asked for. With perspective the pose is that of
            the plane through the middle of the face.

        Raises:
            ConfigurationError: If there is no such target, or the scene is empty.
        """
        if self.stretch_identity.device.type == "cpu":
            parts = list(self.render_each(scene, targets))
            return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        wanted = _checked(scene, targets)
        return self._draw(self._geometry(scene.to(self.stretch_identity.device), wanted), wanted)

    def render_each(self, scene: Scene, targets: Sequence[str] = ()) -> Iterator[dict[str, Tensor]]:
        """What :meth:`render` gives, picture by picture with B = 1: on the CPU, where putting them together costs time.

        Geometry is small tensors, so it is made for several faces at once, and always for as many, so that a face does
        not depend on its batch.

        Raises:
            ConfigurationError: If there is no such target, or the scene is empty.
        """
        wanted = _checked(scene, targets)
        for start in range(0, len(scene), GEOMETRY_CHUNK):
            rows = torch.arange(start, start + GEOMETRY_CHUNK).clamp_max(len(scene) - 1)
            geometry = self._geometry(scene.take(rows), wanted)
            singles = zip(*(torch.split(value, 1) for value in geometry.values()))
            for one in itertools.islice(singles, len(scene) - start):
                yield self._draw(dict(zip(geometry, one)), wanted)

    def _geometry(self, scene: Scene, targets: frozenset[str]) -> dict[str, Tensor]:
        """All that does not know of pixels, with B rows each: vertices, their light, the look."""
        look = scene.look
        coefficients = torch.cat((scene.identity, scene.expression), dim=1)
        shapes = self.shapes(coefficients)
        camera = self._camera(shapes, look)
        turn = look["rotation"].transpose(1, 2)
        vertices = camera.project(shapes @ turn)
        points = camera.project(self.scene_mesh(shapes, scene.identity, scene.expression, look))
        irradiance, highlight = self._irradiance(self.scene_mesh.normals(to_view(points)).transpose(1, 2), look)
        canonical = self.scene_mesh.canonical.T.expand(points.shape[0], -1, -1)
        geometry = {
            **look,
            "coefficients": coefficients,
            "pose": camera.pose,
            "shapes": shapes,
            "vertices": vertices,
            "landmarks": self.model.landmarks(vertices),
            "facing": self.maps.visible_by_normal(vertices),
            "points": points,
            "attributes": torch.cat((canonical, irradiance, highlight, points[:, None, :, 2]), dim=1),
        }
        if "position_map" in targets:
            geometry["position_map"] = self.maps.position_map(vertices)
        if targets & PREVIOUS_TARGETS:
            geometry["previous_coefficients"] = scene.previous
            previous = camera.project(self.shapes(scene.previous) @ turn)
            geometry |= {"previous": previous, "previous_normals": self.maps.view_normals(previous)}
        return geometry

    def _draw(self, geometry: dict[str, Tensor], targets: frozenset[str]) -> dict[str, Tensor]:
        """Pictures and targets of what :meth:`_geometry` gives."""
        meshes = {"points": self.scene_mesh.faces}
        if targets & REGION_TARGETS:
            meshes["vertices"] = self.maps.region_faces
        if "previous" in geometry:
            meshes["previous"] = self.maps.region_faces
        placed = [(geometry[key], faces) for key, faces in meshes.items()]
        raster = dict(zip(meshes, rasterize_together(placed, self.image_size, cull_backfaces=True), strict=True))
        image, depth = self._photograph(raster["points"], geometry)
        landmarks = geometry["landmarks"]
        tall = landmarks[..., 1].amax(1, keepdim=True) - landmarks[..., 1].amin(1, keepdim=True)
        # Occluders that are drawn over the picture do not count.
        shown = self.maps.visible_by_depth(landmarks, depth, 0.03 * tall)
        rendered = {"image": image, "visible": geometry["facing"] & shown}
        for key in ("coefficients", "landmarks", "pose", "vertices", "position_map", "previous_coefficients"):
            if key in geometry:
                rendered[key] = geometry[key]
        if "vertices" in raster:
            rendered |= self._maps(raster["vertices"], geometry["shapes"], geometry["vertices"], targets)
        if "previous" in raster:
            shading, mask = self.maps.shading(raster["previous"], geometry["previous_normals"])
            rendered |= {"shading": shading, "geometry_mask": mask}
        return rendered

    def _maps(self, raster: Raster, shapes: Tensor, vertices: Tensor, targets: frozenset[str]) -> dict[str, Tensor]:
        pncc, offsets, mask = self.maps.pncc(raster, shapes)
        maps = {"pncc": pncc, "offsets": offsets, "face_mask": mask}
        if "depth" in targets:
            maps["depth"] = self.maps.depth(raster, vertices)
        if "normals" in targets:
            maps["normals"] = self.maps.normal_map(raster, self.maps.view_normals(vertices))
        return maps

    def _camera(self, shapes: Tensor, look: dict[str, Tensor]) -> _Camera:
        """Place the face: the box of its projected landmarks is centred and fills ``face_fraction`` of the side."""
        landmarks = self.model.landmarks(shapes) @ look["rotation"].transpose(1, 2)
        middle = landmarks.mean(1)
        flat = _perspective(landmarks, middle, look["distance"])[0] + middle[:, None, :2]
        box = box_of_points(flat)
        size = self.image_size
        fraction = (self.options.face_fraction * look["zoom"]).clamp_max(1.0)
        scale = fraction * size / (box[:, 2:] - box[:, :2]).amax(1, keepdim=True)
        centre = 0.5 * (box[:, :2] + box[:, 2:])
        x = (size - 1) / 2 + look["place"][:, :1] * size - scale * centre[:, :1]
        y = (size - 1) / 2 + look["place"][:, 1:] * size + scale * centre[:, 1:]
        return _Camera(torch.cat((scale, look["angles"], x, y), dim=1), middle, look["distance"])

    def _photograph(self, raster: Raster, geometry: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The finished picture ``[B, 3, H, W]`` and the depth of what it shows ``[B, 1, H, W]``, pixels."""
        mesh, look = self.scene_mesh, geometry
        part = mesh.parts.index_select(0, raster.face)
        counts = torch.bincount(part, minlength=NUM_PARTS).tolist()
        # One picture on the CPU comes by triangle, and so by part.
        if raster.shape[0] > 1 or part.device.type != "cpu":
            raster = raster.take(torch.argsort(part, stable=True))
        values = raster.interpolate(geometry["attributes"].transpose(1, 2), mesh.faces).T
        albedo, gloss = self.paint(values[:3], counts, raster.image, look, mesh)
        light = albedo * values[3:6] + gloss * values[6:7]
        exposure = self._exposure(light, counts[SKIN], raster, look)
        # 0 has no logarithm.
        colour = power((light * exposure).clamp(1e-30, 1.0)[None], light.new_tensor(1.0 / GAMMA))[0]
        image = raster.to_image(colour.T, self.photograph.background(look))
        image = self.photograph.degrade(self.photograph.occlude(image, look), look)
        return image, raster.to_image(values[7:8].T, -1e6)

    def _irradiance(self, normals: Tensor, look: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Light that reaches vertices of normals ``[B, 3, N]``, with soft self-shadowing.

        Returns:
            Irradiance ``[B, 3, N]`` and highlights ``[B, 1, N]``.
        """
        mesh = self.scene_mesh
        up = 0.5 + 0.5 * normals[:, 1:2]
        ambient = torch.lerp(look["ground"][..., None], look["sky"][..., None], up) * self.ambient_visibility
        directions = nn.functional.normalize(look["light_directions"].reshape(-1, LIGHTS, 3), dim=-1)
        colours = look["light_colours"].reshape(-1, LIGHTS, 3, 1)
        in_head = directions @ look["rotation"]
        nearness = torch.softmax(look["light_sharpness"][:, None] * (in_head @ mesh.directions.T), dim=-1)
        seen = nearness @ mesh.visibility
        cosine = directions @ normals
        wrap = look["wrap"][..., None, None] * self.wrap_colour
        diffuse = ((cosine[:, :, None] + wrap) / (1.0 + wrap)).clamp_min(0.0)
        irradiance = ambient + (diffuse * seen[:, :, None] * colours).sum(1)
        half = nn.functional.normalize(directions + self.towards_viewer, dim=-1)
        facing = (half @ normals).clamp_min(0.0)
        facing = facing * facing
        facing = facing * facing
        facing = facing * facing
        strength = seen * (cosine > 0.0) * colours.mean(2)
        return irradiance, (facing * facing * facing * strength).sum(1, keepdim=True)

    @staticmethod
    def _exposure(light: Tensor, skin: int, raster: Raster, look: dict[str, Tensor]) -> Tensor:
        """Factors ``[1, P]`` that bring the mean brightness of each face's skin, the first pixels, to the key."""
        brightness = 0.3 * light[0, :skin] + 0.6 * light[1, :skin] + 0.1 * light[2, :skin]
        batch = raster.shape[0]
        if batch == 1:
            return look["key"] / (brightness.sum() / max(skin, 1)).clamp_min(1e-4)
        total = light.new_zeros(batch).index_add(0, raster.image[:skin], brightness)
        count = torch.bincount(raster.image[:skin], minlength=batch)
        factor = look["key"][:, 0] / (total / count.clamp_min(1)).clamp_min(1e-4)
        return factor.index_select(0, raster.image)[None]


def _checked(scene: Scene, targets: Sequence[str]) -> frozenset[str]:
    unknown = sorted(set(targets) - EXTRA_TARGETS - PLAIN_TARGETS)
    if unknown:
        raise ConfigurationError(
            f"Synthetic faces have no target {', '.join(unknown)}: choose from {', '.join(sorted(EXTRA_TARGETS))}."
        )
    if len(scene) == 0:
        raise ConfigurationError("The scene is empty, so there is nothing to draw: give at least one picture.")
    return frozenset(targets)


def _perspective(points: Tensor, middle: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Seen from ``distance`` mm ``[B, 1]`` before ``middle`` ``[B, 3]``: things grow towards the viewer, z stays.

    Returns:
        x and y from the middle on, ``[B, N, 2]``, and z ``[B, N, 1]``.
    """
    z = points[..., 2:]
    factor = distance[:, None] / (distance[:, None] + middle[:, None, 2:] - z).clamp_min(100.0)
    return (points[..., :2] - middle[:, None, :2]) * factor, z


@dataclass(frozen=True)
class _Camera:
    """Weak perspective, or perspective from ``distance`` ``[B, 1]`` mm around ``middle`` ``[B, 3]``."""

    pose: Tensor
    middle: Tensor
    distance: Tensor

    def project(self, turned: Tensor) -> Tensor:
        """Rotated points ``[B, N, 3]`` in mm, y up, to the image frame."""
        scale, shift = self.pose[:, None, :1], self.pose[:, None, 4:]
        flipped = torch.cat((scale, -scale), dim=-1)
        middle = self.middle[:, None, :2]
        seen = _perspective(turned, self.middle, self.distance)
        return torch.cat((seen[0] * flipped + (middle * flipped + shift), seen[1] * scale), dim=-1)
