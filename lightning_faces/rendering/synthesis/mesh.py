"""The head of a face model with what surrounds it: shoulders, hair, glasses and teeth, as one mesh of fixed topology.

Shapes are given in millimetres in the object frame of the embedded model; another model's head is brought there by a
scale and a shift along y and z. Nothing here moves a vertex of the face model that a landmark or a target depends on:
only what is drawn differs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.renderer import VertexNormals, rasterize_image
from lightning_faces.rendering.synthesis.scene import Clothes, Glasses, Hair, Person, View

SKIN, EYEBALL, INSIDE, TORSO, HAIR, FRAME, LENS, TEETH = range(8)
"""What a triangle belongs to."""
NUM_PARTS = 8

HAIRLINE_KNOTS = 24
"""Heights of the hairline are given at this many azimuths around the head, counted from -180 degrees."""
# Height in mm at 0, 15, ... 180 degrees from straight ahead: forehead, temple, sideburn, above the ear, nape.
HAIRLINE = (100.0, 99.0, 96.0, 88.0, 66.0, 30.0, 30.0, 36.0, 20.0, -25.0, -48.0, -55.0, -58.0)
AXIS_Z = 5.0
"""Depth of the vertical axis around which azimuths are counted."""

_TORSO_RINGS = (
    # height, half width, half depth, depth of the centre, slant, part of the torso's own rotation
    (-72.0, 50.0, 47.0, 0.0, 0.45, 0.0),
    (-90.0, 56.5, 54.5, 0.0, 0.45, 0.0),
    (-112.0, 58.0, 55.5, -2.0, 0.45, 0.15),
    (-142.0, 66.0, 55.0, -8.0, 0.32, 0.6),
    (-156.0, 100.0, 62.0, -12.0, 0.18, 0.9),
    (-172.0, 150.0, 72.0, -12.0, 0.06, 1.0),
    (-196.0, 190.0, 84.0, -10.0, 0.0, 1.0),
    (-235.0, 210.0, 98.0, -6.0, 0.0, 1.0),
    (-300.0, 214.0, 108.0, -4.0, 0.0, 1.0),
    (-520.0, 205.0, 108.0, -4.0, 0.0, 1.0),
)
_BARE_NECK_RING = (0.0, 48.0, 44.0, 0.0, 0.0, 0.0)
"""The first ring under a face that has no neck of its own (nothing below -100 mm): the piece ends inside the face."""
_TORSO_COLUMNS = 28
_NECK_PIVOT = (0.0, -105.0, -5.0)
_CURTAIN_ROWS, _CURTAIN_COLUMNS = 9, 25
_RIM_POINTS = 18
_TEETH_COLUMNS = 10
_SHADOW_DIRECTIONS = 64
_SHADOW_SIDE = 160
_SHADOW_BIAS = 4.0
_REFERENCE_EAR = (28.91, 23.69)
_REFERENCE_EYE_DISTANCE = 88.85
_REFERENCE_LIPS = (-34.12, 127.78)
_LIPS = [50, 52, 56, 58]


def _grid_faces(rows: int, columns: int, closed: bool, start: int) -> Tensor:
    """Triangles of a grid of vertices (row major), counter-clockwise for columns to the right and rows downwards."""
    r = torch.arange(rows - 1)[:, None]
    c = torch.arange(columns if closed else columns - 1)[None]
    right = (c + 1) % columns
    a, b, d, e = r * columns + c, r * columns + right, (r + 1) * columns + c, (r + 1) * columns + right
    upper = torch.stack((a, d, b), dim=-1).reshape(-1, 3)
    lower = torch.stack((b, d, e), dim=-1).reshape(-1, 3)
    return torch.cat((upper, lower)) + start


def _both_sides(faces: Tensor) -> Tensor:
    return torch.cat((faces, faces.flip(1)))


def _knots(azimuth: Tensor) -> tuple[Tensor, Tensor]:
    """The knot of the hairline before each azimuth in [-pi, pi], int64, and the part of the way to the next."""
    position = (azimuth / math.pi + 1.0) * (HAIRLINE_KNOTS / 2.0)
    low = position.detach().floor().clamp(0, HAIRLINE_KNOTS - 1)
    return low.long(), position - low


def _directions(count: int) -> Tensor:
    """Evenly spread unit vectors ``[count, 3]`` (a Fibonacci lattice)."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    y = 1.0 - 2.0 * index / count
    around = math.pi * (1.0 + 5.0**0.5) * index
    radius = (1.0 - y * y).sqrt()
    return torch.stack((radius * around.cos(), y, radius * around.sin()), dim=-1).float()


