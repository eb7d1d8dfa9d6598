"""Zhao, Wang, Benitez-Quiroz, Liu, Martinez: Fast and Precise Face Alignment and 3D Shape Reconstruction (2016).

A convolutional network finds 2D landmarks, and a small fully connected one adds their depth from their standardised
coordinates alone.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.landmarks import num_landmarks
from lightning_faces.geometry.rotation import euler_to_matrix
from lightning_faces.methods.base import FaceMethod, Term, image_to_unit, masked_term, unit_to_image
from lightning_faces.methods.timm_models import TimmModel


class LandmarkNetwork(nn.Module):
    """Four convolutions, two max-pools, two fully connected layers (section 4.2).

    After each convolution come normalisation, ReLU and dropout; a pool follows the second and the fourth. The paper
    gives no widths or kernel sizes.

    Args:
        image_size: Side of the input in pixels.
        points: Number of landmarks l.
        channels: Output channels of the four convolutions.
        kernel_size: Side of their kernels.
        stride: Stride of the first convolution.
        hidden: Width of the first fully connected layer.
        dropout: Probability of dropping a channel after a convolution.
    """

    def __init__(
        self,
        image_size: int,
        points: int,
        channels: tuple[int, int, int, int],
        kernel_size: int,
        stride: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        side = image_size
        for number, out in enumerate(channels):
            step = stride if number == 0 else 1
            layers += [
                nn.Conv2d(width, out, kernel_size, stride=step, padding=kernel_size // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
                nn.Dropout2d(dropout),
            ]
            side = (side - 1) // step + 1
            if number in (1, 3):
                layers.append(nn.MaxPool2d(2))
                side //= 2
            width = out
        self.convolutions = nn.Sequential(*layers)
        # Not in the paper: without normalisation here a high learning rate kills all hidden units in the first epoch.
        self.regression = nn.Sequential(
            nn.Flatten(),
            nn.Linear(width * side * side, hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, 2 * points),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] to landmarks ``[B, l, 2]`` in units in which the image spans [-1, 1]."""
        return self.regression(self.convolutions(image - 0.5)).unflatten(1, (-1, 2))  # type: ignore[no-any-return]


class TimmLandmarkNetwork(nn.Module):
    """A timm model in the place of the paper's network, with one linear layer after its pooled features.

    Args:
        name: Name of the timm model.
        points: Number of landmarks l.
        arguments: Further arguments of ``timm.create_model``.
    """

    def __init__(self, name: str, points: int, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.features = TimmModel("Zhao2016 option encoder", "paper", name, num_classes=0, **arguments)
        self.regression = nn.Linear(self.features.network.num_features, 2 * points)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] to landmarks ``[B, l, 2]`` in units in which the image spans [-1, 1]."""
        features = self.features(image)
        # bfloat16 would round coordinates to a tenth of a pixel.
        with torch.autocast(image.device.type, enabled=False):
            return self.regression(features.to(self.regression.weight.dtype)).unflatten(1, (-1, 2))


class DepthNetwork(nn.Module):
    """Six fully connected layers, 2l five times and then l (section 5.1), tanh after each (eq. 10).

    Args:
        points: Number of landmarks l.
        output: "tanh" as printed, whose range leaves out the depths beyond +-1 that 18-30% of real points have, or
            "linear" for the last layer.
    """

    def __init__(self, points: int, output: Literal["linear", "tanh"]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(5):
            layers += [nn.Linear(2 * points, 2 * points), nn.Tanh()]
        layers.append(nn.Linear(2 * points, points))
        if output == "tanh":
            layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)

    def forward(self, points: Tensor) -> Tensor:
        """Standardised landmarks ``[B, l, 2]`` to standardised depths ``[B, l]`` (eq. 8)."""
        return self.layers(points.transpose(1, 2).flatten(1))  # type: ignore[no-any-return]


def standardize(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Remove the mean and divide by the mean of the standard deviations of x and y (eq. 9 and 12).

    Args:
        points: ``[B, l, 2]`` or ``[B, l, 3]``.

    Returns:
        Standardised points, the means ``[B, 1, D]`` and the scales ``[B, 1, 1]``.
    """
    mean = points.mean(dim=1, keepdim=True)
    scale = points[..., :2].std(dim=1, correction=0, keepdim=True).mean(dim=-1, keepdim=True)
    # A sample without landmarks has all of them at 0.
    return (points - mean) / scale.clamp(min=torch.finfo(scale.dtype).tiny), mean, scale


