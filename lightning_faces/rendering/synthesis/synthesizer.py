"""Synthetic photographs of faces with exact targets, from seeds: no photograph of a face and no trained weight goes in.

A scene is drawn on the CPU from its seed (and its subject's) alone, so that sample i is the same in any batch, worker
and process. Rendering is the same code on CPU and CUDA; on the CPU it goes image by image, which is faster there and
makes the result independent of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import box_of_points
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering.geometry_view import CHUNK, steady_vertices
from lightning_faces.rendering.maps import FaceMaps
from lightning_faces.rendering.renderer import Raster, rasterize_together, to_view
from lightning_faces.rendering.synthesis.mesh import NUM_PARTS, SKIN, SceneMesh
from lightning_faces.rendering.synthesis.noise import Draws
from lightning_faces.rendering.synthesis.options import SynthesisOptions
from lightning_faces.rendering.synthesis.painting import FacePaint
from lightning_faces.rendering.synthesis.person import GAMMA, draw_expression, draw_identity, draw_person
from lightning_faces.rendering.synthesis.photograph import Photograph, power
from lightning_faces.rendering.synthesis.scene import Light, Rows, Scene, View
from lightning_faces.rendering.synthesis.situation import (
    LIGHTS,
    draw_background,
    draw_exposure,
    draw_light,
    draw_occlusion,
    draw_view,
)

SYNTHESIS_VERSION = 5
"""Changes whenever the same seed gives another picture or target: part of the name of cached samples."""

REGION_TARGETS = frozenset({"pncc", "offsets", "face_mask", "normals"})
EXTRA_TARGETS = REGION_TARGETS | {"position_map"}
"""Targets that :meth:`FaceSynthesizer.render` gives on request."""
PLAIN_TARGETS = frozenset({"image", "landmarks", "visible", "pose", "coefficients", "vertices"})
"""Targets that it always gives."""


@dataclass(frozen=True)
class _Geometry(Rows):
    """All that does not know of pixels.

    Attributes:
        scene: What is shown.
        coefficients: ``[B, K]``.
        pose: ``[B, 6]``.
        shapes: ``[B, V, 3]`` object frame, mm.
        vertices: ``[B, V, 3]`` image frame, as all that follows.
        landmarks: ``[B, 68, 3]``.
        facing: Bool ``[B, 68]``, landmarks on surface that does not turn away.
        points: ``[B, N, 3]`` of all that is drawn.
        attributes: ``[B, 8, N]`` of these: place on the mean, irradiance, highlight, depth.
    """

    scene: Scene
    coefficients: Tensor
    pose: Tensor
    shapes: Tensor
    vertices: Tensor
    landmarks: Tensor
    facing: Tensor
    points: Tensor
    attributes: Tensor


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

    Example:
        >>> synthesizer = FaceSynthesizer(MorphableModel.load("embedded"), image_size=64)
        >>> faces = synthesizer.render(synthesizer.sample([7, 8]), targets=["pncc"])
        >>> faces["image"].shape, faces["landmarks"].shape, faces["pncc"].shape
        (torch.Size([2, 3, 64, 64]), torch.Size([2, 68, 3]), torch.Size([2, 3, 64, 64]))
    """

    stretch_identity: Tensor
    ambient_visibility: Tensor
    wrap_colour: Tensor
    towards_viewer: Tensor

    def __init__(
        self,
        model: MorphableModel,
        image_size: int,
        options: SynthesisOptions = SynthesisOptions(),  # noqa: B008 - frozen, so one default can be shared
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
        options = self.options
        person = draw_person(who, options)
        scene = Scene(
            identity=draw_identity(who, self.model, options, self.stretch_identity.cpu()),
            expression=draw_expression(moment, self.model) * options.expression_scale,
            person=person,
            view=draw_view(view, seeds, yaw_thirds, options),
            light=draw_light(view, person.skin.colour, options),
            background=draw_background(view, options),
            occlusion=draw_occlusion(view, options),
            exposure=draw_exposure(view, options, self.image_size),
        )
        return scene.map(lambda value: value.float())

    @cached_property
    def _pattern(self) -> Scene:
        return self.sample([0])

    def unpack(self, packed: Tensor) -> Scene:
        """The scenes of a tensor ``[B, M]`` that :meth:`Scene.pack` gave, on its device."""
        return self._pattern.unpack(packed)

    # ---- rendering --------------------------------------------------------------------------------------------------

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
        wanted = _checked(scene, targets)
        if self.stretch_identity.device.type != "cpu":
            return self._draw(self._geometry(scene.to(self.stretch_identity.device)), wanted)
        parts = list(self._chunks(scene, wanted))
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def render_each(self, scene: Scene, targets: Sequence[str] = ()) -> Iterator[dict[str, Tensor]]:
        """What :meth:`render` gives, picture by picture with B = 1: on the CPU, where putting them together costs time.

        Raises:
            ConfigurationError: If there is no such target, or the scene is empty.
        """
        for part in self._chunks(scene, _checked(scene, targets)):
            singles = zip(*(torch.split(value, 1) for value in part.values()))
            yield from (dict(zip(part, single)) for single in singles)

    def _chunks(self, scene: Scene, targets: frozenset[str]) -> Iterator[dict[str, Tensor]]:
        """A few pictures at a time, which share each operation's cost, but still fit into the caches.

        Geometry is always computed for as many, so that a face does not depend on its batch.
        """
        for start in range(0, len(scene), CHUNK):
            rows = torch.arange(start, start + CHUNK).clamp_max(len(scene) - 1)
            geometry = self._geometry(scene.take(rows))
            count = min(CHUNK, len(scene) - start)
            if count < CHUNK:
                geometry = geometry.map(partial(torch.narrow, dim=0, start=0, length=count))
            yield self._draw(geometry, targets)

    def _geometry(self, scene: Scene) -> _Geometry:
        coefficients = torch.cat((scene.identity, scene.expression), dim=1)
        shapes = steady_vertices(self.model, coefficients)
        camera = self._camera(shapes, scene.view)
        vertices = camera.project(shapes @ scene.view.rotation.transpose(1, 2))
        drawn = self.scene_mesh(shapes, scene.identity, scene.expression, scene.person, scene.view)
        points = camera.project(drawn)
        normals = self.scene_mesh.normals(to_view(points)).transpose(1, 2)
        irradiance, highlight = self._irradiance(normals, scene.light, scene.view.rotation)
        canonical = self.scene_mesh.canonical.T.expand(points.shape[0], -1, -1)
        return _Geometry(
            scene=scene,
            coefficients=coefficients,
            pose=camera.pose,
            shapes=shapes,
            vertices=vertices,
            landmarks=self.model.landmarks(vertices),
            facing=self.maps.visible_by_normal(vertices),
            points=points,
            attributes=torch.cat((canonical, irradiance, highlight, points[:, None, :, 2]), dim=1),
        )

    def _draw(self, geometry: _Geometry, targets: frozenset[str]) -> dict[str, Tensor]:
        """Pictures and targets."""
        meshes = [(geometry.points, self.scene_mesh.faces)]
        if targets & REGION_TARGETS:
            meshes.append((geometry.vertices, self.maps.region_faces))
        scene_raster, *face_raster = rasterize_together(meshes, self.image_size, cull_backfaces=True)
        image, depth = self._photograph(scene_raster, geometry)
        landmarks = geometry.landmarks
        tall = landmarks[..., 1].amax(1, keepdim=True) - landmarks[..., 1].amin(1, keepdim=True)
        # Occluders that are drawn over the picture do not count.
        shown = self.maps.visible_by_depth(landmarks, depth, 0.03 * tall)
        rendered = {
            "image": image,
            "visible": geometry.facing & shown,
            "coefficients": geometry.coefficients,
            "landmarks": landmarks,
            "pose": geometry.pose,
            "vertices": geometry.vertices,
        }
        if "position_map" in targets:
            rendered["position_map"] = self.maps.position_map(geometry.vertices)
        for raster in face_raster:
            rendered |= self._maps(raster, geometry.shapes, geometry.vertices, targets)
        return rendered

    def _maps(self, raster: Raster, shapes: Tensor, vertices: Tensor, targets: frozenset[str]) -> dict[str, Tensor]:
        pncc, offsets, mask = self.maps.pncc(raster, shapes)
        maps = {"pncc": pncc, "offsets": offsets, "face_mask": mask}
        if "normals" in targets:
            maps["normals"] = self.maps.normal_map(raster, self.maps.view_normals(vertices))
        return maps

    def _camera(self, shapes: Tensor, view: View) -> _Camera:
        """Place the face: the box of its projected landmarks is centred and fills ``face_fraction`` of the side."""
        landmarks = self.model.landmarks(shapes) @ view.rotation.transpose(1, 2)
        middle = landmarks.mean(1)
        flat = _perspective(landmarks, middle, view.distance)[0] + middle[:, None, :2]
        box = box_of_points(flat)
        size = self.image_size
        fraction = (self.options.face_fraction * view.zoom).clamp_max(1.0)
        scale = fraction * size / (box[:, 2:] - box[:, :2]).amax(1, keepdim=True)
        centre = 0.5 * (box[:, :2] + box[:, 2:])
        x = (size - 1) / 2 + view.place[:, :1] * size - scale * centre[:, :1]
        y = (size - 1) / 2 + view.place[:, 1:] * size + scale * centre[:, 1:]
        return _Camera(torch.cat((scale, view.angles, x, y), dim=1), middle, view.distance)

    def _photograph(self, raster: Raster, geometry: _Geometry) -> tuple[Tensor, Tensor]:
        """The finished picture ``[B, 3, H, W]`` and the depth of what it shows ``[B, 1, H, W]``, pixels."""
        mesh, scene = self.scene_mesh, geometry.scene
        part = mesh.parts.index_select(0, raster.face)
        counts = torch.bincount(part, minlength=NUM_PARTS).tolist()
        # One picture on the CPU comes by triangle, and so by part.
        if raster.shape[0] > 1 or part.device.type != "cpu":
            raster = raster.take(torch.argsort(part, stable=True))
        values = raster.interpolate(geometry.attributes.transpose(1, 2), mesh.faces).T
        albedo, gloss = self.paint(values[:3], counts, raster.image, scene, mesh)
        light = albedo * values[3:6] + gloss * values[6:7]
        exposure = self._exposure(light, counts[SKIN], raster, scene.light.key)
        # 0 has no logarithm.
        colour = power((light * exposure).clamp(1e-30, 1.0)[None], light.new_tensor(1.0 / GAMMA))[0]
        image = raster.to_image(colour.T, self.photograph.background(scene.background))
        image = self.photograph.take(image, scene.occlusion, scene.exposure)
        return image, raster.to_image(values[7:8].T, -1e6)

    def _irradiance(self, normals: Tensor, light: Light, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """Light that reaches vertices of normals ``[B, 3, N]`` in heads of a rotation ``[B, 3, 3]``, with soft shadows.

        Returns:
            Irradiance ``[B, 3, N]`` and highlights ``[B, 1, N]``.
        """
        mesh = self.scene_mesh
        up = 0.5 + 0.5 * normals[:, 1:2]
        ambient = torch.lerp(light.ground[..., None], light.sky[..., None], up) * self.ambient_visibility
        directions = nn.functional.normalize(light.directions.reshape(-1, LIGHTS, 3), dim=-1)
        colours = light.colours.reshape(-1, LIGHTS, 3, 1)
        in_head = directions @ rotation
        nearness = torch.softmax(light.sharpness[:, None] * (in_head @ mesh.directions.T), dim=-1)
        seen = nearness @ mesh.visibility
        cosine = directions @ normals
        wrap = light.wrap[..., None, None] * self.wrap_colour
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
    def _exposure(light: Tensor, skin: int, raster: Raster, key: Tensor) -> Tensor:
        """Factors ``[1, P]`` that bring the mean brightness of each face's skin, the first pixels, to the key."""
        brightness = 0.3 * light[0, :skin] + 0.6 * light[1, :skin] + 0.1 * light[2, :skin]
        batch = raster.shape[0]
        if batch == 1:
            return key / (brightness.sum() / max(skin, 1)).clamp_min(1e-4)
        total = light.new_zeros(batch).index_add(0, raster.image[:skin], brightness)
        count = torch.bincount(raster.image[:skin], minlength=batch)
        factor = key[:, 0] / (total / count.clamp_min(1)).clamp_min(1e-4)
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
