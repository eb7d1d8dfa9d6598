"""Colours of skin, brows, lips, eyes, hair, cloth and glasses, computed per pixel from the place on the mean face.

Because a pixel knows which point of the mean face it shows, features are drawn as sharp as the picture, whatever the
mesh, and move with identity and expression. Colours are linear RGB.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_faces.rendering.renderer import positions
from lightning_faces.rendering.synthesis.mesh import AXIS_Z, EYEBALL, SceneMesh
from lightning_faces.rendering.synthesis.noise import CLOTH, STRANDS, SURFACE, NoiseBank
from lightning_faces.rendering.synthesis.scene import Gaze, Person, Scene
from lightning_faces.rendering.synthesis.texture import Texture

# The map is of one half of the face: it is symmetric.
_SIDE, _BOTTOM, _TOP = 95.0, -130.0, 130.0
# Of red, green and blue, how much each shade takes away or adds.
TINTS = {
    "blotch": (0.3, -0.6, -0.4), "flush": (0.08, -0.35, -0.3), "under_eye": (0.5, 0.6, 0.5),
    "freckle": (0.35, 0.5, 0.6), "eye_corner": (0.2, 0.45, 0.45),
}  # fmt: skip
TAIL = 6.5
"""Where a sigmoid is taken to be 0, beyond which nothing is painted."""
RAGGED = 12.0
"""Millimetres by which hair of raggedness 1 may leave the hairline."""
_CHANNELS = (
    "brow_along", "brow_above", "lip", "mouth_line", "eye", "eye_above",
    "cheek", "nose", "under_eye", "beard", "moustache", "nostril",
)  # fmt: skip
ALL, EYE = slice(0, len(_CHANNELS)), slice(4, 5)


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear function of x, constant beyond its knots."""
    index = torch.searchsorted(knots, x).clamp(1, knots.shape[0] - 1)
    low, high = knots[index - 1], knots[index]
    part = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return torch.lerp(values[index - 1], values[index], part)


def _signed_distance(points: Tensor, polygon: Tensor) -> Tensor:
    """Distance of points ``[N, 2]`` to a polygon ``[M, 2]``, negative inside."""
    a, b = polygon, polygon.roll(-1, 0)
    edge = b - a
    along = ((points[:, None] - a) * edge).sum(-1) / edge.square().sum(-1)
    nearest = a + along.clamp(0.0, 1.0)[..., None] * edge
    distance = (points[:, None] - nearest).norm(dim=-1).amin(1)
    above = (a[:, 1] <= points[:, 1:2]) != (b[:, 1] <= points[:, 1:2])
    crossing = a[:, 0] + (points[:, 1:2] - a[:, 1]) * edge[:, 0] / torch.where(edge[:, 1] == 0, 1e-9, edge[:, 1])
    inside = ((above & (points[:, :1] < crossing)).sum(1) % 2).bool()
    return torch.where(inside, -distance, distance)


def _blob(x: Tensor, y: Tensor, centre: tuple[float, float], width: float, height: float) -> Tensor:
    return torch.exp(-0.5 * (((x - centre[0]) / width) ** 2 + ((y - centre[1]) / height) ** 2))