def local_loss(points: Tensor, target: Tensor, mask: Tensor, squared: bool = True) -> Term:
    """Squared distance, mean over landmarks and faces (eq. 2).

    Args:
        points: ``[B, l, 2]``.
        target: ``[B, l, 2]``.
        mask: Bool ``[B, l]``.
        squared: As printed; without, the mean distance, which rare large errors dominate less.
    """
    error = points - target
    return masked_term(error.square().sum(dim=-1) if squared else torch.linalg.vector_norm(error, dim=-1), mask)


def pairwise_loss(points: Tensor, target: Tensor, mask: Tensor, norm: float = 2.0) -> Term:
    """Squared difference of the distances within all pairs of landmarks (eq. 4), mean over faces.

    Args:
        points: ``[B, l, 2]``.
        target: ``[B, l, 2]``.
        mask: Bool ``[B, l]``; a pair counts where both its points are marked.
        norm: The b of the b-norm.

    Returns:
        ``2 / (l (l + 1)) sum_{j<k} (|f_j - f_k|_b - |o_j - o_k|_b)^2`` as printed (l + 1, although there are
        l (l - 1) / 2 pairs), with l the number of marked points.
    """
    mode = "donot_use_mm_for_euclid_dist"
    difference = torch.cdist(points, points, norm, mode) - torch.cdist(target, target, norm, mode)
    return _mean_over_pairs(difference.square(), mask)


def error_difference_loss(points: Tensor, target: Tensor, mask: Tensor, exponent: float = 2.0) -> Term:
    """The constraint that the paper sets its pairwise term against (eq. 3): equal errors at all landmarks.

    Args:
        points: ``[B, l, 2]``.
        target: ``[B, l, 2]``.
        mask: Bool ``[B, l]``.
        exponent: The c >= 1 of the equation.

    Returns:
        ``2 / (l (l + 1)) sum_{j<k} |(f_j - o_j) - (f_k - o_k)|^c``, mean over faces.
    """
    error = points - target
    squared = (error[:, :, None] - error[:, None]).square().sum(dim=-1)
    # The derivative of |d|^c at d = 0 is infinite for the square root, although the limit is 0 for c > 1.
    return _mean_over_pairs((squared + 1e-12).pow(exponent / 2) if exponent != 2 else squared, mask)


def _mean_over_pairs(values: Tensor, mask: Tensor) -> Term:
    both = mask[:, :, None] & mask[:, None]
    count = mask.sum(dim=1)
    upper = (values * both).triu(diagonal=1).sum(dim=(1, 2))
    faces = count > 1
    return masked_term((2 * upper / (count * (count + 1)).clamp(min=1))[:, None], faces[:, None])


def depth_loss(depth: Tensor, target: Tensor, mask: Tensor) -> Term:
    """Euclidean distance of the standardised depths of a face, un-squared (eq. 11), mean over faces.

    Args:
        depth: ``[B, l]``.
        target: ``[B, l]``.
        mask: Bool ``[B]``, faces whose depth is known.
    """
    return masked_term(torch.linalg.vector_norm(depth - target, dim=1)[:, None], mask[:, None])


