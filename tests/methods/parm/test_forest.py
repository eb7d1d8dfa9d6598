"""Trees against a reference that loops over everything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lightning_faces.errors import ConfigurationError
from lightning_faces.methods.parm.forest import Forest, find_leaves, grow_trees
from lightning_faces.methods.parm.ranks import Ranks
from lightning_faces.methods.parm.updater import Gathered, LocalBinaryFeatures
from tests.methods.parm.ranks import on_ranks

TREES, SITES, FACES, DEPTH, CANDIDATES = 3, 6, 40, 3, 12


def grow_by_hand(
    values: NDArray[np.uint8], offsets: NDArray[np.float64], visible: NDArray[np.bool_], generator: torch.Generator
) -> list[list[tuple[int, int, int]]]:
    """Per tree its nodes in level order; candidates are drawn in the same way, all else is plain loops."""
    trees: list[list[tuple[int, int, int]]] = [[] for _ in range(TREES)]
    where = np.zeros((TREES, FACES), dtype=int)
    for level in range(DEPTH):
        shape = (TREES, CANDIDATES)
        first = torch.randint(SITES, shape, generator=generator).numpy()
        second = (first + torch.randint(1, SITES, shape, generator=generator).numpy()) % SITES
        example = torch.randint(FACES, shape, generator=generator).numpy()
        for t in range(TREES):
            following = where[t].copy()
            for node in range(2**level):
                best, least = (0, 0, 0), np.inf
                for c in range(CANDIDATES):
                    difference = values[t, first[t, c]].astype(int) - values[t, second[t, c]].astype(int)
                    threshold = difference[example[t, c]]
                    here = (where[t] == node) & visible[t]
                    sides = [offsets[t, here & part] for part in (difference < threshold, difference >= threshold)]
                    if min(map(len, sides)) == 0:
                        continue
                    left_over = sum(float(((side - side.mean(axis=0)) ** 2).sum()) for side in sides)
                    if left_over < least - 1e-9:
                        best, least = (int(first[t, c]), int(second[t, c]), int(threshold)), left_over
                trees[t].append(best)
                difference = values[t, best[0]].astype(int) - values[t, best[1]].astype(int)
                members = where[t] == node
                following[members] = 2 * node + (difference[members] >= best[2])
            where[t] = following
    return trees


def some_faces() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 256, (TREES, SITES, FACES), dtype=np.uint8)
    offsets = rng.normal(size=(TREES, FACES, 2)) + (values[:, :1].transpose(0, 2, 1) > 128)
    visible = rng.random((TREES, FACES)) > 0.2
    return torch.from_numpy(values), torch.from_numpy(offsets).float(), torch.from_numpy(visible)


def test_trees_are_those_of_the_slow_reference() -> None:
    values, offsets, visible = some_faces()
    grown = grow_trees(values, offsets, visible, DEPTH, CANDIDATES, torch.Generator().manual_seed(4))
    arrays = values.numpy(), offsets.double().numpy(), visible.numpy()
    expected = grow_by_hand(*arrays, torch.Generator().manual_seed(4))
    found = torch.stack([part[0].to(torch.int64) for part in grown], dim=2)
    np.testing.assert_array_equal(found.numpy(), np.array(expected))
    assert len({node for tree in expected for node in tree}) > 10


def test_faces_fall_into_the_leaves_that_a_walk_finds() -> None:
    generator = torch.Generator().manual_seed(1)
    nodes = 2**DEPTH - 1
    forest = Forest(
        torch.randint(SITES, (2, TREES, nodes), generator=generator).to(torch.uint8),
        torch.randint(SITES, (2, TREES, nodes), generator=generator).to(torch.uint8),
        torch.randint(-80, 80, (2, TREES, nodes), generator=generator).to(torch.int32),
    )
    values = torch.randint(256, (5, 2, SITES), generator=generator).to(torch.uint8)
    leaves = find_leaves(forest, values)
    for b in range(5):
        for landmark in range(2):
            for t in range(TREES):
                node = 0
                while node < nodes:
                    first, second = int(forest.first[landmark, t, node]), int(forest.second[landmark, t, node])
                    difference = int(values[b, landmark, first]) - int(values[b, landmark, second])
                    node = 2 * node + (1 if difference < int(forest.threshold[landmark, t, node]) else 2)
                assert int(leaves[b, landmark, t]) == node - nodes
    assert leaves.unique().numel() == 2**DEPTH


def updater() -> LocalBinaryFeatures:
    return LocalBinaryFeatures((0.3, 0.2), 3, 4, 3, 10, 20, 30, 0.05, 7)


def gathered(rows: torch.Tensor) -> Gathered:
    """Faces whose landmarks should move to the right where the image is bright there."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(256, (60, 3, 10), generator=generator).to(torch.uint8)
    visible = torch.rand((60, 3), generator=generator) > 0.1
    offsets = torch.stack(((values[..., 0] > 120).float(), 0.1 * torch.rand((60, 3), generator=generator)), dim=2)
    return Gathered(rows, values[rows], visible[rows], offsets[rows])


def test_updates_follow_the_pixels_that_explain_them() -> None:
    method, faces = updater(), gathered(torch.arange(60))
    method.fit(1, faces, Ranks())
    found = method(1, faces.values, faces.visible)
    seen = faces.visible[..., None]
    before = float((seen * faces.offsets.sub(faces.offsets.mean(dim=0))).square().mean())
    assert float((seen * (found - faces.offsets)).square().mean()) < 0.2 * before
    assert torch.equal(method(0, faces.values, faces.visible), torch.zeros(60, 3, 2))
    hidden = method(1, faces.values, torch.zeros_like(faces.visible))
    assert torch.equal(hidden, torch.zeros(60, 3, 2))


def test_spread_over_processes_the_trees_are_the_same_and_weights_agree() -> None:
    alone = updater()
    alone.fit(0, gathered(torch.arange(60)), Ranks())
    shares = (torch.arange(0, 60, 3), torch.tensor([i for i in range(60) if i % 3]))

    def work(ranks: Ranks) -> LocalBinaryFeatures:
        part = updater()
        part.fit(0, gathered(shares[ranks.rank]), ranks)
        return part

    for part in on_ranks(2, work):
        for name in ("first", "second", "threshold"):
            assert torch.equal(getattr(part, name), getattr(alone, name))
        torch.testing.assert_close(part.weights, alone.weights, atol=1e-6, rtol=0)


def test_fewer_faces_than_leaves_are_refused() -> None:
    with pytest.raises(
        ConfigurationError, match=r"A tree of 8 leaves needs at least 8 faces, and there are 5.*at most 2"
    ):
        updater().fit(0, gathered(torch.arange(5)), Ranks())
