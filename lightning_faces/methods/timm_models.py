"""timm models as parts of methods."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError


class TimmModel(nn.Module):
    """A timm model that takes images in [0, 1] and normalises them as it expects.

    Args:
        option: The option that named the model, for messages, such as "PRNet option encoder".
        own: The value of that option that is not timm's, for messages.
        name: Name of the timm model.
        arguments: Further arguments of ``timm.create_model``.

    Raises:
        ConfigurationError: If timm has no such model, or it does not take the arguments.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, option: str, own: str, name: str, **arguments: Any) -> None:
        super().__init__()
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
            hint = f", for instance {' or '.join(near)}" if near else ""
            raise ConfigurationError(f"{option} is {name!r}: use {own!r} or a timm model's name{hint}.")
        try:
            self.network = timm.create_model(name, **arguments)
        except (RuntimeError, AttributeError, TypeError) as error:
            raise ConfigurationError(f"{option}: timm model {name!r} does not take {arguments} ({error}).") from error
        default = timm.get_pretrained_cfg(name)
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        if default is not None:
            mean, std = default.mean, default.std
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        # Convolutions are faster in this order on CPUs and on GPUs with tensor cores.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Any:
        """Output of the model for images ``[B, 3, S, S]`` in [0, 1]."""
        normal = (image - self.mean) / self.std
        return self.network(normal.contiguous(memory_format=torch.channels_last))
