"""What imported models lack: landmarks on the right lip, and models that do not fit are refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.derive import Parts, complete
from lightning_faces.morphable.formats import import_model
from lightning_faces.morphable.regions import LOWER_LIP, UPPER_LIP

SHARED = os.environ.get("LIGHTNING_FACES_DATA")
real = pytest.mark.skipif(SHARED is None, reason="LIGHTNING_FACES_DATA is not set: no real face models")
TALKS = ("jawOpen", "mouthSmileLeft", "mouthSmileRight", "mouthPucker", "mouthUpperUpLeft", "mouthUpperUpRight",
         "mouthLowerDownLeft", "mouthLowerDownRight", "mouthFunnel", "jawLeft", "jawRight", "browInnerUp")  # fmt: skip


@pytest.fixture(scope="module")
def embedded() -> MorphableModel:
    return MorphableModel.load("embedded")


def parts_of(model: MorphableModel, **changes: Any) -> Parts:
    """The model as a file would give it: its shapes and nothing else."""
    parts = Parts(
        name="shapes",
        mean=model.mean.double().numpy(),
        faces=model.faces.numpy(),
        identity_basis=model.identity_basis[:4].numpy(),
        identity_std=model.identity_std[:4].double().numpy(),
        expression_basis=model.expression_basis.numpy(),
        expression_std=model.expression_std.double().numpy(),
        surface=~(model.region_masks["eyeball"] | model.region_masks["mouth_inside"]).numpy(),
    )
    return replace(parts, **changes)


def pca_of_expressions(model: MorphableModel) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Ten principal modes of random talking faces: no mode is an action any more, and signs are arbitrary."""
    rows = [model.expression_names.index(name) for name in TALKS]
    actions = model.expression_basis[rows].double().reshape(len(rows), -1).numpy()
    faces = np.random.default_rng(0).beta(0.5, 1.5, (200, len(rows))) @ actions
    _, spread, directions = np.linalg.svd(faces - faces.mean(0), full_matrices=False)
    basis = -directions[:10].reshape(10, -1, 3).astype(np.float32)
    return basis, spread[:10] / np.sqrt(len(faces))


def drop(model: MorphableModel, mode: int, scheme: str) -> NDArray[np.float64]:
    """How far down each landmark moves with a mode, against the upper lip's middle ``[68]`` mm; positive is open."""
    coefficients = torch.zeros(1, model.num_expression)
    coefficients[0, mode] = float(model.expression_std[mode])
    moved = model.vertices(torch.zeros(1, model.num_identity), coefficients)
    y = (model.landmarks(moved, scheme) - model.landmarks(model.mean[None], scheme))[0, :, 1].double().numpy()
    down = y[51] - y
    return np.asarray(down * np.sign(down[57]))


def assert_lips_part(model: MorphableModel, mode: int) -> None:
    for scheme in ("bfm", "ibug"):
        down = drop(model, mode, scheme)
        assert down[57] > 8.0, scheme
        assert (down[list(LOWER_LIP)] > 0.5 * down[57]).all(), (scheme, down[list(LOWER_LIP)].round(1))
        assert (down[list(UPPER_LIP)] < 0.3 * down[57]).all(), (scheme, down[list(UPPER_LIP)].round(1))


@real
@pytest.mark.parametrize(
    ("format", "folder", "opens"), [("ict-facekit", "ict_facekit", "jawOpen"), ("sfm", "sfm", "surprise")]
)
def test_inner_lip_landmarks_of_real_models_lie_on_their_own_lip(format: str, folder: str, opens: str) -> None:
    assert SHARED is not None
    model = import_model(format, Path(SHARED) / folder)
    assert_lips_part(model, model.expression_names.index(opens))


def test_lips_of_a_model_without_names(embedded: MorphableModel) -> None:
    basis, std = pca_of_expressions(embedded)
    lines: list[str] = []
    model = complete(parts_of(embedded, expression_basis=basis, expression_std=std), lines.append)
    opening = int(np.argmax([abs(drop(embedded_with(embedded, basis, std), k, "bfm")[57]) for k in range(len(std))]))
    assert_lips_part(model, opening)
    for scheme in ("bfm", "ibug"):
        ours, theirs = model.landmarks(model.mean[None], scheme)[0], embedded.landmarks(embedded.mean[None], scheme)[0]
        inner = slice(17, 68)
        assert torch.linalg.vector_norm(ours - theirs, dim=-1)[inner].max() < 0.5, scheme
    assert not any("other lip" in line for line in lines)


