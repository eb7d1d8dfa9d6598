"""Coefficients from offsets: against the whole system by NumPy, and wrong vertices among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_faces.errors import ConfigurationError
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import choose_landmark_vertices, solve_coefficients
from lightning_faces.morphable.fit.coefficients import BLENDSHAPE_STD

from .faces import random_faces, rms


@pytest.fixture(scope="module")
def model() -> MorphableModel:
    return MorphableModel.load("embedded")


def some_vertices(model: MorphableModel, count: int, seed: int) -> torch.Tensor:
    return torch.randperm(model.num_vertices, generator=torch.Generator().manual_seed(seed))[:count]


def test_several_images_are_equation_5(model: MorphableModel) -> None:
    images, ki, ke = 3, model.num_identity, model.num_expression
    generator = torch.Generator().manual_seed(0)
    ids = [some_vertices(model, 80 + 20 * n, n) for n in range(images)]
    offsets = [torch.randn(len(i), 3, generator=generator, dtype=torch.float64) * 5 for i in ids]
    found = solve_coefficients(ids, offsets, model, identity_weight=2.0, expression_weight=0.5, trims=0)

    identity = (model.identity_basis * model.identity_std[:, None, None]).double().numpy()
    expression = (model.expression_basis * model.expression_std[:, None, None]).double().numpy()
    rows, right = [], []
    for n, (i, s) in enumerate(zip(ids, offsets)):
        block = np.zeros((3 * len(i), ki + images * ke))
        block[:, :ki] = identity[:, i].reshape(ki, -1).T
        block[:, ki + n * ke : ki + (n + 1) * ke] = expression[:, i].reshape(ke, -1).T
        rows.append(block)
        right.append(s.reshape(-1).numpy())
    weights = np.concatenate((np.full(ki, 2.0), np.full(images * ke, 0.5 / BLENDSHAPE_STD**2)))
    rows.append(np.diag(np.sqrt(weights)))
    right.append(np.zeros(len(weights)))
    solution = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)[0]
    for n in range(images):
        np.testing.assert_allclose(found[n, :ki].numpy(), solution[:ki], atol=1e-6)
        np.testing.assert_allclose(found[n, ki:].numpy(), solution[ki + n * ke : ki + (n + 1) * ke], atol=1e-6)


def test_wrong_vertices_are_left_out(model: MorphableModel) -> None:
    face = random_faces(model, 1)
    ids = some_vertices(model, 2000, 0)
    offsets = (face.shapes[0] - model.mean)[ids].double()
    offsets += torch.randn(offsets.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.1
    offsets[:40] += 20.0

    def error(trims: int) -> float:
        found = solve_coefficients([ids], [offsets], model, trims=trims).float()
        return float(rms(model.vertices(*found.split([72, 51], dim=1)), face.shapes))

    assert error(0) > 0.5
    assert error(3) < 0.1


def test_an_image_without_vertices_takes_the_subjects_identity(model: MorphableModel) -> None:
    face = random_faces(model, 1)
    ids = some_vertices(model, 1500, 0)
    offsets = (face.shapes[0] - model.mean)[ids]
    found = solve_coefficients([ids, ids[:0]], [offsets, offsets[:0]], model)
    assert torch.equal(found[0, :72], found[1, :72])
    assert (found[1, 72:] == 0).all()
    assert found.dtype == torch.float32


def test_wrong_arguments_are_named(model: MorphableModel) -> None:
    ids, offsets = torch.tensor([0, 5000]), torch.zeros(2, 3)
    with pytest.raises(ConfigurationError, match=r"Vertices 0 to 5000 were given .* vertices 0 to 4279"):
        solve_coefficients([ids], [offsets], model)
    with pytest.raises(ConfigurationError, match="1 lists of vertices and 2 of offsets"):
        solve_coefficients([ids], [offsets, offsets], model)
    with pytest.raises(ConfigurationError, match="expression_weight is 0"):
        solve_coefficients([ids], [offsets], model, expression_weight=0)


def test_landmark_vertices_have_the_least_mean_error(model: MorphableModel) -> None:
    faces = random_faces(model, 12)
    vertices = faces.camera.project(faces.shapes)
    true = some_vertices(model, 30, 3)
    generator = torch.Generator().manual_seed(2)
    labels = vertices[:, true, :2] + 0.3 * torch.randn(12, 30, 2, generator=generator)
    mask = torch.rand(12, 30, generator=generator) < 0.8
    labels[~mask] = float("nan")
    batches = [(vertices[k : k + 5], labels[k : k + 5], mask[k : k + 5]) for k in (0, 5, 10)]
    chosen, error = choose_landmark_vertices(batches)
    distance = (vertices[:, None, :, :2] - labels[:, :, None]).norm(dim=3)
    mean = torch.nanmean(distance, dim=0)
    assert torch.equal(chosen, mean.argmin(dim=1))
    torch.testing.assert_close(error, mean.amin(dim=1))
    assert (chosen == true).float().mean() > 0.8
    with pytest.raises(ConfigurationError, match=r"Landmarks \[4\] are labelled in no frame"):
        mask[:, 4] = False
        choose_landmark_vertices([(vertices, labels, mask)])
