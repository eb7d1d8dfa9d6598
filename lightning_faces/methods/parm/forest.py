"""Local binary features: trees on differences of pixels around each landmark (Ren 2014, the paper's [15]).

A tree's node compares the difference of two pixels with a threshold: smaller goes left. Trees are complete, with nodes
in level order: the children of node i are 2 i + 1 and 2 i + 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Forest(NamedTuple):
    """Trees of L landmarks, T each, with N = 2^depth - 1 nodes.

    Attributes:
        first: uint8 ``[L, T, N]``, the site of the first pixel.
        second: uint8 ``[L, T, N]``, the site of the pixel that is subtracted.
        threshold: int32 ``[L, T, N]``, since processes cannot exchange 16-bit numbers.
    """

    first: Tensor
    second: Tensor
    threshold: Tensor


def grow_trees(
    values: Tensor, offsets: Tensor, visible: Tensor, depth: int, candidates: int, generator: torch.Generator
) -> Forest:
    """Grow the trees of one landmark, all together and level by level, by variance reduction.

    At each level a tree draws candidates, pairs of sites with the difference at a random face as threshold; each of its
    nodes takes the one that reduces the variance of its faces' 2D offsets most. A node that no candidate divides
    sends all to the right.

    Args:
        values: uint8 ``[T, P, M]``: for each tree, pixels at P sites of the M faces that it is grown on.
        offsets: ``[T, M, 2]``, where the landmark should move.
        visible: Bool ``[T, M]``; a face where the landmark is hidden does not count.
        depth: Number of splits from the root to a leaf.
        candidates: Number of candidates.
        generator: Source of the candidates.

    Returns:
        The trees, with L = 1.
    """
    trees, sites, faces = values.shape
    device = values.device
    pixels = values.to(torch.int16)
    flat = pixels.flatten(0, 1)
    block = torch.arange(trees, device=device)[:, None] * sites
    moments = torch.cat((torch.ones_like(offsets[..., :1]), offsets), dim=2) * visible[..., None]
    node = torch.zeros((trees, faces), dtype=torch.int64, device=device)
    levels: list[list[Tensor]] = []
    for level in range(depth):
        first = torch.randint(sites, (trees, candidates), generator=generator).to(device)
        apart = torch.randint(1, sites, (trees, candidates), generator=generator).to(device)
        second = (first + apart) % sites
        example = torch.randint(faces, (trees, candidates), generator=generator).to(device)
        difference = flat.index_select(0, (first + block).flatten())
        difference = difference.sub_(flat.index_select(0, (second + block).flatten())).view(trees, -1, faces)
        threshold = difference.gather(2, example[..., None])
        # 1 where the difference is smaller, else 0, since all are whole numbers: faster than a comparison.
        is_left = torch.sub(threshold, difference, out=difference).clamp_(0, 1).to(moments.dtype)
        # Counts and sums of each node's faces, on the left side and in all.
        of_node = nn.functional.one_hot(node, 2**level).to(moments.dtype)
        statistics = (of_node[..., None] * moments[:, :, None]).flatten(2)
        left = (is_left @ statistics).view(trees, -1, 2**level, 3)
        right = statistics.sum(dim=1).view(trees, 1, 2**level, 3) - left
        # What a split leaves of the variance falls as the squared sums over the counts rise.
        gain = _squares_over_count(left) + _squares_over_count(right)
        divides = (left[..., 0] > 0.5) & (right[..., 0] > 0.5)
        gain, best = gain.masked_fill(~divides, -1.0).max(dim=1)
        found = gain >= 0
        chosen = [torch.where(found, part.gather(1, best), 0) for part in (first, second, threshold[..., 0])]
        levels.append(chosen)
        one, two, bound = (part.gather(1, node) for part in chosen)
        difference = pixels.gather(1, one[:, None])[:, 0] - pixels.gather(1, two[:, None])[:, 0]
        node = 2 * node + (difference >= bound)
    first, second, threshold = (torch.cat(parts, dim=1)[None] for parts in zip(*levels))
    return Forest(first.to(torch.uint8), second.to(torch.uint8), threshold.to(torch.int32))


def _squares_over_count(moments: Tensor) -> Tensor:
    """``(sum x)^2 + (sum y)^2`` over the count of ``[..., 3]`` (count, sum x, sum y); 0 where nothing is counted."""
    return moments[..., 1:].square().sum(dim=-1) / moments[..., 0].clamp_min(1.0)


def find_leaves(forest: Forest, values: Tensor) -> Tensor:
    """The leaf of each tree that faces fall into.

    Args:
        forest: The trees.
        values: uint8 ``[B, L, P]``, pixels at the sites around each landmark.

    Returns:
        int64 ``[B, L, T]`` from 0 to 2^depth - 1.
    """
    landmarks, trees, nodes = forest.first.shape
    start = (torch.arange(landmarks * trees, device=values.device) * nodes).reshape(landmarks, trees)
    first, second = forest.first.flatten().long(), forest.second.flatten().long()
    threshold = forest.threshold.flatten().to(torch.int16)
    pixels = values.to(torch.int16)
    node = torch.zeros((len(values), landmarks, trees), dtype=torch.int64, device=values.device)
    for _ in range((nodes + 1).bit_length() - 1):
        place = start + node
        difference = pixels.gather(2, first[place]) - pixels.gather(2, second[place])
        node = 2 * node + 1 + (difference >= threshold[place])
    return node - nodes
