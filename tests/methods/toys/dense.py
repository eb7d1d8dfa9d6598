"""A head on dense images, with faces that it gives up on: what Pix2face's kind of method needs of the platform."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from lightning_faces.backbones import Backbone
from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.heads.base import Features, FeatureShape, Head, last_layer, without_autocast
from lightning_faces.heads.terms import Term, full_precision, masked_term
from lightning_faces.methods.base import FaceMethod
from lightning_faces.morphable import MorphableModel


class DenseHead(Head):
    """PNCC, offsets and their mask from maps of all scales; landmarks where the PNCC is that of the model's."""

    requires = frozenset({"pncc", "offsets", "face_mask"})

    def __init__(self, shape: FeatureShape) -> None:
        super().__init__()
        self.size, self.planes = shape.image_size, nn.Conv2d(sum(shape.channels), 7, 1)
        self.model = MorphableModel.load("embedded")

    def forward(self, features: Features) -> Tensor:
        maps = [nn.functional.interpolate(level, self.size, mode="bilinear") for level in features.maps]
        return last_layer(self.planes, torch.cat(maps, dim=1))

    @without_autocast
    def terms(self, output: Tensor, batch: FaceBatch) -> dict[str, Term]:
        shown = full_precision(batch["face_mask"]) > 0.5
        has, mask = batch["has"]["face_mask"][:, None, None, None], shown.to(output.dtype)
        found = nn.functional.binary_cross_entropy_with_logits(output[:, 6:], mask, reduction="none")
        target = full_precision(torch.cat((batch["pncc"], batch["offsets"]), dim=1)) / 100
        error = (output[:, :6] - target).abs()
        return {
            "planes": masked_term(error, (shown & has).expand_as(error)),
            "mask": masked_term(found, has | (mask < 0)),
        }

    @without_autocast
    def read(self, output: Tensor, batch: FaceBatch) -> FacePrediction:
        pncc, valid = 100 * output[:, :3], batch["image"].mean(dim=(1, 2, 3)) > 0.3
        wanted = full_precision(self.model.landmarks(self.model.mean[None])[0])
        near = torch.softmax(
            -torch.cdist(wanted.expand(len(pncc), -1, -1), pncc.flatten(2).transpose(1, 2)) / 5, dim=-1
        )
        y, x = torch.meshgrid(*(torch.arange(self.size, device=pncc.device),) * 2, indexing="ij")
        places = torch.stack((x, y, 0 * x)).flatten(1).T.to(near.dtype)
        return FacePrediction(
            landmarks=(near @ places) * valid[:, None, None],
            dense={"pncc": pncc, "offsets": 100 * output[:, 3:6]},
            dense_mask=output[:, 6:] > 0,
            valid=valid,
            reason=["" if good else "the image is dark" for good in valid.tolist()],
        )


class DenseFaces(FaceMethod):
    """The head on a small network."""

    requires = frozenset({"landmarks"}) | DenseHead.requires
    scores = DenseHead.requires

    def __init__(self, image_size: int = 32) -> None:
        super().__init__(functools.partial(torch.optim.AdamW, lr=0.003))
        self.backbone = Backbone("option encoder", "test_resnet", image_size, pooled=False, maps=True)
        self.head = DenseHead(self.backbone.shape)

    @property
    def spec(self) -> FaceSpec:
        model = self.head.model
        return FaceSpec(image_size=self.head.size, face_model=model.name, face_model_hash=model.hash)

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        return self.head.terms(self.head(self.backbone.extract(batch["image"])), batch)

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        return self.head.read(self.head(self.backbone.extract(batch["image"])), batch)