class Zhao2016(FaceMethod):
    """2D landmarks from the image, then their depth from the landmarks.

    Samples without depth train the 2D network only (the n2 samples of section 3).

    Args:
        image_size: Side of the input in pixels.
        landmark_scheme: "68" or "66" (the paper's).
        encoder: "paper", the 2D network that the next five options shape, or the name of a timm model in its place.
        encoder_args: Further arguments of ``timm.create_model``, such as ``channels`` of a ResNet or ``pretrained``.
        channels: Output channels of the four convolutions.
        kernel_size: Side of their kernels.
        stride: Stride of the first convolution.
        hidden: Width of the first fully connected layer.
        dropout: Probability of dropping a channel after a convolution.
        squared: Squared distances in eq. 2, as printed.
        pairwise: Which second term the 2D loss has: "distances" (eq. 4), "errors" (eq. 3) or "none".
        pairwise_weight: Its weight beside the local term (eq. 2); the paper gives none.
        pairwise_norm: The b of eq. 4.
        error_exponent: The c of eq. 3.
        depth_output: "linear", or "tanh" as printed.
        depth_weight: Weight of the depth term.
        view_angles: Standard deviations in degrees of the pitch, yaw and roll by which the 3D landmarks are turned to
            make new views for the depth network (section 5.1); zeros keep the views as they are.
        stage: Which part is trained: "joint" (each network on true targets), "landmarks" (2D alone), "depth" (depth
            alone, from true 2D landmarks in crops of any size, which it also predicts and is scored on) or
            "end_to_end" (depth from the predicted landmarks, gradients through both networks).
        start_from: Checkpoint of an earlier stage whose weights the training starts from.
        optimizer: Makes the optimizer; the paper trains the depth network by RMSProp at 0.01.
        lr_scheduler: Makes the learning-rate schedule.
        lr_scheduler_interval: Whether the schedule advances by epoch or by step.
    """

    requires = frozenset({"landmarks"})

    def __init__(
        self,
        image_size: int = 96,
        landmark_scheme: str = "68",
        encoder: str = "paper",
        encoder_args: dict[str, Any] | None = None,
        channels: tuple[int, int, int, int] = (32, 64, 64, 128),
        kernel_size: int = 3,
        stride: int = 1,
        hidden: int = 512,
        dropout: float = 0.1,
        squared: bool = True,
        pairwise: Literal["distances", "errors", "none"] = "distances",
        pairwise_weight: float = 1.0,
        pairwise_norm: float = 2.0,
        error_exponent: float = 2.0,
        depth_output: Literal["linear", "tanh"] = "linear",
        depth_weight: float = 0.1,
        view_angles: tuple[float, float, float] = (10.0, 20.0, 10.0),
        stage: Literal["joint", "landmarks", "depth", "end_to_end"] = "joint",
        start_from: str | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        if error_exponent < 1:
            raise ConfigurationError(f"Zhao2016 option error_exponent is {error_exponent}; eq. 3 needs at least 1.")
        if encoder == "paper" and encoder_args:
            raise ConfigurationError(
                f"Zhao2016 option encoder_args is {encoder_args}, but the encoder is the paper's: name a timm model."
            )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "start_from"])
        self.image_size, self.landmark_scheme = image_size, landmark_scheme
        self.squared = squared
        self.pairwise, self.pairwise_weight = pairwise, pairwise_weight
        self.pairwise_norm, self.error_exponent = pairwise_norm, error_exponent
        self.depth_weight, self.stage = depth_weight, stage
        self.view_angles = tuple(math.radians(angle) for angle in view_angles)
        points = num_landmarks(landmark_scheme)
        self.landmark_network: LandmarkNetwork | TimmLandmarkNetwork
        if encoder == "paper":
            widths: Any = tuple(channels)
            self.landmark_network = LandmarkNetwork(image_size, points, widths, kernel_size, stride, hidden, dropout)
        else:
            self.landmark_network = TimmLandmarkNetwork(encoder, points, encoder_args or {})
        self.depth_network = DepthNetwork(points, depth_output)
        if stage == "depth":
            self.landmark_network.requires_grad_(False)
            self.monitor = "val/gte"
            self.protocol = {"input": "true 2D landmarks"}
        if stage == "landmarks":
            self.depth_network.requires_grad_(False)
        if start_from is not None:
            self._take_weights(Path(start_from).expanduser())

    def _take_weights(self, path: Path) -> None:
        try:
            self.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
        except (OSError, EOFError, KeyError, pickle.UnpicklingError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigurationError(
                f"Zhao2016 option start_from is {path}, which is no checkpoint of these networks: {reason}"
            ) from error

    @property
    def spec(self) -> FaceSpec:
        """Crops of ``image_size``, which the stage "depth" does not look at, with landmarks of ``landmark_scheme``."""
        image_size = None if self.stage == "depth" else self.image_size
        return FaceSpec(image_size=image_size, landmark_scheme=self.landmark_scheme)

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to landmarks ``[B, l, 3]``, image frame; the depth has mean 0."""
        return unit_to_image(self._with_depth(self.landmark_network(image)), self.image_size)

    def _with_depth(self, points: Tensor) -> Tensor:
        standard, _, scale = standardize(points)
        return torch.cat((points, self.depth_network(standard)[..., None] * scale), dim=-1)

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """``local`` (eq. 2), ``pairwise`` (eq. 3 or 4) and ``depth`` (eq. 11), as far as the stage has them."""
        target = image_to_unit(batch["landmarks"], self.image_size)
        known = batch["landmark_mask"] & batch["has"]["landmarks"][:, None, None]
        with_depth = known[..., 2].all(dim=1)
        terms: dict[str, Term] = {}
        points = None
        if self.stage != "depth":
            points = self.landmark_network(batch["image"])
            flat, mask = target[..., :2], known[..., 0] & known[..., 1]
            terms["local"] = local_loss(points, flat, mask, self.squared)
            if self.pairwise == "distances":
                pairwise = pairwise_loss(points, flat, mask, self.pairwise_norm)
                terms["pairwise"] = replace(pairwise, weight=self.pairwise_weight)
            elif self.pairwise == "errors":
                pairwise = error_difference_loss(points, flat, mask, self.error_exponent)
                terms["pairwise"] = replace(pairwise, weight=self.pairwise_weight)
        if self.stage != "landmarks":
            depth = self._depth_term(target, points, with_depth)
            terms["depth"] = replace(depth, weight=self.depth_weight)
        return terms

    def _depth_term(self, target: Tensor, points: Tensor | None, known: Tensor) -> Term:
        if self.stage == "end_to_end" and points is not None:
            return depth_loss(self.depth_network(standardize(points)[0]), standardize(target)[0][..., 2], known)
        views = self._new_views(target) if self.training else target
        standard = standardize(views)[0]
        return depth_loss(self.depth_network(standard[..., :2]), standard[..., 2], known)

    def _new_views(self, points: Tensor) -> Tensor:
        """Turn 3D landmarks ``[B, l, 3]`` at random; scale and translation are undone by the standardisation."""
        deviation = points.new_tensor(self.view_angles)
        rotation = euler_to_matrix(torch.randn(len(points), 3, device=points.device, dtype=points.dtype) * deviation)
        centred = points - points.mean(dim=1, keepdim=True)
        # Image frame to object frame and back, which both turn y round: the rotation is seen through F on both sides.
        flip = points.new_tensor([1.0, -1.0, 1.0])
        return (centred * flip) @ rotation.transpose(1, 2) * flip

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """Landmarks with depths of mean 0; in the stage "depth" the true 2D landmarks, which the batch must have.

        Raises:
            ConfigurationError: If the stage is "depth" and the batch has none.
        """
        if self.stage != "depth":
            return FacePrediction(landmarks=self(batch["image"]))
        if "landmarks" not in batch:
            raise ConfigurationError(
                'Zhao2016 was trained in the stage "depth", which adds depth to true 2D landmarks, and these data have '
                "none: use a checkpoint of another stage."
            )
        return FacePrediction(landmarks=self._with_depth(batch["landmarks"][..., :2]))
