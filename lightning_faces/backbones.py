"""timm networks as backbones: their pooled features and their maps at several scales, for images in [0, 1]."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.heads.base import Features, FeatureShape

OURS = ("num_classes", "features_only", "out_indices")
FILES = ("checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments of ``timm.create_model`` that name files or addresses."""
# What timm raises for arguments that a model does not take, and for images that do not fit.
_REFUSALS = (RuntimeError, AttributeError, TypeError, ValueError, AssertionError, LookupError, ArithmeticError)


class Backbone(nn.Module):
    """A timm network that takes images in [0, 1] and normalises them as it expects.

    Args:
        option: The option that named the network, for messages, such as "PRNet option encoder".
        name: timm's name of it.
        image_size: Side S of the images in pixels.
        pretrained: Start from the published weights, which timm fetches.
        pooled: Whether pooled features are wanted.
        maps: Whether feature maps are wanted.
        own: A value of the option that is not timm's, for messages.
        **arguments: Further arguments of ``timm.create_model``.

    Attributes:
        shape: Widths and sides of what it gives, measured on an image of zeros: the documented width is another one
            for networks with layers after the pooling. Of the maps of one side the deepest is given.
        num_features: Width of the pooled features.

    Raises:
        ConfigurationError: In one sentence, if timm has no such network, or it does not take the arguments or images of
            this size, gives no maps, or its published weights cannot be had.

    Example:
        >>> backbone = Backbone("option encoder", "resnet10t", 64, maps=True).eval()
        >>> backbone.shape
        FeatureShape(image_size=64, pooled=512, channels=(64, 64, 128, 256, 512), sides=(32, 16, 8, 4, 2))
        >>> pooled, maps = backbone.extract(torch.zeros(2, 3, 64, 64))
        >>> tuple(pooled.shape), tuple(maps[-1].shape)
        ((2, 512), (2, 512, 2, 2))
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        option: str,
        name: str,
        image_size: int,
        pretrained: bool = False,
        *,
        pooled: bool = True,
        maps: bool = False,
        own: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self.pooled, self.maps = pooled, maps
        self._option = f"{option}: timm model {name!r}"
        if ":" in name or not timm.is_model(name):
            near = timm.list_models(f"{re.split('[^a-z0-9]', name.lower())[0]}*")[:3]
            hint = f", for instance {' or '.join(near)}" if near else ""
            use = f"use {own!r} or" if own else "use"
            raise ConfigurationError(f"{option} is {name!r}: {use} a timm model's name{hint}.")
        for key in (*OURS, *FILES):
            if key in arguments:
                raise ConfigurationError(f"{self._option} does not take {key!r} here: leave it out.")
        self.network = self._create(name, image_size, pretrained, arguments)
        self._normalise_as(name, int(arguments.get("in_chans", 3)))
        for weight in self.network.parameters():
            if weight.dim() == 4:
                # Convolutions are faster in this order on CPUs and on GPUs with tensor cores.
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self._levels: list[int] = []
        self.shape = self._measure(image_size)
        self.num_features = self.shape.pooled

    def _create(self, name: str, image_size: int, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.fixed_input_size and "img_size" not in arguments:
            arguments = {**arguments, "img_size": image_size}
        try:
            network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
        except OSError as error:
            raise ConfigurationError(
                f"{self._option} has published weights that cannot be fetched ({_short(error)}): set pretrained to "
                "false, or fetch them where there is a network."
            ) from error
        except _REFUSALS as error:
            raise ConfigurationError(f"{self._option} does not take {arguments} ({_short(error)}).") from error
        return network

    def _normalise_as(self, name: str, channels: int) -> None:
        config = timm.get_pretrained_cfg(name)
        mean, std = (0.5,) * channels, (0.25,) * channels
        if config is not None and len(config.mean) == channels:
            mean, std = config.mean, config.std
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def _measure(self, image_size: int) -> FeatureShape:
        training = self.training
        self.eval()
        image = torch.zeros(1, len(self.mean), image_size, image_size)
        channels: tuple[int, ...] = ()
        sides: list[int] = []
        width = 0
        try:
            with torch.no_grad():
                if self.maps:
                    maps = self.network.forward_intermediates(self._normal(image), intermediates_only=True)  # type: ignore[operator]
                    sides = [level.shape[-1] for level in maps]
                    self._levels = [i for i, side in enumerate(sides) if side not in sides[i + 1 :]]
                    if not self.pooled:
                        self.network.prune_intermediate_layers(self._levels, prune_head=True)  # type: ignore[operator]
                    channels = tuple(maps[i].shape[1] for i in self._levels)
                    sides = [sides[i] for i in self._levels]
                if self.pooled:
                    width = self(image).shape[1]
        except _REFUSALS as error:
            missing = self.maps and not hasattr(self.network, "forward_intermediates")
            why = "it gives no feature maps" if missing else _short(error)
            raise ConfigurationError(
                f"{self._option} cannot be used on images of {image_size} pixels ({why}): choose another image_size or "
                "model."
            ) from error
        self.train(training)
        return FeatureShape(image_size, width, channels, tuple(sides))

    def _normal(self, image: Tensor) -> Tensor:
        normal = (image.to(self.mean.dtype) - self.mean) / self.std
        return normal.contiguous(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Pooled features ``[B, num_features]`` of images ``[B, 3, S, S]`` in [0, 1]."""
        return self.network(self._normal(image))  # type: ignore[no-any-return]

    def features(self, image: Tensor) -> list[Tensor]:
        """Maps ``[B, channels[i], sides[i], sides[i]]``, from the finest to the coarsest."""
        return self.network.forward_intermediates(  # type: ignore[no-any-return, operator]
            self._normal(image), indices=self._levels, intermediates_only=True
        )

    def extract(self, image: Tensor) -> Features:
        """All that was asked for, in one pass."""
        if not self.maps:
            return Features(self(image))
        if not self.pooled:
            return Features(maps=tuple(self.features(image)))
        final, maps = self.network.forward_intermediates(self._normal(image), indices=self._levels)  # type: ignore[operator]
        return Features(self.network.forward_head(final), tuple(maps))  # type: ignore[operator]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the names of layers that timm's wrapper for features gives (``stages_0``), as earlier checkpoints do."""
        ours = {prefix + name for name in self.state_dict()}
        for key in [key for key in state_dict if key.startswith(prefix) and key not in ours]:
            plain = re.sub(r"_(\d+)\.", r".\1.", key, count=1)
            if plain in ours:
                state_dict[plain] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