def embedded_with(model: MorphableModel, basis: NDArray[np.float32], std: NDArray[np.float64]) -> MorphableModel:
    """The embedded model, its own landmarks, other expression modes."""
    return MorphableModel(
        name="modes", mean=model.mean, faces=model.faces, identity_basis=model.identity_basis[:1],
        identity_std=model.identity_std[:1], expression_basis=basis, expression_std=std,
        landmark_embeddings=model.landmark_embeddings,
    )  # fmt: skip


def test_shut_lips_are_reported(embedded: MorphableModel) -> None:
    brow = embedded.expression_names.index("browInnerUp")
    for count, said in ((1, "part the lips by 0"), (0, "no expression modes")):
        lines: list[str] = []
        basis, std = embedded.expression_basis[brow : brow + count], embedded.expression_std[brow : brow + count]
        complete(parts_of(embedded, expression_basis=basis.numpy(), expression_std=std.double().numpy()), lines.append)
        assert [line for line in lines if "other lip" in line and said in line], lines


def about(axis: int, degrees: float) -> NDArray[np.float64]:
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[i, i], turn[j, j], turn[i, j], turn[j, i] = cos, cos, -sin, sin
    return turn


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x / 10.0, r"'shapes' does not fit.*unit"),
        (lambda x: x * 1000.0, r"'shapes' does not fit.*unit"),
        (lambda x: x @ about(0, 90).T, r"'shapes' does not fit.*axes"),
        (lambda x: x @ about(0, -90).T, r"'shapes' does not fit.*axes"),
        (lambda x: x @ about(1, 90).T, r"'shapes' does not fit.*axes"),
        (lambda x: x @ about(1, 180).T, r"'shapes' does not fit.*axes"),
        (lambda x: x @ about(2, 180).T, r"'shapes' does not fit.*axes"),
    ],
)
def test_wrong_units_and_axes_are_refused(
    embedded: MorphableModel, change: Callable[[NDArray[np.float64]], NDArray[np.float64]], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        complete(parts_of(embedded, mean=change(embedded.mean.double().numpy())), lambda line: None)


def test_a_small_turn_and_another_size_fit(embedded: MorphableModel) -> None:
    mean = 1.2 * embedded.mean.double().numpy() @ about(0, 12).T + [3.0, -40.0, 90.0]
    model = complete(parts_of(embedded, mean=mean), lambda line: None)
    expected = 1.2 * embedded.landmarks(embedded.mean[None], "bfm")[0]
    found = model.landmarks(model.mean[None], "bfm")[0]
    turned = torch.linalg.vector_norm((found - found[30]) - (expected - expected[30]), dim=-1)
    assert turned[17:].max() < 0.5


def test_landmarks_of_another_order_are_refused(embedded: MorphableModel) -> None:
    points = embedded.landmarks(embedded.mean[None], "bfm")[0]
    nearest = torch.cdist(points, embedded.mean).argmin(1).numpy()
    complete(parts_of(embedded, landmark_vertices=nearest), lambda line: None)
    with pytest.raises(DataError, match=r"'shapes' does not fit.*landmarks"):
        complete(parts_of(embedded, landmark_vertices=nearest[::-1].copy()), lambda line: None)


@pytest.mark.parametrize("field", ["mean", "identity_basis", "identity_std", "expression_basis", "expression_std"])
def test_values_that_are_not_finite_are_refused_by_name(embedded: MorphableModel, field: str) -> None:
    parts = parts_of(embedded)
    values = getattr(parts, field).copy()
    values.reshape(-1)[1] = np.nan
    with pytest.raises(DataError, match=rf"'shapes' has values in {field} that are not finite"):
        complete(replace(parts, **{field: values}), lambda line: None)


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_triangles_of_vertices_that_are_not_there_are_refused(embedded: MorphableModel, wrong: int) -> None:
    faces = embedded.faces.numpy().copy()
    faces[5, 1] = wrong
    with pytest.raises(DataError, match=rf"'shapes' has a triangle with vertex {wrong}.*0 to {len(embedded.mean) - 1}"):
        complete(parts_of(embedded, faces=faces), lambda line: None)
    marks = np.full(68, -1)
    marks[20] = 10**6
    with pytest.raises(DataError, match=r"'shapes' has landmark 20 at vertex 1000000.*"):
        complete(parts_of(embedded, landmark_vertices=marks), lambda line: None)