def _nowhere(present: Tensor) -> bool:
    """Whether no picture of a CPU batch has something, which then need not be built (asking a GPU would stall it)."""
    return present.device.type == "cpu" and not bool((present > 0.5).any())


class SceneMesh(nn.Module):
    """Fixed topology, and what is known of it in advance: canonical positions, parts, self-shadowing.

    Args:
        model: The face model. Region masks ``scalp``, ``ear``, ``eyeball``, ``mouth_inside`` and ``neck`` are used
            where it has them.

    Attributes:
        faces: ``[F, 3]``, by part.
        parts: ``[F]``, one of SKIN ... TEETH, ascending.
        canonical: ``[N, 3]``, positions on the mean face in the embedded model's frame; they decide a pixel's paint.
        visibility: ``[64, N]``, how much light reaches a vertex from each of :attr:`directions`.
        directions: ``[64, 3]``, object frame.
    """

    faces: Tensor
    parts: Tensor
    canonical: Tensor
    visibility: Tensor
    directions: Tensor
    hairline_weights: Tensor
    hair_direction: Tensor
    crown: Tensor
    bumps: Tensor
    landmark_mean: Tensor
    identity_landmarks: Tensor
    jaw_moves: Tensor
    neck_moves: Tensor
    torso_rings: Tensor

    def __init__(self, model: MorphableModel) -> None:
        super().__init__()
        self.num_model = model.num_vertices
        mean = model.mean.detach().cpu()
        landmarks = model.landmarks(model.mean[None])[0].detach().cpu()
        eyes = landmarks[[36, 45], 0]
        self.scale = float((eyes[1] - eyes[0]) / _REFERENCE_EYE_DISTANCE)
        ears = landmarks[[0, 16]].mean(0)
        self.shift = (
            0.0,
            float(ears[1]) - self.scale * _REFERENCE_EAR[0],
            float(ears[2]) - self.scale * _REFERENCE_EAR[1],
        )
        head = (mean - torch.tensor(self.shift)) / self.scale
        lips = (landmarks[_LIPS].mean(0) - torch.tensor(self.shift)) / self.scale
        # To a tenth of a millimetre, so that it is nothing for the embedded model.
        self.teeth_shift = [0.0, *(round(float(lips[i + 1]) - _REFERENCE_LIPS[i], 1) for i in range(2))]
        masks = {key: value.cpu() for key, value in model.region_masks.items()}
        none = torch.zeros(self.num_model, dtype=torch.bool)
        head_parts = self._head_parts(model.faces.cpu(), masks, none)
        by_part = torch.argsort(head_parts, stable=True)
        faces, parts = [model.faces.cpu()[by_part]], [head_parts[by_part]]
        outward = [model.faces.cpu()]
        self._starts: dict[int, int] = {}
        count = self.num_model
        templates = [head]
        rings = (*(_TORSO_RINGS[:1] if float(head[:, 1].min()) < -100.0 else (_BARE_NECK_RING,)), *_TORSO_RINGS[1:])
        for part, (points, triangles) in {
            TORSO: self._torso_template(rings),
            HAIR: self._curtain_template(),
            FRAME: self._frame_template(),
            LENS: self._lens_template(),
            TEETH: self._teeth_template(),
        }.items():
            self._starts[part] = count
            double = part in (HAIR, FRAME, LENS)
            faces.append((_both_sides(triangles) if double else triangles) + count)
            outward.append(triangles + count)
            parts.append(torch.full((faces[-1].shape[0],), part))
            templates.append(points)
            count += points.shape[0]
        # In memory [3, F], so that the transpose is one run of numbers.
        self.register_buffer("faces", torch.cat(faces).T.contiguous().T, persistent=False)
        self.register_buffer("parts", torch.cat(parts).to(torch.uint8), persistent=False)
        self.register_buffer("canonical", torch.cat(templates), persistent=False)
        self.normals = VertexNormals(torch.cat(outward), count)
        self.register_buffer("torso_rings", torch.tensor(rings).repeat_interleave(_TORSO_COLUMNS, 0), persistent=False)
        self._add_hair_buffers(head, masks, none)
        self._add_anchors(model, masks)
        self.register_buffer("directions", _directions(_SHADOW_DIRECTIONS), persistent=False)
        self.register_buffer("visibility", self._visibility().T.contiguous(), persistent=False)

    @staticmethod
    def _head_parts(faces: Tensor, masks: dict[str, Tensor], none: Tensor) -> Tensor:
        parts = torch.full((faces.shape[0],), SKIN)
        for part, key in ((INSIDE, "mouth_inside"), (INSIDE, "eye_inside"), (EYEBALL, "eyeball")):
            parts[masks.get(key, none)[faces].all(1)] = part
        return parts

    def _add_hair_buffers(self, head: Tensor, masks: dict[str, Tensor], none: Tensor) -> None:
        azimuth = torch.atan2(head[:, 0], head[:, 2] - AXIS_Z)
        first, part = _knots(azimuth)
        weights = torch.zeros(HAIRLINE_KNOTS, self.num_model)
        every = torch.arange(self.num_model)
        weights[first, every] += 1.0 - part
        weights[(first + 1) % HAIRLINE_KNOTS, every] += part
        self.register_buffer("hairline_weights", weights, persistent=False)
        normals = VertexNormals(self.faces[self.faces.amax(1) < self.num_model], self.num_model)(head[None])[0]
        keep_clear = none.clone()
        for key in ("ear", "eyeball", "eye_inside", "mouth_inside", "eye", "nose", "mouth"):
            keep_clear |= masks.get(key, none)
        self.register_buffer("hair_direction", normals * self.scale * (~keep_clear)[:, None], persistent=False)
        self.register_buffer("crown", ((head[:, 1] - 70.0) / 50.0).clamp(0.0, 1.0), persistent=False)
        place = torch.stack((azimuth * 12.0, head[:, 1] / 9.0), dim=1)
        bumps = torch.sin(place[:, 0] + 1.7 * torch.sin(place[:, 1])) * torch.cos(place[:, 1] - place[:, 0] * 0.3)
        self.register_buffer("bumps", bumps, persistent=False)

    def _add_anchors(self, model: MorphableModel, masks: dict[str, Tensor]) -> None:
        """Linear maps from coefficients to the landmarks that glasses, teeth and neck hang on."""
        identity = model.landmarks(model.identity_basis * model.identity_std[:, None, None])
        expression = model.landmarks(model.expression_basis * model.expression_std[:, None, None])
        self.register_buffer("landmark_mean", model.landmarks(model.mean[None])[0].clone(), persistent=False)
        self.register_buffer("identity_landmarks", identity.clone(), persistent=False)
        self.register_buffer("jaw_moves", expression[:, [7, 8, 9]].mean(1), persistent=False)
        low = model.mean[:, 1] < model.mean[:, 1].min() + 45.0 * self.scale
        low = low & masks.get("neck", low.cpu()).to(low.device)
        basis = model.identity_basis[:, low] * model.identity_std[:, None, None]
        side = model.mean[low][:, 0].sign()
        neck = torch.cat((basis.mean(1), (basis[..., 0] * side).mean(1, keepdim=True)), dim=1)
        self.register_buffer("neck_moves", neck, persistent=False)
        self.neck_width = float(model.mean[low][:, 0].abs().mean())

    @staticmethod
    def _torso_template(table: tuple[tuple[float, ...], ...]) -> tuple[Tensor, Tensor]:
        around = torch.arange(_TORSO_COLUMNS) * (2.0 * math.pi / _TORSO_COLUMNS)
        rings = []
        for y, half_width, half_depth, centre, slant, _ in table:
            x = half_width * around.sin().sign() * around.sin().abs() ** 0.85
            z = half_depth * around.cos().sign() * around.cos().abs() ** 0.85
            rings.append(torch.stack((x, y - slant * z, centre + z), dim=-1))
        return torch.cat(rings), _grid_faces(len(table), _TORSO_COLUMNS, True, 0)

    @staticmethod
    def _curtain_template() -> tuple[Tensor, Tensor]:
        around = torch.linspace(1.2, 2.0 * math.pi - 1.2, _CURTAIN_COLUMNS)
        height = torch.linspace(70.0, -150.0, _CURTAIN_ROWS)
        y, angle = torch.meshgrid(height, around, indexing="ij")
        points = torch.stack((84.0 * angle.sin(), y, AXIS_Z + 95.0 * angle.cos()), dim=-1)
        return points.reshape(-1, 3), _grid_faces(_CURTAIN_ROWS, _CURTAIN_COLUMNS, False, 0)

    @staticmethod
    def _rim(width: float, height: float, power: float = 2.5) -> Tensor:
        angle = torch.arange(_RIM_POINTS) * (2.0 * math.pi / _RIM_POINTS)
        radius = (angle.cos().abs() ** power + angle.sin().abs() ** power) ** (-1.0 / power)
        return torch.stack((width * radius * angle.cos(), height * radius * angle.sin()), dim=-1)

    def _frame_template(self) -> tuple[Tensor, Tensor]:
        """Two rims (outer and inner ring each), a bridge of 4 points, two temples of 4 points each."""
        points: list[Tensor] = []
        faces = []
        for _ in range(2):
            start = len(points) * _RIM_POINTS
            points += [self._rim(1.0, 1.0), self._rim(1.0, 1.0)]
            faces.append(_grid_faces(2, _RIM_POINTS, True, start))
        rims = torch.cat(points)
        count = rims.shape[0]
        quads = [torch.tensor([[0, 1, 2], [1, 3, 2]]) + count + 4 * k for k in range(3)]
        faces += quads
        extra = torch.zeros(12, 2)
        flat = torch.cat((rims, extra))
        return torch.cat((flat, torch.full((flat.shape[0], 1), 110.0)), dim=1), torch.cat(faces)

    def _lens_template(self) -> tuple[Tensor, Tensor]:
        rim = self._rim(1.0, 1.0)
        fan = torch.stack(
            (
                torch.full((_RIM_POINTS,), _RIM_POINTS),
                torch.arange(_RIM_POINTS),
                (torch.arange(_RIM_POINTS) + 1) % _RIM_POINTS,
            ),
            dim=1,
        )
        one = torch.cat((rim, torch.zeros(1, 2)))
        faces = torch.cat((fan, fan + _RIM_POINTS + 1))
        flat = torch.cat((one, one))
        return torch.cat((flat, torch.full((flat.shape[0], 1), 109.0)), dim=1), faces

    @staticmethod
    def _teeth_template() -> tuple[Tensor, Tensor]:
        """Upper and lower row, top to bottom; canonical x and z make an arc behind the lips."""
        angle = torch.linspace(-1.15, 1.15, _TEETH_COLUMNS)
        rows, faces = [], []
        for k, heights in enumerate(((-30.0, -42.8), (-47.0, -58.0))):
            x, z = 25.0 * angle.sin(), 92.0 + 20.0 * angle.cos()
            rows += [torch.stack((x, torch.full_like(angle, y), z), dim=-1) for y in heights]
            faces.append(_grid_faces(2, _TEETH_COLUMNS, False, 2 * k * _TEETH_COLUMNS))
        return torch.cat(rows), torch.cat(faces)

    def _visibility(self) -> Tensor:
        """Which directions each vertex of head and torso sees, ``[N, 64]``: depth maps of the mean from all of them."""
        points = self.canonical
        solid = self.faces[
            (self.parts == SKIN) | (self.parts == INSIDE) | (self.parts == EYEBALL) | (self.parts == TORSO)
        ]
        solid = solid[(points[solid][:, :, 1] > -260.0).all(1)]
        end = self._starts[HAIR]
        normals = self.normals(points[None])[0]
        seen = points.new_ones(points.shape[0], _SHADOW_DIRECTIONS)
        up = torch.tensor([0.0, 1.0, 0.0])
        pixel = 2.0 * 260.0 / _SHADOW_SIDE
        for k, direction in enumerate(self.directions):
            right = nn.functional.normalize(torch.linalg.cross(up, direction), dim=0)
            basis = torch.stack((right, torch.linalg.cross(direction, right), direction))
            view = (points[:end] - torch.tensor([0.0, -40.0, 0.0])) @ basis.T / pixel
            image = torch.stack((view[:, 0], -view[:, 1], view[:, 2]), dim=-1) + (_SHADOW_SIDE - 1) / 2
            raster = rasterize_image(image[None], solid, _SHADOW_SIDE)
            depth = raster.to_image(raster.interpolate(image[:, 2:], solid), -1e6)[0, 0]
            column, row = (image[:, axis].round().long().clamp(0, _SHADOW_SIDE - 1) for axis in (0, 1))
            clear = (image[:, 2] > depth[row, column] - _SHADOW_BIAS / pixel).float()
            seen[:end, k] = clear * (normals[:end] @ direction > -0.15).float()
        # Soften over the neighbours.
        for _ in range(2):
            total, count = torch.zeros_like(seen), torch.zeros(seen.shape[0], 1)
            for a, b in ((0, 1), (1, 2), (2, 0)):
                total.index_add_(0, self.faces[:, a], seen[self.faces[:, b]])
                count.index_add_(0, self.faces[:, a], torch.ones(self.faces.shape[0], 1))
            seen = 0.5 * seen + 0.5 * total / count.clamp_min(1.0)
        # The top of the neck piece is hidden in the head's neck: it takes the light of its first free ring.
        start = self._starts[TORSO]
        free = seen[start + 2 * _TORSO_COLUMNS : start + 3 * _TORSO_COLUMNS]
        seen[start : start + 2 * _TORSO_COLUMNS] = free.repeat(2, 1)
        inside = torch.zeros(points.shape[0])
        inside[self.faces[self.parts == INSIDE].reshape(-1)] = 1.0
        return seen * (1.0 - 0.5 * inside[:, None])

    @staticmethod
    def hair_height(hairline: Tensor, azimuth: Tensor, height: Tensor, image: Tensor) -> Tensor:
        """Millimetres above the hairline, ``[P]``.

        Args:
            hairline: ``[B, 24]`` heights at azimuths -180, -165, ... degrees.
            azimuth: ``[P]`` radians in [-pi, pi].
            height: ``[P]``, canonical y.
            image: Int64 ``[P]``, the row of ``hairline``.
        """
        first, part = _knots(azimuth)
        # One knot more, so that the last segment needs no wrapping.
        line = torch.cat((hairline, hairline[:, :1]), dim=1)
        if line.shape[0] > 1:
            first = first + image * line.shape[1]
        line = line.reshape(-1)
        low, high = line.index_select(0, first), line.index_select(0, first + 1)
        return height - torch.lerp(low, high, part)

    def to_object(self, canonical: Tensor) -> Tensor:
        """Positions of the embedded model's frame in this model's object frame, mm ``[..., 3]``."""
        return canonical * self.scale + canonical.new_tensor(self.shift)

    def forward(self, vertices: Tensor, identity: Tensor, expression: Tensor, person: Person, view: View) -> Tensor:
        """Everything that is drawn, turned to the view frame, in millimetres.

        Args:
            vertices: The face model's vertices ``[B, V, 3]``, object frame.
            identity: ``[B, Ki]``.
            expression: ``[B, Ke]``.
            person: What they wear, and their hair and teeth.
            view: How head and shoulders are turned.

        Returns:
            ``[B, N, 3]``: scalp displaced by hair, shoulders in their own rotation, absent things shrunk to a point.
        """
        landmarks = self.landmark_mean + torch.einsum("bk,klc->blc", identity, self.identity_landmarks)
        shifted = landmarks - self.landmark_mean
        ear_width = landmarks[:, 16, 0] - landmarks[:, 0, 0]
        wide = (ear_width / (self.landmark_mean[16, 0] - self.landmark_mean[0, 0]))[:, None, None]
        hanging = [
            self._with_hair(vertices, person.hair),
            self._curtain(wide, shifted, person.hair),
            *self._glasses(landmarks, person.glasses),
            self._teeth(shifted, wide, expression, person.mouth.raised),
        ]
        turned = torch.cat(hanging, dim=1) @ view.rotation.transpose(1, 2)
        torso = self._torso(identity, view, person.clothes)
        return torch.cat((turned[:, : self.num_model], torso, turned[:, self.num_model :]), dim=1)

    def _with_hair(self, vertices: Tensor, hair: Hair) -> Tensor:
        above = self.canonical[: self.num_model, 1] - hair.line @ self.hairline_weights
        amount = (above / 14.0).clamp(0.0, 1.0)
        thick = hair.thickness * (1.0 + hair.crown * self.crown) + hair.bumps * self.bumps
        return torch.addcmul(vertices, (amount * thick)[..., None], self.hair_direction)

    def _curtain(self, wide: Tensor, shifted: Tensor, hair: Hair) -> Tensor:
        columns, rows = _CURTAIN_COLUMNS, _CURTAIN_ROWS
        device = wide.device
        if _nowhere(hair.long):
            return wide.new_zeros(wide.shape[0], rows * columns, 3)
        side = torch.linspace(-1.0, 1.0, columns, device=device)
        open_angle = torch.where(side < 0, hair.opening[:, :1], hair.opening[:, 1:])
        angle = math.pi + side * (math.pi - open_angle)
        down = torch.linspace(0.0, 1.0, rows, device=device)[None, :, None]
        ragged = 1.0 + 0.08 * torch.sin(angle * 9.0 + hair.phase)[:, None]
        end = hair.end[:, None]
        y = 75.0 + (end - 75.0) * down * ragged
        below = ((-y - 10.0) / 100.0).clamp(0.0, 1.5)
        thick = hair.thickness[:, None] + 4.0
        wave = hair.wave[:, None] * torch.sin(0.09 * y + 3.0 * angle[:, None] + hair.phase[:, None])
        half_width = 77.0 + thick - 26.0 * (1.0 - down).clamp_min(0.0) ** 3 + hair.flare[:, None] * 40.0 * below + wave
        half_depth = 92.0 + thick - 22.0 * (1.0 - down).clamp_min(0.0) ** 3 - 22.0 * below + wave
        angle = angle[:, None].expand(-1, rows, -1)
        x, z = half_width * angle.sin(), AXIS_Z + half_depth * angle.cos()
        points = torch.stack((x, y, z), dim=-1).reshape(x.shape[0], rows * columns, 3)
        points = self.to_object(points * torch.cat((wide, torch.ones_like(wide), wide), dim=-1))
        points = points + shifted[:, [0, 16]].mean(1, keepdim=True)
        return torch.where(hair.long[:, None] > 0.5, points, 0.0)

    def _torso(self, identity: Tensor, view: View, clothes: Clothes) -> Tensor:
        rings = self.torso_rings
        start = self._starts[TORSO]
        template = self.canonical[start : start + rings.shape[0]]
        neck = torch.einsum("bk,kc->bc", identity, self.neck_moves)
        neck_wide = (1.0 + neck[:, 3:] / self.neck_width)[:, None]
        own = rings[:, 5:6]
        x = template[:, :1] * torch.lerp(neck_wide, clothes.shoulders[:, None], own)
        z = rings[:, 3:4] + (template[:, 2:] - rings[:, 3:4]) * torch.lerp(neck_wide, torch.ones_like(neck_wide), own)
        y = template[:, 1:2] - clothes.neck[:, None] * own
        points = self.to_object(torch.cat((x, y, z), dim=-1)) + neck[:, None, :3] * (1.0 - 0.5 * own)
        pivot = self.to_object(points.new_tensor(_NECK_PIVOT)) + neck[:, None, :3]
        rigid = points @ view.rotation.transpose(1, 2)
        turned = (points - pivot) @ view.torso_rotation.transpose(1, 2) + pivot @ view.rotation.transpose(1, 2)
        return torch.lerp(rigid, turned, own)

    def _glasses(self, landmarks: Tensor, glasses: Glasses) -> tuple[Tensor, Tensor]:
        if _nowhere(glasses.worn):
            zero, sizes = landmarks.new_zeros(landmarks.shape[0], 1, 3), (4 * _RIM_POINTS + 12, 2 * _RIM_POINTS + 2)
            return zero.expand(-1, sizes[0], -1), zero.expand(-1, sizes[1], -1)
        unit = self.scale
        rim, lens = self._rims(landmarks.device)
        centre_x = landmarks[:, [36, 39, 42, 45], 0].abs().mean(1)[:, None]
        centre_y = landmarks[:, [36, 39, 42, 45], 1].mean(1)[:, None] + glasses.drop * unit
        width, height = glasses.width * unit, glasses.height * unit
        thick, front = glasses.rim * unit, landmarks[:, 27, 2:3] + 3.0 * unit

        def bend(x: Tensor, y: Tensor, back: float = 0.0) -> Tensor:
            return torch.stack((x, y, front - 0.0042 / unit * x * x - back * unit), dim=-1)

        parts, lenses = [], []
        for side in (-1.0, 1.0):
            for grow in (1.0, 0.0):
                x = side * centre_x + rim[:, 0] * (width + grow * thick)
                parts.append(bend(x, centre_y + rim[:, 1] * (height + grow * thick)))
            lenses.append(bend(side * centre_x + lens[:, 0] * width, centre_y + lens[:, 1] * height, 1.0))
        inner = centre_x - width
        bridge_y = centre_y + 0.35 * height
        bridge = [bend(s * inner, bridge_y + u * thick.clamp_min(1.0), -1.0) for u in (0.7, -0.7) for s in (-1.0, 1.0)]
        parts.append(torch.cat(bridge, dim=1))
        temple = glasses.temple * unit
        for side, ear in ((-1.0, 0), (1.0, 16)):
            outer = side * (centre_x + width + 0.5 * thick)
            near_y = centre_y + 0.55 * height
            near = [bend(outer, near_y + u * temple) for u in (0.5, -0.5)]
            far_x = landmarks[:, ear, :1] + side * 6.0 * unit
            far_z = landmarks[:, ear, 2:3] - 18.0 * unit
            far_y = landmarks[:, ear, 1:2] + 8.0 * unit
            far = [torch.stack((far_x, far_y + u * temple, far_z), dim=-1) for u in (0.5, -0.5)]
            parts.append(torch.cat((near[0], far[0], near[1], far[1]), dim=1))
        frame, glass = torch.cat(parts, dim=1), torch.cat(lenses, dim=1)
        frame = torch.where(glasses.worn[:, None] > 0.5, frame, 0.0)
        dark = (glasses.worn * glasses.dark)[:, None] > 0.5
        return frame, torch.where(dark, glass, 0.0)

    def _rims(self, device: torch.device) -> tuple[Tensor, Tensor]:
        rim = self._rim(1.0, 1.0).to(device)
        return rim, torch.cat((rim, torch.zeros(1, 2, device=device)))

    def _teeth(self, shifted: Tensor, wide: Tensor, expression: Tensor, raised: Tensor) -> Tensor:
        start = self._starts[TEETH]
        template = self.canonical[start : start + 4 * _TEETH_COLUMNS] * torch.cat(
            (wide, torch.ones_like(wide), torch.ones_like(wide)), dim=-1
        )
        points = self.to_object(template + template.new_tensor(self.teeth_shift))
        points = points + shifted[:, _LIPS].mean(1, keepdim=True)
        jaw = torch.einsum("bk,kc->bc", expression, self.jaw_moves)
        upper, lower = torch.split(points, 2 * _TEETH_COLUMNS, dim=1)
        up = points.new_tensor([0.0, self.scale, 0.0])
        moved = raised[:, :, None, None] * up
        return torch.cat((upper + moved[:, 0], lower + moved[:, 1] + jaw[:, None]), dim=1)
