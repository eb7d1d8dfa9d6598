"""What a head is, and how features reach it.

A method is a backbone and heads. The backbone makes :class:`Features` of an image once; each head takes of them what it
needs:

- a head that gives a few numbers (landmarks, coefficients, a pose) reads ``features.pooled`` ``[B, pooled]``;
- a head that gives an image (PNCC, offsets, a position map) reads ``features.maps``, from the finest to the coarsest:
  map i is ``[B, channels[i], sides[i], sides[i]]``. A decoder starts at ``maps[-1]`` and, with skip
  connections, joins the finer ones on its way up. A backbone without scales (a vision transformer) has one map. Some
  head must use the coarsest map or the pooled features, since DDP refuses layers that no loss depends on.

:class:`FeatureShape` says before the first image how wide all this is, so a head is built with
``SomeHead(backbone.shape, ...)`` and refuses in one sentence what it cannot use. A head that works on the output of
another one (Zhao's depth, from landmarks) takes that instead.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lightning_faces.batch import FaceBatch, FacePrediction
from lightning_faces.heads.terms import Term, full_precision

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FeatureShape:
    """What a backbone gives.

    Attributes:
        image_size: Side S of its input in pixels.
        pooled: Width of the pooled features; 0 where they were not asked for.
        channels: Channels of each map, from the finest to the coarsest; empty where maps were not asked for.
        sides: Side of each map; a vision transformer's need not divide the image's.
    """

    image_size: int
    pooled: int = 0
    channels: tuple[int, ...] = ()
    sides: tuple[int, ...] = ()


class Features(NamedTuple):
    """What heads see of a batch of images; see the module.

    Attributes:
        pooled: ``[B, pooled]``, or None.
        maps: ``[B, channels[i], sides[i], sides[i]]``, from the finest to the coarsest.
    """

    pooled: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


class Head(nn.Module, ABC):
    """A part of a network that gives one kind of output, with its loss and its reading as faces.

    ``forward`` maps :class:`Features` to the output, in float32 at least; ``terms`` compares an output with the targets
    of a batch, sample by sample; ``read`` makes a ``FacePrediction`` of it, which has that part of a face that the head
    knows. Both are called with automatic mixed precision off (:func:`without_autocast`).
    """

    requires: frozenset[str] = frozenset()
    """Target keys of the batch that ``terms`` needs."""

    @abstractmethod
    def forward(self, features: Any) -> Any:
        """The output of a batch."""

    @abstractmethod
    def terms(self, output: Any, batch: FaceBatch) -> dict[str, Term]:
        """The terms of the loss, the same names whatever the batch has; no two heads share a name."""

    @abstractmethod
    def read(self, output: Any, batch: FaceBatch) -> FacePrediction:
        """The faces of an output, image frame, nothing in half precision."""


def without_autocast(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Decorate ``terms(output, batch)`` and ``read(output, batch)``: products in bfloat16 are off by 0.4 percent."""

    @functools.wraps(function)
    def run(self: Any, output: Any, batch: FaceBatch) -> _Result:
        with autocast_off(batch["image"].device):
            return function(self, output, batch)

    return run


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """Switch automatic mixed precision off where it is on: to switch takes longer than a small layer."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def last_layer(layer: nn.Module, values: Tensor) -> Tensor:
    """A layer that gives coordinates, in its weights' precision: bfloat16 rounds coordinates to a tenth of a pixel.

    Returns:
        The layer's output, in float32 at least.
    """
    weight = next(layer.parameters())
    with autocast_off(values.device):
        return full_precision(layer(values.to(weight.dtype)))
