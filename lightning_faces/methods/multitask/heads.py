"""The heads that a multi-task network can have: the very heads that the single methods use."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.heads import DepthHead, FeatureShape, Head, LandmarkHead, PositionMapHead
from lightning_faces.heads.coefficients import CoefficientHead
from lightning_faces.heads.geometry_images import GeometryImageHead
from lightning_faces.heads.landmark_marks import UncertaintyHead, VisibilityHead

HEADS: dict[str, type[Head]] = {
    "landmarks": LandmarkHead,
    "depth": DepthHead,
    "coefficients": CoefficientHead,
    "visibility": VisibilityHead,
    "uncertainty": UncertaintyHead,
    "position_map": PositionMapHead,
    "geometry_images": GeometryImageHead,
}
"""By the short name that a configuration gives."""
SOURCES = ("landmarks", "coefficients", "position_map")
"""Heads whose landmarks a gradient can reach: the others' marks are of these, and fusion averages them."""
MARKS = ("visibility", "uncertainty")
"""Heads that say something of other heads' landmarks."""
OF_MODEL = ("coefficients", "position_map", "geometry_images")
"""Heads that speak of a face model."""
OF_MAPS = ("position_map", "geometry_images")
"""Heads that read feature maps; all but the depth, which reads landmarks, read pooled features."""
GIVEN = frozenset({"self", "shape", "points", "sources", "image_size", "face_model"})
"""Arguments of heads that the method gives them."""


def check_heads(heads: Mapping[str, Mapping[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """The heads of a configuration and their options, in its order.

    Raises:
        ConfigurationError: If a head or an option of it does not exist, or lacks another head that it works on.
    """
    if not heads:
        raise ConfigurationError(f"MultiTask option heads is empty: name at least one of {', '.join(HEADS)}.")
    checked: dict[str, dict[str, Any]] = {}
    for name, options in heads.items():
        if name not in HEADS:
            raise ConfigurationError(f"MultiTask option heads names {name!r}: use {', '.join(HEADS)}.")
        if options is not None and not isinstance(options, Mapping):
            raise ConfigurationError(
                f"MultiTask option heads.{name} is {options!r}: give the head's options by name, or {{}} for none."
            )
        known = [option for option in inspect.signature(HEADS[name].__init__).parameters if option not in GIVEN]
        for option in options or {}:
            if option not in known:
                can = f"use {', '.join(known)}" if known else "it takes none"
                raise ConfigurationError(f"MultiTask option heads.{name} has no option {option!r}: {can}.")
        checked[name] = dict(options or {})
    for name, needed in (("depth", ("landmarks",)), *((mark, SOURCES) for mark in MARKS)):
        if name in checked and not set(needed) & set(checked):
            raise ConfigurationError(
                f"MultiTask head {name!r} works on the landmarks of another head: add {' or '.join(needed)} to heads."
            )
    return checked


def make_heads(heads: Mapping[str, dict[str, Any]], shape: FeatureShape, face_model: str) -> nn.ModuleDict:
    """Heads of a backbone that gives ``shape``.

    Raises:
        ConfigurationError: If the backbone does not give what a head reads, or an option is out of range.
    """
    made: dict[str, nn.Module] = {}
    for name, options in heads.items():
        given: dict[str, Any] = {"image_size": shape.image_size} if name == "depth" else {"shape": shape}
        if name in OF_MODEL:
            given["face_model"] = face_model
        if name == "uncertainty":
            given["sources"] = len(sources_of(heads))
        try:
            made[name] = HEADS[name](**given, **options)
        except (TypeError, ValueError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise ConfigurationError(f"MultiTask option heads.{name} does not take {options} ({error}).") from error
    return nn.ModuleDict(made)


def sources_of(heads: Iterable[str]) -> list[str]:
    """Those of the heads whose landmarks are marked and averaged, in a fixed order."""
    there = set(heads)
    return [name for name in SOURCES if name in there]
