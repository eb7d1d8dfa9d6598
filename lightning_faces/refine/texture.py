"""The texture of a face in a photograph, completed by the face model's albedo (Richardson 2016, section 8, figure 9).

Colours of what can be seen are read back from the image, the light is divided out, the albedo model is fitted to them,
and it fills what cannot be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.uv import UVGrid
from lightning_faces.refine.shape_from_shading import harmonics
from lightning_faces.rendering.renderer import VertexNormals, rasterize_image, to_view

FACING = 0.25
"""Cosine between a surface's normal and the viewer below which its few pixels say nothing of its colour."""
DARKEST = 0.1
"""Shading, over its mean, below which a colour is too dark to be divided by it."""


@dataclass(eq=False)
class FaceTexture:
    """What :class:`TextureRecovery` gives; all images are UV images of side T.

    Attributes:
        texture: ``[B, 3, T, T]`` RGB albedo in [0, 1]: the photograph's where it shows the face, else the model's.
        observed: ``[B, 3, T, T]``, the photograph's colours with their light, 0 where it does not show the face.
        seen: Bool ``[B, 1, T, T]``.
        model_albedo: ``[B, 3, T, T]``, the model's albedo that fits the seen colours best.
        coefficients: ``[B, Ka]``, its coefficients in standard deviations.
        lighting: ``[B, 9]``, spherical harmonics of the light, which is taken as white; normals in the view frame. How
            bright the light is and how dark the skin, an image does not say: only their product counts.
    """

    texture: Tensor
    observed: Tensor
    seen: Tensor
    model_albedo: Tensor
    coefficients: Tensor
    lighting: Tensor