class FacePaint(nn.Module):
    """A map of the front of the mean face (where brows, lips, eyes and beard are), and the painting of pixels with it.

    Args:
        mesh: What is painted.
        landmarks: The 68 landmarks of the mean face in the scene's canonical frame, mm ``[68, 3]``.
    """

    tints: Tensor
    eye_centre: Tensor

    def __init__(self, mesh: SceneMesh, landmarks: Tensor) -> None:
        super().__init__()
        self.bank = NoiseBank()
        self.has_eyeballs = bool((mesh.parts == EYEBALL).any())
        mirrored = landmarks.clone()
        mirrored[:, 0] = mirrored[:, 0].abs()
        height, width = round(_TOP - _BOTTOM), round(_SIDE)
        y, x = torch.meshgrid(
            _TOP - 0.5 - torch.arange(height, dtype=torch.float32),
            0.5 + torch.arange(width, dtype=torch.float32),
            indexing="ij",
        )
        x, y = x.reshape(-1), y.reshape(-1)
        places = torch.stack((x, y), dim=1)

        brow = 0.5 * (mirrored[[21, 20, 19, 18, 17]] + mirrored[[22, 23, 24, 25, 26]])
        eye = 0.5 * (mirrored[[42, 43, 44, 45, 46, 47]] + mirrored[[39, 38, 37, 36, 41, 40]])
        lip = landmarks[48:60, :2]
        upper, lower = landmarks[[62, 63, 64]], landmarks[[66, 65, 64]]
        line = 0.5 * (upper + lower)
        mouth_x, mouth_y = line[:, 0].clamp_min(0.0), line[:, 1]
        corner, nose_tip = float(landmarks[54, 0]), landmarks[30]
        eye_y = float(eye[:, 1].mean())
        mouth_at = float(mouth_y.mean())
        cheek_line = _interpolate(
            x,
            torch.tensor([0.0, corner, corner + 20.0, 66.0, 80.0]),
            torch.tensor([mouth_at - 12.0, mouth_at + 2.0, mouth_at + 14.0, eye_y - 12.0, eye_y + 10.0]),
        )
        lip_distance = _signed_distance(torch.stack((x, y), dim=1), lip)
        moustache = (
            torch.sigmoid((float(nose_tip[1]) - 12.0 - y) / 1.5)
            * torch.sigmoid((y - mouth_at + 1.0) / 1.5)
            * torch.sigmoid((corner + 5.0 - x) / 2.0)
        )
        planes = {
            "brow_along": (x - brow[0, 0] + 1.0) / (brow[-1, 0] - brow[0, 0] + 2.0),
            "brow_above": y - _interpolate(x, brow[:, 0].contiguous(), brow[:, 1]),
            "lip": lip_distance,
            "mouth_line": y - _interpolate(x, mouth_x, mouth_y),
            "eye": _signed_distance(places, eye[:, :2]),
            "eye_above": y - _interpolate(x, eye[[0, 3], 0].contiguous(), eye[[0, 3], 1]),
            "cheek": _blob(x, y, (44.0, -6.0), 17.0, 14.0),
            "nose": _blob(x, y, (0.0, float(nose_tip[1]) + 2.0), 12.0, 14.0),
            "under_eye": _blob(x, y, (float(eye[:, 0].mean()) - 3.0, eye_y - 11.0), 12.0, 5.0),
            "beard": torch.sigmoid((cheek_line - y) / 3.0),
            "moustache": moustache,
            "nostril": _blob(x, y, (6.5, float(landmarks[33, 1]) + 1.0), 3.0, 1.8),
        }
        texels = torch.stack([planes[key] for key in _CHANNELS]).reshape(len(_CHANNELS), height, width)
        self.map = Texture(texels)
        tints = torch.tensor([TINTS[key] for key in TINTS]).T[..., None].contiguous()
        self.register_buffer("tints", tints, persistent=False)
        self.register_buffer("eye_centre", torch.tensor([float(eye[:, 0].mean()), eye_y + 0.3]), persistent=False)
        self.eye_width = float(eye[3, 0] - eye[0, 0])

    def features(self, canonical: Tensor, channels: slice) -> dict[str, Tensor]:
        """Values of the map at canonical places ``[3, P]``, each ``[1, P]``."""
        x, y = canonical[0].abs() - 0.5, (_TOP - 0.5) - canonical[1]
        values = self.map(x, y, channels.start, channels.stop)
        return {key: values[k : k + 1] for k, key in enumerate(_CHANNELS[channels])}

    def _tint(self, key: str) -> Tensor:
        return self.tints[:, list(TINTS).index(key)]

    def forward(
        self,
        canonical: Tensor,
        counts: list[int],
        image: Tensor,
        scene: Scene,
        mesh: SceneMesh,
    ) -> tuple[Tensor, Tensor]:
        """Paint pixels; channels come first here, which is several times faster on the CPU.

        Args:
            canonical: Places on the mean ``[3, P]``, sorted by part.
            counts: How many pixels of each part there are, SKIN ... TEETH in this order.
            image: Int64 ``[P]``, the row of the scene.
            scene: Whom to paint.
            mesh: Knows the hairline.

        Returns:
            Albedo ``[3, P]`` linear RGB, and strength of highlights ``[1, P]``.
        """
        painters = (
            self._skin, self._eye, self._inside, self._torso, self._hair_curtain, self._frame, self._lens, self._teeth,
        )  # fmt: skip
        albedo, gloss = [canonical[:, :0]], [canonical[:1, :0]]
        start = 0
        for paint, count in zip(painters, counts, strict=True):
            if count:
                colour, shine = paint(
                    canonical[:, start : start + count],
                    _Local(scene.person, scene.view.gaze, image[start : start + count]),
                    mesh,
                )
                albedo.append(colour.expand(3, count))
                gloss.append(shine.expand(1, count))
            start += count
        return torch.cat(albedo, dim=1), torch.cat(gloss, dim=1)

    def _noise(self, azimuth: Tensor, y: Tensor, place: Tensor, channels: slice) -> tuple[Tensor, ...]:
        places = azimuth / math.pi + place[0], y / 188.0 + place[1]
        return torch.split(self.bank.sample(*places, channels), 1)

    def _strands(self, azimuth: Tensor, y: Tensor, place: Tensor) -> Tensor:
        """Streaks that run down, ``[1, P]`` of about unit variance."""
        places = azimuth * (4.0 / math.pi) + y / 700.0 + place[0], y / 420.0 + place[1]
        medium, white, coarse = torch.split(self.bank.sample(*places, STRANDS), 1)
        return 0.7 * medium + 0.45 * white + 0.5 * coarse

    def _skin(self, at: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        """Skin where it can show and hair where it can, the two mixed at the hairline."""
        hair = local.person.hair
        azimuth = torch.atan2(at[0], at[2] - AXIS_Z)
        above = mesh.hair_height(hair.line, azimuth, at[1], local.image)[None]
        reach = local(RAGGED * hair.ragged + TAIL * hair.soft)
        bare, hairy = positions((above < reach)[0]), positions((above > -reach)[0])
        near = at.index_select(1, bare)
        skin, shine = self._bare_skin(near, azimuth.index_select(0, bare), local.take(bare), mesh)
        skin = at.new_zeros(at.shape).index_copy(1, bare, skin)
        shine = at.new_zeros(1, at.shape[1]).index_copy(1, bare, shine)
        if not hairy.numel():
            return skin, shine
        azimuth, y, local = azimuth.index_select(0, hairy), at[1].index_select(0, hairy), local.take(hairy)
        place = local(local.person.skin.place)
        medium, white = self._noise(azimuth, y, place, slice(CLOTH.stop - 2, CLOTH.stop))
        strands = self._strands(azimuth, y, place)
        above = above.index_select(1, hairy) + (1.6 * strands + 3.0 * medium) * local(hair.ragged)
        cover = torch.sigmoid(above / local(hair.soft))
        mixed = torch.lerp(skin.index_select(1, hairy), _hair_colour(strands, local), cover)
        gloss = torch.lerp(shine.index_select(1, hairy), local(hair.gloss) * torch.exp(0.3 * white), cover)
        return skin.index_copy(1, hairy, mixed), shine.index_copy(1, hairy, gloss)

    def _bare_skin(self, at: Tensor, azimuth: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        person = local.person
        face, brows, lips = person.skin, person.brows, person.lips
        medium_b, white_b, coarse_a, coarse_b, medium_a, white_a = self._noise(
            azimuth, at[1], local(face.place), SURFACE
        )
        f = self.features(at, ALL)
        front = torch.sigmoid((at[2:] - 22.0) / 5.0)
        tone = coarse_a * local(face.blotches) + medium_a * local(face.medium_blotches) + white_a * local(face.grain)
        flush = local(face.flush)
        red = front * (flush[:1] * f["cheek"] + flush[1:2] * f["nose"])
        tone = tone + coarse_b * (local(face.red_blotches) * self._tint("blotch")) + red * self._tint("flush")
        # exp2 takes a quarter of the time of exp.
        skin = local(face.colour) * torch.exp2(tone * math.log2(math.e))
        shadow = 1.0 - (front * local(face.under_eye) * f["under_eye"]) * self._tint("under_eye")
        skin = skin * (shadow * (1.0 - front * local(face.nostril) * f["nostril"]))
        if not local.nowhere(person.skin.freckles):
            freckle = ((medium_b + 0.6 * white_b - 1.3).clamp(0.0, 1.0)) * local(face.freckles)
            skin = skin * (1.0 - (freckle * front) * self._tint("freckle"))
        if not (local.nowhere(person.beard.beard) and local.nowhere(person.beard.moustache)):
            beard = person.beard
            growth = local(beard.beard) * f["beard"] + local(beard.moustache) * f["moustache"]
            growth = growth * torch.sigmoid(f["lip"] - 0.5) * front * torch.sigmoid((at[1:2] + 118.0) / 6.0)
            cover = (growth * torch.exp(0.25 * white_b + 0.25 * medium_a)).clamp(0.0, 0.95)
            skin = torch.lerp(skin, local(beard.colour) * torch.exp(0.25 * white_b), cover)
        # Lips, brows and lids cover little of a face: each is painted on the pixels around it alone.
        in_lip = torch.sigmoid(-f["lip"] / local(lips.soft)) * front
        shine = (local(face.gloss) + 0.8 * in_lip * local(lips.gloss)) * torch.exp(0.3 * white_a)
        near = f["lip"] < local((TAIL * lips.soft).clamp_min(0.5 + 0.5 * TAIL))
        rows = {"lip": f["lip"], "mouth_line": f["mouth_line"], "in_lip": in_lip, "front": front, "noise": medium_b}
        skin = self._painted_at(near, self._lips, skin, rows, local)
        s = f["brow_along"]
        side = local(TAIL * 0.7 + brows.half + 0.7 * brows.tilt.abs() + 0.4 * brows.arch.abs())
        near = ((f["brow_above"] - local(brows.shift)).abs() < side) & (s > local(brows.start - 0.04 * TAIL))
        near = near & (s < local(brows.end + 0.04 * TAIL))
        noise = 0.35 * white_b + 0.25 * medium_a
        rows = {"along": s, "above": f["brow_above"], "front": front, "noise": noise}
        skin = self._painted_at(near, self._brows, skin, rows, local)
        rows = {"eye": f["eye"], "eye_above": f["eye_above"], "front": front}
        skin = self._painted_at(f["eye"] < 17.0, self._lids, skin, rows, local)
        if not self.has_eyeballs:
            eyes, _ = self._eye(at, local, mesh)
            skin = torch.lerp(skin, eyes, torch.sigmoid(-f["eye"] / 0.4) * front)
        return skin, shine

    @staticmethod
    def _painted_at(
        near: Tensor,
        painter: Callable[[Tensor, dict[str, Tensor], _Local], Tensor],
        skin: Tensor,
        rows: dict[str, Tensor],
        local: _Local,
    ) -> Tensor:
        """Skin ``[3, P]`` with what a painter draws on the pixels ``near`` ``[1, P]``."""
        some = positions(near[0])
        picked = {key: row.index_select(1, some) for key, row in rows.items()}
        return skin.index_copy(1, some, painter(skin.index_select(1, some), picked, local.take(some)))

    @staticmethod
    def _lips(skin: Tensor, f: dict[str, Tensor], local: _Local) -> Tensor:
        lips = local.person.lips
        lip = skin * 0.25 + 0.75 * local(lips.colour) * torch.exp(0.12 * f["noise"])
        skin = torch.lerp(skin, lip, f["in_lip"] * local(lips.strength))
        line = torch.exp(-0.5 * (f["mouth_line"] / 0.9).square()) * torch.sigmoid((0.5 - f["lip"]) * 2.0) * f["front"]
        return skin * (1.0 - local(lips.line) * line)

    @staticmethod
    def _brows(skin: Tensor, f: dict[str, Tensor], local: _Local) -> Tensor:
        """By the distance to the brow's own line, thinner towards the temple, broken up by noise."""
        brows = local.person.brows
        s = f["along"]
        bent = f["above"] - local(brows.shift) - local(brows.tilt) * (s - 0.5)
        bent = bent - local(brows.arch) * (s * (1 - s) - 0.2)
        half = local(brows.half) * (1.0 - 0.65 * s.clamp(0.0, 1.2) ** 2)
        along = torch.sigmoid((s - local(brows.start)) * 25.0) * torch.sigmoid((local(brows.end) - s) * 25.0)
        brow = torch.sigmoid((half - bent.abs()) / 0.7) * along * f["front"] * local(brows.strength)
        return torch.lerp(skin, local(brows.colour), (brow * torch.exp(f["noise"])).clamp(0.0, 0.95))

    @staticmethod
    def _lids(skin: Tensor, f: dict[str, Tensor], local: _Local) -> Tensor:
        """Lashes along the lids, and the crease and shadow above them."""
        lids = local.person.lids
        eye, front = f["eye"], f["front"]
        upper = torch.sigmoid(f["eye_above"] / 0.8)
        lash_width = local(lids.lash_width) * (0.8 + 0.6 * upper)
        lash = torch.exp(-0.5 * ((eye - 0.5) / lash_width).square()) * (0.45 + 0.55 * upper)
        skin = skin * (1.0 - front * (local(lids.lashes) * lash).clamp(0.0, 0.95))
        lid = torch.exp(-0.5 * ((eye - 4.0) / 3.0).square()) * upper * front
        return torch.lerp(skin, local(lids.colour), lid * local(lids.strength))

    def _eye(self, at: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        del mesh
        lids, eyes, gaze = local.person.lids, local.person.eyes, local.gaze
        offset, glint_at, plain = local(gaze.offset), local(gaze.glint), local(eyes.white)
        side = torch.sign(at[:1])
        dx = at[:1] - side * self.eye_centre[0] - offset[:1]
        dy = at[1:2] - self.eye_centre[1] - offset[1:2]
        radius = (dx * dx + dy * dy).sqrt()
        iris_radius = local(eyes.radius) * self.eye_width
        angle = torch.atan2(dy, dx)
        spokes = 1.0 + 0.2 * torch.sin(angle * 11.0) * torch.sin(angle * 17.0 + 1.0)
        iris = local(eyes.iris) * spokes * (0.6 + 0.5 * torch.sigmoid((radius - 0.6 * iris_radius) * 2.0))
        iris = iris * (1.0 - 0.7 * torch.exp(-0.5 * ((radius - iris_radius) / (0.12 * iris_radius)).square()))
        pupil = torch.sigmoid((local(eyes.pupil) * iris_radius - radius) / 0.25)
        iris = iris * (1.0 - 0.95 * pupil)
        corner = (((at[:1].abs() - self.eye_centre[0]).abs() / (0.5 * self.eye_width) - 0.55) / 0.45).clamp(0.0, 1.0)
        white = plain * (1.0 - corner * self._tint("eye_corner"))
        eye = torch.lerp(white, iris, torch.sigmoid((iris_radius - radius) / 0.3))
        rim = self.features(at, EYE)["eye"]
        eye = eye * (1.0 - (0.8 * local(lids.lashes) * torch.exp(-0.5 * (rim / 1.1).square())).clamp(0.0, 0.9))
        shaded = 1.0 - 0.55 * torch.sigmoid((dy + offset[1:2] - 0.14 * self.eye_width) / 1.0)
        eye = eye * shaded
        glint = torch.exp(-0.5 * ((dx - glint_at[:1]).square() + (dy - glint_at[1:2]).square()) / 0.55)
        eye = eye + glint * local(gaze.brightness) * (0.3 + plain.amax(0, keepdim=True))
        return eye, at.new_full((1, 1), 0.3)

    def _inside(self, at: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        del mesh
        mouth = local.person.mouth
        tongue = torch.sigmoid((-58.0 - at[1:2]) / 4.0) * torch.sigmoid((at[1:2] + 95.0) / 3.0)
        return local(mouth.colour) * (0.5 + 0.9 * tongue), at.new_full((1, 1), 0.1)

    def _teeth(self, at: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        del mesh
        mouth = local.person.mouth
        gaps = 1.0 - 0.3 * torch.exp(-0.5 * (torch.sin(at[:1] * (math.pi / 8.0)) / 0.09).square())
        dark = 1.0 - 0.6 * (at[:1].abs() / 25.0).clamp(0.0, 1.0) ** 2
        gum = torch.sigmoid((at[1:2] + 33.5) / 0.6) + torch.sigmoid((-at[1:2] - 55.0) / 0.6)
        colour = local(mouth.teeth) * gaps * dark
        return torch.lerp(colour, local(mouth.colour) * 2.0, gum.clamp(0.0, 1.0)), at.new_full((1, 1), 0.25)

    def _torso(self, at: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        del mesh
        face = local.person.skin
        clothes = local.person.clothes
        stripes, collar = local(clothes.stripes), local(clothes.collar)
        azimuth = torch.atan2(at[0], at[2] + 8.0)
        coarse_a, coarse_b, medium, white = self._noise(azimuth, at[1], local(face.place), CLOTH)
        skin = local(face.colour) * torch.exp(coarse_a * local(face.blotches) + white * local(face.grain))
        front = torch.sigmoid(at[2:] / 8.0)
        dip = local(clothes.collar_depth) * (1.0 - at[:1].abs() / local(clothes.collar_width)).clamp_min(0.0) * front
        cloth_weight = torch.sigmoid((collar - dip - at[1:2]) / 1.2)
        waves = torch.sin(at[1:2] * stripes[:1] + at[:1] * stripes[1:2] + coarse_a)
        pattern = torch.sigmoid(waves * 6.0) * stripes[2:3]
        cloth = torch.lerp(local(clothes.colour), local(clothes.second), pattern)
        cloth = cloth * torch.exp(0.25 * coarse_b + 0.15 * medium + 0.08 * white)
        edge = torch.exp(-0.5 * ((collar - dip - at[1:2]) / 2.0).square())
        gloss = 0.5 * local(face.gloss) * (1.0 - cloth_weight)
        return torch.lerp(skin, cloth * (1.0 - 0.4 * edge), cloth_weight), gloss

    def _hair_curtain(self, at: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        del mesh
        azimuth = torch.atan2(at[0], at[2] - AXIS_Z)
        strands = self._strands(azimuth, at[1], local(local.person.skin.place))
        return _hair_colour(strands, local), local(local.person.hair.gloss) * torch.exp(0.4 * strands)

    def _frame(self, at: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        del mesh
        return local(local.person.glasses.frame), at.new_full((1, 1), 0.6)

    def _lens(self, at: Tensor, local: _Local, mesh: SceneMesh) -> tuple[Tensor, Tensor]:
        del mesh
        fade = 1.0 + 0.8 * (0.5 - 0.5 * at[1:2]).clamp(0.0, 1.0)
        return local(local.person.glasses.lens) * fade, at.new_full((1, 1), 1.2)


def _hair_colour(strands: Tensor, local: _Local) -> Tensor:
    hair = local.person.hair
    return local(hair.colour) * torch.exp(local(hair.contrast) * strands)


class _Local:
    """The parameters of a scene at packed pixels.

    Args:
        person: One row per image.
        gaze: One row per image.
        image: Int64 ``[P]``.
    """

    def __init__(self, person: Person, gaze: Gaze, image: Tensor) -> None:
        self.person, self.gaze, self.image = person, gaze, image
        self._single = person.skin.colour.shape[0] == 1

    def __call__(self, value: Tensor) -> Tensor:
        """A value ``[B, C]`` of the scene as ``[C, P]`` (or ``[C, 1]`` where there is one image)."""
        return value.T if self._single else value.T.index_select(1, self.image)

    def take(self, rows: Tensor) -> _Local:
        """Of some of the pixels."""
        return self if self._single else _Local(self.person, self.gaze, self.image.index_select(0, rows))

    def nowhere(self, value: Tensor) -> bool:
        """Whether a parameter is 0 in all pictures on the CPU (asking a GPU would stall it)."""
        return self.image.device.type == "cpu" and float(value.max()) <= 0.0
