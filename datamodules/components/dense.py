"""Dense targets from 3DMM parameters: vertices, position map, PNCC and offsets, computed once and cached on disk."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.files import write_atomic
from lightning_faces.files.npz import read_npz
from lightning_faces.geometry import weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.uv import PositionMap
from lightning_faces.targets import MODEL_TARGETS, RENDERED_TARGETS

DENSE_VERSION = 2
"""Part of the cache's keys: changes whenever the same parameters give other targets."""


class DenseTargets:
    """Targets of a photograph from the parameters of its face.

    Args:
        model: The face model that the parameters belong to. Its standard deviations are in the parameters' own units:
            coefficient = parameter / standard deviation.
        targets: Target keys that are wanted; those that this cannot give are ignored.
        position_map_size: Side of the position map.
        cache_dir: Folder of the cache of rendered targets, shared by processes; None computes them each time. A file's
            name is a hash of all that its content depends on.

    Raises:
        ConfigurationError: If the model lacks what a target needs.
    """

    def __init__(
        self, model: MorphableModel, targets: frozenset[str], position_map_size: int, cache_dir: Path | None
    ) -> None:
        self.model, self.targets, self.cache_dir = model, targets & MODEL_TARGETS, cache_dir
        self.position_map_size = position_map_size
        if model.num_identity > 199 or model.num_expression > 29:
            raise ConfigurationError(
                f"Face model {model.name!r} has {model.num_identity} identity and {model.num_expression} expression "
                "modes, but the files have 199 and 29 parameters: give the Basel Face Model 2009 that they belong to."
            )
        if "bfm" not in model.landmark_embeddings:
            raise ConfigurationError(f"Face model {model.name!r} has no landmark embedding 'bfm': import it with one.")
        self.position_map = PositionMap(model, position_map_size) if "position_map" in targets else None

    def coefficients(self, shape: NDArray[np.float64], expression: NDArray[np.float64]) -> NDArray[np.float32]:
        """Coefficients in standard deviations ``[K]`` of raw parameters ``[199]`` and ``[29]``."""
        identity = shape[: self.model.num_identity] / self.model.identity_std.double().numpy()
        action = expression[: self.model.num_expression] / self.model.expression_std.double().numpy()
        return np.concatenate((identity, action)).astype(np.float32)

    def vertices(
        self, shape: NDArray[np.float64], expression: NDArray[np.float64], pose: NDArray[np.float32], depth: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vertices ``[V, 3]`` in the object frame and in the file frame, the latter with the file's depth offset."""
        coefficients = torch.from_numpy(self.coefficients(shape, expression))[None]
        with torch.no_grad():
            shaped = self.model.vertices(
                coefficients[:, : self.model.num_identity], coefficients[:, self.model.num_identity :]
            )[0]
            placed = weak_perspective(shaped.double(), torch.from_numpy(pose).double())
        placed[:, 2] += depth
        return shaped, placed.float()

    def landmarks(
        self, shape: NDArray[np.float64], expression: NDArray[np.float64], pose: NDArray[np.float32], depth: float
    ) -> NDArray[np.float64]:
        """The model's 68 points ``[68, 3]`` in the file frame."""
        _, placed = self.vertices(shape, expression, pose, depth)
        return self.model.landmarks(placed[None], "bfm")[0].double().numpy()

    def __call__(
        self,
        shape: NDArray[np.float64],
        expression: NDArray[np.float64],
        pose: NDArray[np.float32],
        depth: float,
        size: tuple[int, ...],
    ) -> dict[str, NDArray[Any]]:
        """Targets of one photograph.

        Args:
            shape: Raw identity parameters ``[199]``.
            expression: Raw expression parameters ``[29]``.
            pose: ``[6]`` in the file frame.
            depth: Offset of depths, pixels.
            size: Height and width of the photograph.

        Returns:
            ``landmarks`` ``[68, 3]`` and the wanted targets, in the file frame.
        """
        shaped, placed = self.vertices(shape, expression, pose, depth)
        given: dict[str, NDArray[Any]] = {
            "landmarks": self.model.landmarks(placed[None], "bfm")[0].double().numpy(),
            "coefficients": self.coefficients(shape, expression),
            "vertices": placed.numpy(),
        }
        wanted = sorted(self.targets & RENDERED_TARGETS)
        if wanted:
            key = hashlib.sha256(repr((DENSE_VERSION, self.model.hash, wanted, self.position_map_size, size)).encode())
            for part in (shape, expression, pose, np.float64(depth)):
                key.update(part.tobytes())
            given.update(self._cached(key.hexdigest()[:32], wanted, shaped, placed, size))
        return {name: value for name, value in given.items() if name == "landmarks" or name in self.targets}

    def _cached(
        self, key: str, wanted: list[str], shaped: torch.Tensor, placed: torch.Tensor, size: tuple[int, ...]
    ) -> dict[str, NDArray[Any]]:
        if self.cache_dir is None:
            return self._render(wanted, shaped, placed, size)
        path = self.cache_dir / key[:2] / f"{key}.npz"
        if path.exists():
            try:
                stored = read_npz(path)
                return {name: stored[name] for name in wanted}
            except (DataError, KeyError):
                path.unlink(missing_ok=True)  # damaged since it was written: computed again
        rendered = self._render(wanted, shaped, placed, size)
        content = io.BytesIO()
        np.savez_compressed(content, **rendered)  # type: ignore[arg-type]
        write_atomic(path, content.getvalue())
        return rendered

    def _render(
        self, wanted: list[str], shaped: torch.Tensor, placed: torch.Tensor, size: tuple[int, ...]
    ) -> dict[str, NDArray[Any]]:
        given: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            if self.position_map is not None:
                given["position_map"] = self.position_map(placed[None])[0]
            if wanted != ["position_map"]:
                # Importing the renderer takes seconds, and only these targets need it.
                from lightning_faces.rendering.renderer import rasterize_image

                raster = rasterize_image(placed[None], self.model.faces, (size[0], size[1]))
                attributes = torch.cat(
                    (self.model.mean, shaped - self.model.mean, torch.ones_like(shaped[:, :1])), dim=1
                )
                values = raster.to_image(raster.interpolate(attributes, self.model.faces))[0]
                given.update({"pncc": values[:3], "offsets": values[3:6], "face_mask": values[6:].round()})
        return {name: given[name].numpy() for name in wanted}
