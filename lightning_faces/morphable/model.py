"""A linear 3D morphable face model (Blanz and Vetter 1999) in the object frame of this platform.

Object frame: millimetres; x to the image right of a frontal face (the subject's left), y up, z towards the viewer.
Triangles are counter-clockwise seen from outside.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.files import write_atomic
from lightning_faces.files.npz import compact, read_npz

FORMAT_VERSION = 1
"""Version of the .npz layout that :meth:`MorphableModel.save` writes."""

BUILT_IN = {"embedded": "embedded.npz"}
"""Names that :meth:`MorphableModel.load` knows, and their files in ``assets``."""

_REQUIRED = ("mean", "identity_basis", "identity_std", "expression_basis", "expression_std", "faces")
_OPTIONAL = ("uv", "uv_faces", "uv_face_ids", "albedo_mean", "albedo_basis", "albedo_std", "mirror")
_INTEGER = frozenset({"faces", "uv_faces", "uv_face_ids", "mirror"})
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "mean": ("V", 3),
    "faces": ("F", 3),
    "identity_basis": ("Ki", "V", 3),
    "identity_std": ("Ki",),
    "expression_basis": ("Ke", "V", 3),
    "expression_std": ("Ke",),
    "mirror": ("V",),
    "uv": ("V_uv", 2),
    "uv_faces": ("F_uv", 3),
    "uv_face_ids": ("F_uv",),
    "albedo_mean": (3, "T", "T"),
    "albedo_basis": ("Ka", 3, "T", "T"),
    "albedo_std": ("Ka",),
}
_TOGETHER = (("uv", "uv_faces", "uv_face_ids"), ("albedo_mean", "albedo_basis", "albedo_std"))


class MorphableModel(nn.Module):
    """Mean shape, identity and expression bases, and what is known of the surface: UV map, landmarks, regions, albedo.

    ``vertices = mean + sum_i identity_i identity_std_i identity_basis_i + sum_j expression_j expression_std_j
    expression_basis_j``: coefficients are in standard deviations. For blendshapes ``expression_std`` is 1 and a
    coefficient of 1 is the full action.

    All fields are float32, int64 or bool buffers (they follow ``.to(device)`` and stay out of checkpoints).

    Attributes:
        name: Name of the model.
        mean: ``[V, 3]`` millimetres, object frame.
        identity_basis: ``[Ki, V, 3]``.
        identity_std: ``[Ki]``.
        expression_basis: ``[Ke, V, 3]``.
        expression_std: ``[Ke]``.
        expression_kind: "pca" or "blendshapes".
        expression_names: Names of the expressions, empty where they have none.
        faces: Int64 ``[F, 3]``, counter-clockwise seen from outside.
        uv: ``[V_uv, 2]`` in [0, 1], u right and v DOWN; the centre of texel (row i, column j) of a map of side T is
            ``((j + 0.5) / T, (i + 0.5) / T)``. Covers the face region only, and is injective there. None if unknown.
        uv_faces: Int64 ``[F_uv, 3]`` into ``uv``.
        uv_face_ids: Int64 ``[F_uv]``: which mesh triangle each UV triangle is; corner k of ``uv_faces[i]`` belongs to
            corner k of ``faces[uv_face_ids[i]]``.
        albedo_mean: ``[3, T, T]`` RGB in [0, 1], a UV image. None if unknown.
        albedo_basis: ``[Ka, 3, T, T]``.
        albedo_std: ``[Ka]``; ``albedo = albedo_mean + sum_k a_k albedo_std_k albedo_basis_k`` with a_k ~ N(0, 1).
        albedo_names: Names of the albedo modes, empty where they have none.
        mirror: Int64 ``[V]``, the vertex on the other side of the face, or None.
    """

    mean: Tensor
    identity_basis: Tensor
    identity_std: Tensor
    expression_basis: Tensor
    expression_std: Tensor
    faces: Tensor
    uv: Tensor | None
    uv_faces: Tensor | None
    uv_face_ids: Tensor | None
    albedo_mean: Tensor | None
    albedo_basis: Tensor | None
    albedo_std: Tensor | None
    mirror: Tensor | None

    def __init__(
        self,
        name: str,
        mean: Any,
        faces: Any,
        identity_basis: Any,
        identity_std: Any,
        expression_basis: Any,
        expression_std: Any,
        expression_kind: str = "pca",
        expression_names: Sequence[str] = (),
        uv: Any = None,
        uv_faces: Any = None,
        uv_face_ids: Any = None,
        landmark_embeddings: Mapping[str, tuple[Any, Any]] | None = None,
        region_masks: Mapping[str, Any] | None = None,
        albedo_mean: Any = None,
        albedo_basis: Any = None,
        albedo_std: Any = None,
        albedo_names: Sequence[str] = (),
        mirror: Any = None,
    ) -> None:
        """Arrays may be numpy arrays or tensors; see the class for shapes, frames and units.

        Args:
            name: Name of the model.
            mean: ``[V, 3]``.
            faces: ``[F, 3]``.
            identity_basis: ``[Ki, V, 3]``.
            identity_std: ``[Ki]``.
            expression_basis: ``[Ke, V, 3]``.
            expression_std: ``[Ke]``.
            expression_kind: "pca" or "blendshapes".
            expression_names: One per expression, or none.
            uv: ``[V_uv, 2]``.
            uv_faces: ``[F_uv, 3]``.
            uv_face_ids: ``[F_uv]``.
            landmark_embeddings: For each name, triangles ``[L]`` and barycentric weights ``[L, 3]``.
            region_masks: For each name, bool ``[V]``.
            albedo_mean: ``[3, T, T]``.
            albedo_basis: ``[Ka, 3, T, T]``.
            albedo_std: ``[Ka]``.
            albedo_names: One per albedo mode, or none.
            mirror: ``[V]``.

        Raises:
            DataError: If the shapes do not fit together, a value is not finite, an index is out of range, or only a
                part of the UV map or of the albedo is given.
        """
        super().__init__()
        if expression_kind not in ("pca", "blendshapes"):
            raise DataError(f"Face model {name!r} has expression_kind {expression_kind!r}: use 'pca' or 'blendshapes'.")
        self.name = name
        self.expression_kind = expression_kind
        self.expression_names = tuple(str(item) for item in expression_names)
        self.albedo_names = tuple(str(item) for item in albedo_names)
        given = {
            "mean": mean,
            "identity_basis": identity_basis,
            "identity_std": identity_std,
            "expression_basis": expression_basis,
            "expression_std": expression_std,
            "faces": faces,
            "uv": uv,
            "uv_faces": uv_faces,
            "uv_face_ids": uv_face_ids,
            "albedo_mean": albedo_mean,
            "albedo_basis": albedo_basis,
            "albedo_std": albedo_std,
            "mirror": mirror,
        }
        for key, value in given.items():
            dtype = torch.int64 if key in _INTEGER else torch.float32
            self.register_buffer(key, None if value is None else self._tensor(key, value, dtype), persistent=False)
        self._embedding_names = tuple(sorted(landmark_embeddings or {}))
        for key in self._embedding_names:
            triangle, barycentric = (landmark_embeddings or {})[key]
            label = f"landmark embedding {key!r}"
            self.register_buffer(f"_triangle_{key}", self._tensor(label, triangle, torch.int64), persistent=False)
            self.register_buffer(
                f"_barycentric_{key}", self._tensor(label, barycentric, torch.float32), persistent=False
            )
        self._mask_names = tuple(sorted(region_masks or {}))
        for key in self._mask_names:
            mask = self._tensor(f"region mask {key!r}", (region_masks or {})[key], torch.bool)
            self.register_buffer(f"_mask_{key}", mask, persistent=False)
        self._check()

    def _tensor(self, label: str, value: Any, dtype: torch.dtype) -> Tensor:
        """A copy as a tensor, of finite numbers."""
        if isinstance(value, Tensor):
            tensor = value.detach().to(dtype).clone()
        else:
            try:
                array: np.ndarray[Any, Any] = np.asarray(value)
            except ValueError as error:
                raise self._refused(f"{label} is not an array of numbers ({error}).") from error
            if array.dtype.kind not in "fiub":
                raise self._refused(f"{label} is not an array of numbers, its type is {array.dtype}.")
            with np.errstate(invalid="ignore", over="ignore"):
                numpy_type = {torch.int64: np.int64, torch.bool: np.bool_}.get(dtype, np.float32)
                tensor = torch.from_numpy(np.array(array, dtype=numpy_type))
        if tensor.is_floating_point() and (wrong := int((~tensor.isfinite()).sum())):
            raise self._refused(
                f"{label} has {wrong} {'value that is' if wrong == 1 else 'values that are'} not finite."
            )
        return tensor

    def _refused(self, what: str) -> DataError:
        return DataError(f"Face model {self.name!r}: {what}")

    def _check(self) -> None:
        """Whether the fields belong together: shapes, parts of one thing, ranges of indices."""
        sizes: dict[str, int] = {}
        for key, axes in _SHAPES.items():
            value = getattr(self, key)
            if value is None and key not in _REQUIRED:
                continue
            found = None if value is None else tuple(value.shape)
            if found is not None and len(found) == len(axes):
                for axis, size in zip(axes, found):
                    if isinstance(axis, str):
                        sizes.setdefault(axis, size)
            wanted = tuple(sizes.get(str(axis), axis) for axis in axes)
            if found != wanted:
                text = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
                raise self._refused(f"{key} has shape {found} but ({text}) is needed.")
        vertices, triangles = sizes["V"], sizes["F"]
        if vertices == 0 or triangles == 0:
            raise self._refused(f"it has {vertices} vertices and {triangles} triangles, which is no surface.")
        for group in _TOGETHER:
            given = [key for key in group if getattr(self, key) is not None]
            missing = [key for key in group if key not in given]
            if given and missing:
                raise self._refused(
                    f"it has {' and '.join(given)} but no {' and no '.join(missing)}: give all of them or none."
                )
        for key, mask in self.region_masks.items():
            if tuple(mask.shape) != (vertices,):
                raise self._refused(f"region mask {key!r} must have one value per vertex.")
        for key, (triangle, barycentric) in self.landmark_embeddings.items():
            if triangle.ndim != 1 or tuple(barycentric.shape) != (triangle.shape[0], 3):
                raise self._refused(f"landmark embedding {key!r} must be [L] and [L, 3].")
            if triangle.numel() and not 0 <= int(triangle.min()) <= int(triangle.max()) < triangles:
                raise self._refused(f"landmark embedding {key!r} names a missing triangle.")
        limits = {"faces": vertices, "mirror": vertices, "uv_faces": sizes.get("V_uv", 0), "uv_face_ids": triangles}
        for key, limit in limits.items():
            value = getattr(self, key)
            if value is not None and value.numel() and not 0 <= int(value.min()) <= int(value.max()) < limit:
                raise self._refused(f"{key} has an index outside 0..{limit - 1}.")
        for kind, names, count in (
            ("expression", self.expression_names, self.num_expression),
            ("albedo", self.albedo_names, sizes.get("Ka", 0)),
        ):
            if names and len(names) != count:
                raise self._refused(f"{len(names)} {kind} names for {count}.")

    @property
    def num_vertices(self) -> int:
        """Number of vertices V."""
        return int(self.mean.shape[0])

    @property
    def num_identity(self) -> int:
        """Number of identity coefficients."""
        return int(self.identity_basis.shape[0])

    @property
    def num_expression(self) -> int:
        """Number of expression coefficients."""
        return int(self.expression_basis.shape[0])

    @property
    def num_coefficients(self) -> int:
        """Number of coefficients, identity then expression."""
        return self.num_identity + self.num_expression

    @property
    def landmark_embeddings(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For each name, triangles int64 ``[L]`` and barycentric weights ``[L, 3]``."""
        return {
            key: (getattr(self, f"_triangle_{key}"), getattr(self, f"_barycentric_{key}"))
            for key in self._embedding_names
        }

    @property
    def region_masks(self) -> dict[str, Tensor]:
        """For each name, bool ``[V]``."""
        return {key: getattr(self, f"_mask_{key}") for key in self._mask_names}

    @cached_property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of the content, the name left out."""
        digest = hashlib.sha256()
        for key, array in sorted(self._arrays().items()):
            digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        kinds = (self.expression_kind, list(self.expression_names), list(self.albedo_names))
        digest.update(json.dumps(kinds).encode())
        return digest.hexdigest()[:16]

    def vertices(self, identity: Tensor, expression: Tensor) -> Tensor:
        """Shapes of coefficients.

        Args:
            identity: ``[B, Ki]`` in standard deviations.
            expression: ``[B, Ke]`` in standard deviations (blendshapes: 1 is the full action).

        Returns:
            Vertices ``[B, V, 3]`` in millimetres, object frame.

        Example:
            >>> model = MorphableModel.load("embedded")
            >>> model.vertices(torch.zeros(2, model.num_identity), torch.zeros(2, model.num_expression)).shape
            torch.Size([2, 4280, 3])
        """
        shape = self.mean.reshape(1, -1)
        shape = shape + (identity * self.identity_std) @ self.identity_basis.flatten(1)
        shape = shape + (expression * self.expression_std) @ self.expression_basis.flatten(1)
        return shape.reshape(-1, self.num_vertices, 3)

    def landmarks(self, vertices: Tensor, embedding: str = "bfm") -> Tensor:
        """Landmarks on given vertices, in whatever frame those are.

        Args:
            vertices: ``[B, V, D]``.
            embedding: A name of :attr:`landmark_embeddings`.

        Returns:
            Points ``[B, L, D]``.

        Raises:
            ConfigurationError: If the model has no such landmarks.

        Example:
            >>> model = MorphableModel.load("embedded")
            >>> points = model.landmarks(model.mean[None], "ibug")
            >>> points.shape, bool(points[0, 36, 0] < 0 < points[0, 45, 0])  # the subject's right eye is on the left
            (torch.Size([1, 68, 3]), True)
        """
        if embedding not in self._embedding_names:
            raise ConfigurationError(
                f"Face model {self.name!r} has no landmarks {embedding!r} (it has "
                f"{', '.join(self._embedding_names) or 'none'}): choose one of them or import the model with landmarks."
            )
        triangle, barycentric = self.landmark_embeddings[embedding]
        corners = vertices[:, self.faces[triangle]]
        return (corners * barycentric[..., None]).sum(dim=-2)

    def albedo(self, coefficients: Tensor) -> Tensor:
        """Albedo images of coefficients.

        Args:
            coefficients: ``[B, Ka]`` in standard deviations.

        Returns:
            RGB UV images ``[B, 3, T, T]`` clamped to [0, 1].

        Raises:
            ConfigurationError: If the model has no albedo.

        Example:
            >>> model = MorphableModel.load("embedded")
            >>> model.albedo(torch.zeros(1, len(model.albedo_names))).shape
            torch.Size([1, 3, 256, 256])
        """
        if self.albedo_mean is None or self.albedo_basis is None or self.albedo_std is None:
            raise ConfigurationError(f"Face model {self.name!r} has no albedo: use the model 'embedded'.")
        images = (coefficients * self.albedo_std) @ self.albedo_basis.flatten(1)
        return (images.reshape(-1, *self.albedo_mean.shape) + self.albedo_mean).clamp(0.0, 1.0)

    def vertex_normals(self, vertices: Tensor) -> Tensor:
        """Unit normals, weighted by triangle area, outwards in the (right-handed) object frame.

        In the left-handed image frame the same call gives inward normals.

        Args:
            vertices: ``[B, V, 3]``.

        Returns:
            Normals ``[B, V, 3]``.
        """
        first, second, third = (vertices[:, self.faces[:, k]] for k in range(3))
        face_normals = torch.linalg.cross(second - first, third - first)
        normals = torch.zeros_like(vertices)
        for k in range(3):
            normals = normals.index_add(1, self.faces[:, k], face_normals)
        return nn.functional.normalize(normals, dim=-1)

    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        arrays = {key: getattr(self, key) for key in _REQUIRED + _OPTIONAL if getattr(self, key) is not None}
        for key, (triangle, barycentric) in self.landmark_embeddings.items():
            arrays[f"landmarks/{key}/triangle"] = triangle
            arrays[f"landmarks/{key}/barycentric"] = barycentric
        for key, mask in self.region_masks.items():
            arrays[f"region/{key}"] = mask
        return {key: value.detach().cpu().numpy() for key, value in arrays.items()}

    def to_bytes(self) -> bytes:
        """The .npz file of the model: lossless, compressed, the same bytes for the same content."""
        header = {
            "format": FORMAT_VERSION,
            "name": self.name,
            "expression_kind": self.expression_kind,
            "expression_names": list(self.expression_names),
            "albedo_names": list(self.albedo_names),
        }
        arrays = {key: compact(array) for key, array in self._arrays().items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, header=np.array(json.dumps(header)), **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the model to a .npz file, whole or not at all.

        Args:
            path: The file; its folder is made if needed.

        Example:
            >>> import tempfile
            >>> model = MorphableModel.load("embedded")
            >>> path = Path(tempfile.mkdtemp()) / "model.npz"
            >>> model.save(path)
            >>> MorphableModel.load(path).hash == model.hash
            True
        """
        write_atomic(Path(path), self.to_bytes())

    @classmethod
    def load(cls, name_or_path: str | Path = "embedded") -> MorphableModel:
        """The embedded model, or one that :meth:`save` or ``lightning-faces import-model`` wrote.

        Args:
            name_or_path: "embedded", or the path of a .npz file.

        Returns:
            The model on the CPU.

        Raises:
            DataError: If there is no such model or the file is not one.

        Example:
            >>> model = MorphableModel.load("embedded")
            >>> model.num_vertices, model.num_identity, model.num_expression, model.hash
            (4280, 72, 51, '341e86e47a9f96fd')
        """
        if str(name_or_path) in BUILT_IN:
            source = resources.files("lightning_faces.morphable") / "assets" / BUILT_IN[str(name_or_path)]
            with resources.as_file(source) as file:
                return cls._read(file, str(name_or_path))
        path = Path(name_or_path)
        if not path.is_file():
            raise DataError(
                f"There is no face model {str(name_or_path)!r}: give 'embedded' or the path of a .npz file made by "
                "`lightning-faces import-model`."
            )
        return cls._read(path, str(path))

    @classmethod
    def _read(cls, path: Path, label: str) -> MorphableModel:
        what, fix = "a face model of this platform", "make one with `lightning-faces import-model`"
        arrays: dict[str, Any] = dict(read_npz(path, what, fix))
        try:
            header = json.loads(str(arrays.pop("header")))
            version = header["format"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{label} is not {what} ({error}): {fix}.") from error
        if version != FORMAT_VERSION:
            raise DataError(
                f"{label} has format version {version}, this release reads {FORMAT_VERSION}: import the model again."
            )
        missing = [key for key in _REQUIRED if key not in arrays]
        if missing:
            raise DataError(f"{label} lacks {', '.join(missing)}: import the model again.")
        embeddings: dict[str, dict[str, Any]] = {}
        masks = {}
        try:
            for key in list(arrays):
                if key.startswith("landmarks/"):
                    _, name, part = key.split("/")
                    embeddings.setdefault(name, {})[part] = arrays.pop(key)
                elif key.startswith("region/"):
                    masks[key.removeprefix("region/")] = arrays.pop(key)
            return cls(
                name=str(header["name"]),
                expression_kind=header["expression_kind"],
                expression_names=header["expression_names"],
                albedo_names=header["albedo_names"],
                landmark_embeddings={key: (part["triangle"], part["barycentric"]) for key, part in embeddings.items()},
                region_masks=masks,
                **{key: arrays.get(key) for key in _REQUIRED + _OPTIONAL},
            )
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).rstrip(".")
            raise DataError(f"{label} is not a whole face model ({reason}): import the model again.") from error
