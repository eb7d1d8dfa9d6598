"""Regressions against dense least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_faces.methods.parm import regression
from lightning_faces.methods.parm.ranks import Ranks
from lightning_faces.methods.parm.regression import IndicatorRows, solve_indicators, solve_ridge
from tests.methods.parm.ranks import on_ranks

WIDTH, TREES, ROWS = 5, 4, 50


def leaves() -> torch.Tensor:
    return torch.randint(WIDTH, (ROWS, TREES), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def dense(rows: torch.Tensor) -> torch.Tensor:
    """The matrix itself; the last number of a block stands for none."""
    matrix = torch.nn.functional.one_hot(rows.long(), WIDTH).double()
    matrix[..., -1] = 0.0
    return matrix.flatten(1)


@pytest.mark.parametrize("together", [7, 8192])
def test_products_are_those_of_the_dense_matrix(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "ROWS", together)
    rows, matrix = IndicatorRows(leaves(), WIDTH), dense(leaves())
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn((TREES * WIDTH, 3), generator=generator)
    weights.view(TREES, WIDTH, -1)[:, -1] = 0.0
    torch.testing.assert_close(rows.times(weights).double(), matrix @ weights.double(), atol=1e-5, rtol=0)
    values = torch.randn((ROWS, 3), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(rows.transposed_times(values), matrix.T @ values)
    torch.testing.assert_close(rows.counts()[:, 0], matrix.sum(dim=0))


def test_conjugate_gradients_find_the_least_squares_solution() -> None:
    targets = torch.randn((ROWS, 3), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = solve_indicators(IndicatorRows(leaves(), WIDTH), targets, 0.3, Ranks(), tolerance=1e-7)
    A = np.vstack((dense(leaves()).numpy(), np.sqrt(0.3) * np.eye(TREES * WIDTH)))
    b = np.vstack((targets.numpy(), np.zeros((TREES * WIDTH, 3))))
    np.testing.assert_allclose(found.numpy(), np.linalg.lstsq(A, b, rcond=None)[0], atol=1e-5)

    def work(ranks: Ranks) -> torch.Tensor:
        mine = slice(0, 20) if ranks.rank == 0 else slice(20, ROWS)
        return solve_indicators(IndicatorRows(leaves()[mine], WIDTH), targets[mine], 0.3, ranks, tolerance=1e-7)

    for part in on_ranks(2, work):
        torch.testing.assert_close(part, found, atol=1e-9, rtol=0)


def regression_problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    features = torch.randn((ROWS, 6), generator=generator, dtype=torch.float64) * torch.tensor([1, 1e-3, 50, 1, 1, 0])
    features = features + torch.tensor([0.0, 1.0, -3.0, 0.0, 0.0, 2.0])
    targets = features[:, :5] @ torch.randn((5, 4), generator=generator, dtype=torch.float64) + 7.0
    targets = targets + 0.3 * torch.randn((ROWS, 4), generator=generator, dtype=torch.float64)
    return features, targets, torch.rand((ROWS, 4), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_ridge_regression_is_the_closed_form(weighted: bool) -> None:
    features, targets, weights = regression_problem()
    found = solve_ridge(features, targets, 0.01, Ranks(), weights if weighted else None).numpy()
    X, Y, W = features.numpy(), targets.numpy(), weights.numpy() if weighted else np.ones((ROWS, 4))
    varying = X.std(axis=0) > 0
    Z = (X[:, varying] - X[:, varying].mean(axis=0)) / X[:, varying].std(axis=0)
    for output in range(4):
        root = np.sqrt(W[:, output])[:, None]
        penalty = np.sqrt(0.01 * W[:, output].sum()) * np.eye(5, 6)
        A = np.vstack((root * np.column_stack((Z, np.ones(ROWS))), penalty))
        b = np.concatenate((root[:, 0] * Y[:, output], np.zeros(5)))
        expected = np.linalg.lstsq(A, b, rcond=None)[0]
        np.testing.assert_allclose(found[output, :-1][varying], expected[:-1] / X[:, varying].std(axis=0), rtol=1e-6)
        predicted = X @ found[output, :-1] + found[output, -1]
        np.testing.assert_allclose(predicted, Z @ expected[:-1] + expected[-1], rtol=1e-6)
    assert np.abs(found[:, :-1][:, ~varying]).max() == 0

    def work(ranks: Ranks) -> torch.Tensor:
        mine = slice(0, 31) if ranks.rank == 0 else slice(31, ROWS)
        return solve_ridge(features[mine], targets[mine], 0.01, ranks, weights[mine] if weighted else None)

    for part in on_ranks(2, work):
        np.testing.assert_allclose(part.numpy(), found, rtol=1e-8, atol=1e-9)


def test_without_a_ridge_the_errors_are_orthogonal_to_the_features() -> None:
    features, targets, _ = regression_problem()
    found = solve_ridge(features, targets, 0.0, Ranks())
    error = targets - features @ found[:, :-1].T - found[:, -1]
    inputs = torch.cat((features[:, :5], torch.ones(ROWS, 1)), dim=1)
    assert float((inputs.T @ error).abs().max()) < 1e-6
