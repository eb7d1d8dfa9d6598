"""PNCC and offset images: the 3D point that each pixel shows (Crispell and Bazik 2017, Pix2face, section 3.1)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.errors import ConfigurationError
from lightning_faces.heads.base import Features, FeatureShape, Head, last_layer, without_autocast
from lightning_faces.heads.terms import Term
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import fit_dense

COEFFICIENT_WEIGHT = 10.0
"""mm^2 of the fit's prior: a network's errors are alike over whole regions (see ``benchmarks/fit.py``)."""
MARGIN = 0.05
"""What the box of the PNCC has around the mean face, over its side; Pix2face's published box has about 0.1."""


class GeometryImages(NamedTuple):
    """Output of :class:`GeometryImageHead`.

    Attributes:
        pncc: ``[B, 3, S, S]``, the place on the mean face, in units in which the face model's box spans [-1, 1].
        offsets: ``[B, 3, S, S]``, the way from there to the face, in units of ``offset_range``.
    """

    pncc: Tensor
    offsets: Tensor


class GeometryImageHead(Head):
    """A U-Net's decoder (Ronneberger et al. 2015): six planes of the image's size, with tanh, from maps of all scales.

    The background is the origin of the object frame, inside the head, with an offset of 0. A pixel counts as face where
    the PNCC is more than half as far from the origin as the nearest point of the mean face, and so are its eight
    neighbours: between face and background a network mixes the two.

    Args:
        shape: What the backbone gives.
        face_model: The face model of the data, or its name or path.
        upsampling: "bilinear" upsampling and a convolution, or "transposed" convolutions, which leave a checker board.
        offset_range: The largest offset in millimetres; 25 in the published code.
        camera: The camera that :meth:`read` fits to the images.

    Raises:
        ConfigurationError: If the backbone gives no maps.
    """

    requires = frozenset({"pncc", "offsets", "face_mask"})
    centre: Tensor
    half_side: Tensor

    def __init__(
        self,
        shape: FeatureShape,
        face_model: MorphableModel | str = "embedded",
        upsampling: Literal["bilinear", "transposed"] = "bilinear",
        offset_range: float = 25.0,
        camera: Literal["affine", "perspective"] = "affine",
    ) -> None:
        super().__init__()
        if not shape.channels:
            raise ConfigurationError("GeometryImageHead reads feature maps, which the backbone was not asked for.")
        if offset_range <= 0:
            raise ConfigurationError(f"Option offset_range is {offset_range}; it must be positive.")
        self.image_size, self.offset_range, self.camera = shape.image_size, offset_range, camera
        self.face_model = MorphableModel.load(face_model) if isinstance(face_model, str) else face_model
        faces, region = self.face_model.faces, self.face_model.uv_face_ids
        places = self.face_model.mean[torch.unique(faces if region is None else faces[region])]
        low, high = places.amin(dim=0).clamp(max=0), places.amax(dim=0).clamp(min=0)
        self.register_buffer("centre", ((low + high) / 2)[:, None, None], persistent=False)
        self.register_buffer("half_side", ((0.5 + MARGIN) * (high - low))[:, None, None], persistent=False)
        self.least_distance = 0.5 * float(torch.linalg.vector_norm(places, dim=1).min())
        layers: list[nn.Module] = []
        width = shape.channels[-1]
        for level in range(len(shape.channels) - 2, -1, -1):
            out = shape.channels[level]
            layers.append(_Up(width, out, shape.sides[level], upsampling))
            width = 2 * out
        self.ups = nn.ModuleList(layers)
        self.last = _Resize(width, width, shape.image_size, upsampling)
        self.planes = nn.Conv2d(width, 6, 3, padding=1)

    def forward(self, features: Features) -> GeometryImages:
        """Maps of all scales to six planes."""
        values = features.maps[-1]
        for up, skip in zip(self.ups, reversed(features.maps[:-1])):
            values = torch.cat((up(values), skip), dim=1)
        planes = last_layer(self.planes, self.last(values)).tanh()
        return GeometryImages(planes[:, :3], planes[:, 3:])

    @without_autocast
    def terms(self, output: GeometryImages, batch: FaceBatch) -> dict[str, Term]:
        """``pncc`` and ``offsets``: mean absolute difference of the planes over all pixels, the background's too."""
        inside = batch["face_mask"] > 0.5
        has = batch["has"]["pncc"] & batch["has"]["offsets"] & batch["has"]["face_mask"]
        pncc = (torch.where(inside, batch["pncc"], 0.0) - self.centre) / self.half_side
        offsets = torch.where(inside, batch["offsets"], 0.0) / self.offset_range
        terms = {}
        for name, value, target in (("pncc", output.pncc, pncc), ("offsets", output.offsets, offsets)):
            error = (value - target).abs().mean(dim=(1, 2, 3))
            terms[name] = Term(error * has, has.to(error.dtype), 0.5)
        return terms

    def millimetres(self, output: GeometryImages) -> tuple[Tensor, Tensor, Tensor]:
        """PNCC and offsets ``[B, 3, S, S]``, object frame in mm, 0 off the face, and its mask ``[B, 1, S, S]``."""
        pncc = output.pncc * self.half_side + self.centre
        far = torch.linalg.vector_norm(pncc, dim=1, keepdim=True) > self.least_distance
        outside = (~far).to(pncc.dtype)
        mask = nn.functional.max_pool2d(outside, 3, stride=1, padding=1) == 0
        return pncc * mask, output.offsets * self.offset_range * mask, mask

    @without_autocast
    def read(self, output: GeometryImages, batch: FaceBatch) -> FacePrediction:
        """The images in millimetres, and the camera, coefficients, landmarks and mesh that :func:`.fit_dense` finds."""
        pncc, offsets, mask = self.millimetres(output)
        fit = fit_dense(
            pncc, offsets, mask, self.face_model, camera=self.camera,
            identity_weight=COEFFICIENT_WEIGHT, expression_weight=COEFFICIENT_WEIGHT,
        )  # fmt: skip
        return FacePrediction(
            landmarks=fit.landmarks,
            vertices=fit.vertices,
            coefficients=fit.coefficients,
            camera=fit.camera,
            dense={"pncc": pncc, "offsets": offsets},
            dense_mask=mask,
            valid=fit.valid,
            reason=fit.reason,
        )


class _Resize(nn.Module):
    """Doubles a map's side (or brings it to another), with a convolution."""

    def __init__(self, width: int, out: int, side: int, upsampling: str) -> None:
        super().__init__()
        self.side, self.upsampling = side, upsampling
        if upsampling == "transposed":
            self.layer: nn.Module = nn.ConvTranspose2d(width, out, 4, stride=2, padding=1)
        else:
            self.layer = nn.Conv2d(width, out, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        if self.upsampling == "transposed":
            values = self.layer(values)
        if values.shape[-1] != self.side:
            values = nn.functional.interpolate(values, size=self.side, mode="bilinear", align_corners=True)
        result: Tensor = values if self.upsampling == "transposed" else self.layer(values)
        return result


class _Up(nn.Module):
    """A step of the decoder: resize, normalise, ReLU."""

    def __init__(self, width: int, out: int, side: int, upsampling: str) -> None:
        super().__init__()
        # A norm over a single pixel leaves nothing of it.
        norm: nn.Module = nn.InstanceNorm2d(out) if side > 1 else nn.Identity()
        self.layers = nn.Sequential(_Resize(width, out, side, upsampling), norm, nn.ReLU(inplace=True))

    def forward(self, values: Tensor) -> Tensor:
        result: Tensor = self.layers(values)
        return result