class TextureRecovery(nn.Module):
    """Reads the texture of faces from their photographs.

    Args:
        model: A face model with a UV map and an albedo model.
        regularization: Weight of a squared albedo coefficient, in squared colours summed over the texels.
        rounds: Alternations of light and albedo.

    Raises:
        ConfigurationError: If the face model has no albedo.

    Example:
        >>> recovery = TextureRecovery(MorphableModel.load("embedded"))
        >>> face = recovery.model.mean[None] * torch.tensor([0.5, -0.5, 0.5]) + torch.tensor([48.0, 48.0, 0.0])
        >>> recovery(torch.full((1, 3, 96, 96), 0.5), face).texture.shape
        torch.Size([1, 3, 256, 256])
    """

    def __init__(self, model: MorphableModel, regularization: float = 1.0, rounds: int = 8) -> None:
        super().__init__()
        if model.albedo_mean is None or model.albedo_basis is None or model.albedo_std is None:
            raise ConfigurationError(
                f"Face model {model.name!r} has no albedo model, which completes a texture: use the model 'embedded'."
            )
        self.model, self.regularization, self.rounds = model, regularization, rounds
        self.grid = UVGrid(model, model.albedo_mean.shape[-1])
        self.normals = VertexNormals(model.faces, model.num_vertices)

    @torch.no_grad()
    def forward(self, image: Tensor, vertices: Tensor) -> FaceTexture:
        """Recover textures.

        Args:
            image: ``[B, 3, H, W]`` in [0, 1].
            vertices: All vertices of the faces ``[B, V, 3]``, image frame.

        Returns:
            Textures. A face of which nothing can be seen gets the model's mean albedo.
        """
        attributes = torch.cat((vertices, self.normals(to_view(vertices))), dim=-1)
        maps = self.grid.position_map(attributes)
        places, normals = maps[:, :3], nn.functional.normalize(maps[:, 3:], dim=1)
        observed = _at(image, places)
        seen = self.grid.mask & _seen(image, vertices, self.model.faces, places, normals)
        basis, mean, std = self.model.albedo_basis, self.model.albedo_mean, self.model.albedo_std
        assert basis is not None
        assert mean is not None
        assert std is not None
        modes = (basis * std[:, None, None, None]).flatten(2)
        base = mean.flatten(1)
        light_basis = harmonics(normals).flatten(2)
        colours, weight = observed.flatten(2), seen.flatten(1).to(image.dtype)
        coefficients = image.new_zeros(len(image), len(modes))
        albedo = base.expand(len(image), -1, -1)
        lighting = image.new_zeros(len(image), 9)
        for _ in range(self.rounds):
            lighting = _fit_lighting(colours, albedo, light_basis, weight)
            shading = (lighting[:, None] @ light_basis).clamp(min=0)
            coefficients = self._fit_albedo(colours, base, modes, shading, weight)
            albedo = base + torch.einsum("bk,kct->bct", coefficients, modes)
        shading = (lighting[:, None] @ light_basis).clamp(min=0)
        usual = (shading[:, 0] * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        seen = seen & (shading > DARKEST * usual[:, None, None]).reshape(seen.shape)
        own = (colours / shading.clamp(min=1e-3)).clamp(0, 1)
        completed = torch.where(seen.flatten(2), own, albedo.clamp(0, 1))
        shape = observed.shape
        return FaceTexture(
            completed.reshape(shape), observed * seen, seen, albedo.clamp(0, 1).reshape(shape), coefficients, lighting
        )

    def _fit_albedo(self, colours: Tensor, base: Tensor, modes: Tensor, shading: Tensor, weight: Tensor) -> Tensor:
        """Ridge regression of the coefficients ``[B, Ka]`` to the seen colours under a light."""
        lit = (modes * (shading * weight[:, None])[:, None]).flatten(2)
        wanted = ((colours - base * shading) * weight[:, None]).flatten(1)
        gram = lit @ lit.transpose(1, 2) + self.regularization * torch.eye(len(modes), device=lit.device)
        solved: Tensor = torch.linalg.solve(gram, (lit @ wanted[..., None]))[..., 0]
        return solved


@torch.no_grad()
def vertex_colours(image: Tensor, vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Colours of faces' vertices in their photographs, for coloured meshes (Pix2face 2017, section 3.3).

    A vertex that the photograph does not show, since it is turned away, behind another part of the face or outside the
    image, takes the mean colour of those of its face that it shows.

    Args:
        image: ``[B, 3, H, W]`` RGB in [0, 1].
        vertices: ``[B, V, 3]``, image frame.
        faces: Int64 ``[F, 3]``, the triangles between them.

    Returns:
        RGB ``[B, V, 3]`` (0.5 where nothing of a face is shown), and bool ``[B, V]``: which vertices are shown.

    Example:
        >>> model = MorphableModel.load("embedded")
        >>> face = model.mean[None] * torch.tensor([0.5, -0.5, 0.5]) + torch.tensor([64.0, 64.0, 0.0])
        >>> colours, seen = vertex_colours(torch.full((1, 3, 128, 128), 0.25), face, model.faces)
        >>> round(float(colours.std()), 4), bool(seen.any()), bool(seen.all())
        (0.0, True, False)
    """
    normals = VertexNormals(faces, vertices.shape[1]).to(vertices.device)(to_view(vertices))
    places, turned = (values.transpose(1, 2)[..., None] for values in (vertices, normals))
    seen = _seen(image, vertices, faces, places, turned)[:, 0]
    colours = _at(image, places)[..., 0].transpose(1, 2)
    count = seen.sum(dim=1, keepdim=True)
    mean = (colours * seen).sum(dim=1, keepdim=True) / count.clamp(min=1)
    mean = torch.where(count > 0, mean, 0.5)
    return torch.where(seen, colours, mean), seen[..., 0]


def _seen(image: Tensor, vertices: Tensor, faces: Tensor, places: Tensor, normals: Tensor) -> Tensor:
    """Which points ``[B, 1, T, T]`` of a face the image shows: inside it, turned to the viewer, nothing in front.

    Args:
        image: ``[B, 3, H, W]``.
        vertices: ``[B, V, 3]``, image frame.
        faces: ``[F, 3]``.
        places: Of the points, image frame ``[B, 3, T, T]``.
        normals: There, view frame ``[B, 3, T, T]``.
    """
    height, width = image.shape[-2:]
    raster = rasterize_image(vertices, faces, (height, width))
    depth = raster.to_image(raster.interpolate(vertices, raster.faces), background=-1e6)[:, 2:]
    # A point lies between pixels: the nearest surface around it, with the depth that a pixel spans there.
    nearest = nn.functional.max_pool2d(depth, 3, stride=1, padding=1)
    x, y = places[:, :1], places[:, 1:2]
    inside = (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
    slope = (1 - normals[:, 2:].square()).clamp(min=0).sqrt() / normals[:, 2:].clamp(min=FACING)
    size = (vertices[..., :2].amax(dim=1) - vertices[..., :2].amin(dim=1)).amax(dim=1)[:, None, None, None]
    clear = places[:, 2:] > _at(nearest, places) - 3 * slope - 0.02 * size
    return inside & clear & (normals[:, 2:] > FACING)


def _fit_lighting(colours: Tensor, albedo: Tensor, light_basis: Tensor, weight: Tensor) -> Tensor:
    """Least squares of the light ``[B, 9]`` for an albedo."""
    lit = (albedo[:, :, None] * light_basis[:, None] * weight[:, None, None]).transpose(1, 2).flatten(2)
    small = 1e-4 * (1 + weight.sum(dim=1))[:, None, None]
    gram = lit @ lit.transpose(1, 2) + small * torch.eye(9, dtype=lit.dtype, device=lit.device)
    solved: Tensor = torch.linalg.solve(gram, lit @ (colours * weight[:, None]).flatten(1)[..., None])[..., 0]
    return solved


def _at(images: Tensor, places: Tensor) -> Tensor:
    """Bilinear values of images ``[B, C, H, W]`` at image-frame places ``[B, 3, T, T]``."""
    last = images.new_tensor([images.shape[-1] - 1, images.shape[-2] - 1])
    grid = places[:, :2].permute(0, 2, 3, 1) * (2 / last) - 1
    return nn.functional.grid_sample(images, grid, align_corners=True, padding_mode="border")
