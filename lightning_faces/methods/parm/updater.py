"""Landmark updates from the pixels around the landmarks: the interface (the paper's M1) and local binary features.

Offsets of pixels and landmark updates are in the rectified frame: ``sqrt(w h)`` of the face box is the unit, and the
in-plane rotation of the current landmarks against the first ones is taken out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_faces.errors import ConfigurationError
from lightning_faces.methods.parm.forest import Forest, find_leaves, grow_trees
from lightning_faces.methods.parm.ranks import Ranks
from lightning_faces.methods.parm.regression import IndicatorRows, indicator_product, solve_indicators

TREES = 4
"""Trees that are grown together: their numbers fit into a processor's cache."""


@dataclass(frozen=True)
class Gathered:
    """What a pass has gathered for a landmark updater: N rows of this process.

    Attributes:
        position: int64 ``[N]``, the row's place among the rows of all processes.
        values: uint8 ``[N, L, P]``, pixels at the sites around the current landmarks.
        visible: Bool ``[N, L]``.
        offsets: ``[N, L, 2]``, from the current to the true landmarks, rectified frame.
    """

    position: Tensor
    values: Tensor
    visible: Tensor
    offsets: Tensor


class LandmarkUpdater(nn.Module, ABC):
    """Estimates at each stage where the landmarks should move, from pixels at P sites around each of them.

    Args:
        radii: Radius of the sites at each stage, in ``sqrt(w h)`` of the face box; as many as there are stages.
        landmarks: Number L of landmarks.
        seed: Seed of all random choices.
    """

    def __init__(self, radii: tuple[float, ...], landmarks: int, seed: int) -> None:
        super().__init__()
        self.radii, self.landmarks, self.seed = radii, landmarks, seed

    @abstractmethod
    def sites(self, stage: int) -> Tensor:
        """Offsets ``[L, P, 2]`` of the pixels that a stage looks at, rectified frame."""

    @abstractmethod
    def fit(self, stage: int, gathered: Gathered, ranks: Ranks) -> None:
        """Fit a stage on the rows of all processes, which call this at the same time.

        Raises:
            ConfigurationError: If there are too few rows.
        """

    @abstractmethod
    def forward(self, stage: int, values: Tensor, visible: Tensor) -> Tensor:
        """Landmark updates ``[B, L, 2]``, rectified frame, from pixels uint8 ``[B, L, P]`` and visibility."""

    def generator(self, stage: int, number: int) -> torch.Generator:
        """Random numbers of a stage's part, the same on all processes."""
        return torch.Generator().manual_seed((self.seed * 1009 + stage) * 1009 + number)


def in_plane_rotation(landmarks: Tensor, reference: Tensor) -> Tensor:
    """Rotations ``[B, 2, 2]`` of the least-squares similarities from reference landmarks to others.

    Args:
        landmarks: ``[B, L, 2]``.
        reference: ``[L, 2]``.

    Returns:
        Matrices that turn a column vector of the rectified frame into one of the image.
    """
    centred = landmarks - landmarks.mean(dim=1, keepdim=True)
    origin = reference - reference.mean(dim=0)
    cosine = (centred * origin).sum(dim=(1, 2))
    sine = (centred[..., 1] * origin[:, 0] - centred[..., 0] * origin[:, 1]).sum(dim=1)
    length = torch.hypot(cosine, sine)
    cosine, sine = torch.where(length > 0, cosine / length, 1.0), torch.where(length > 0, sine / length, 0.0)
    return torch.stack((torch.stack((cosine, -sine), dim=1), torch.stack((sine, cosine), dim=1)), dim=1)


def grey_bytes(image: Tensor) -> Tensor:
    """Images ``[B, 3, H, W]`` in [0, 1] as grey bytes ``[B, H, W]`` (ITU-R BT.601)."""
    grey = (image * image.new_tensor((0.299, 0.587, 0.114))[:, None, None]).sum(dim=1)
    return (grey * 255.0).round().clamp(0, 255).to(torch.uint8)


def pixels_at_sites(grey: Tensor, landmarks: Tensor, sites: Tensor, rotation: Tensor, size: Tensor) -> Tensor:
    """Pixels at sites around landmarks; beyond the image, those of its border.

    Args:
        grey: uint8 ``[B, H, W]``.
        landmarks: ``[B, L, 2]`` pixels, image frame.
        sites: ``[L, P, 2]``, rectified frame.
        rotation: ``[B, 2, 2]`` from the rectified frame to the image.
        size: ``[B, 1]``, the unit of the sites in pixels.

    Returns:
        uint8 ``[B, L, P]``.
    """
    height, width = grey.shape[1:]
    turn = (rotation * size[:, :, None]).to(landmarks.dtype)
    places = []
    for row, last in ((0, width - 1), (1, height - 1)):
        offset = sites[..., 0] * turn[:, row, 0, None, None] + sites[..., 1] * turn[:, row, 1, None, None]
        places.append((offset + landmarks[..., row, None]).round_().clamp_(0, last).long())
    flat = (places[1] * width + places[0]).flatten(1)
    return grey.flatten(1).gather(1, flat).reshape(len(grey), *sites.shape[:2])


class LocalBinaryFeatures(LandmarkUpdater):
    """Trees of each landmark say which leaves a face falls into; one regression maps all leaves to all updates.

    Leaves of landmarks that are hidden count for nothing.

    Args:
        radii: Radius of the sites at each stage.
        landmarks: Number of landmarks.
        trees: Trees of a landmark and stage.
        depth: Number of splits from the root to a leaf, so that there are ``2 ** depth`` leaves.
        sites: Number of pixels around a landmark that differences are taken of.
        candidates: Differences that a level of a tree chooses from.
        tree_faces: Faces, drawn for each tree, that it is grown on.
        ridge: Regularisation of the regression per face; LIBLINEAR's C of 1/N is 0.5.
        seed: Seed of all random choices.
    """

    first: Tensor
    second: Tensor
    threshold: Tensor
    weights: Tensor
    offsets: Tensor

    def __init__(
        self,
        radii: tuple[float, ...],
        landmarks: int,
        trees: int,
        depth: int,
        sites: int,
        candidates: int,
        tree_faces: int,
        ridge: float,
        seed: int,
    ) -> None:
        super().__init__(radii, landmarks, seed)
        self.trees, self.depth, self.candidates = trees, depth, candidates
        self.tree_faces, self.ridge = tree_faces, ridge
        nodes, stages = 2**depth - 1, len(radii)
        self.register_buffer("first", torch.zeros((stages, landmarks, trees, nodes), dtype=torch.uint8))
        self.register_buffer("second", torch.zeros((stages, landmarks, trees, nodes), dtype=torch.uint8))
        self.register_buffer("threshold", torch.zeros((stages, landmarks, trees, nodes), dtype=torch.int32))
        # The last of a tree's rows is that of a hidden landmark, and stays 0.
        self.width = 2**depth + 1
        self.register_buffer("weights", torch.zeros((stages, landmarks * trees * self.width, 2 * landmarks)))
        drawn = []
        for stage, radius in enumerate(radii):
            uniform = torch.rand((2, landmarks, sites), generator=self.generator(stage, 0), dtype=torch.float64)
            angle, distance = 2 * math.pi * uniform[0], radius * uniform[1].sqrt()
            drawn.append(torch.stack((distance * angle.cos(), distance * angle.sin()), dim=2))
        self.register_buffer("offsets", torch.stack(drawn), persistent=False)

    def sites(self, stage: int) -> Tensor:
        """Sites uniform in a disc."""
        return self.offsets[stage]

    def forest(self, stage: int) -> Forest:
        """The trees of a stage."""
        return Forest(self.first[stage], self.second[stage], self.threshold[stage])

    def forward(self, stage: int, values: Tensor, visible: Tensor) -> Tensor:
        """Sum of the leaves' weights."""
        leaves = self._leaves(stage, values, visible)
        return indicator_product(leaves, self.weights[stage], self.width).view(len(values), self.landmarks, 2)

    def _leaves(self, stage: int, values: Tensor, visible: Tensor) -> Tensor:
        """uint8 ``[B, L * T]``; the last number where the landmark is hidden."""
        leaves = find_leaves(self.forest(stage), values)
        return torch.where(visible[..., None], leaves, self.width - 1).flatten(1).to(torch.uint8)

    def fit(self, stage: int, gathered: Gathered, ranks: Ranks) -> None:
        """Grow the trees, then regress the offsets on their leaves."""
        count = int(ranks.sum(torch.tensor(len(gathered.position), device=gathered.position.device)))
        least = 2**self.depth
        if count < least:
            raise ConfigurationError(
                f"A tree of {least} leaves needs at least {least} faces, and there are {count}: give more training "
                f"faces, or set the method's option tree_depth to at most {max(count, 1).bit_length() - 1}."
            )
        self._grow(stage, gathered, ranks, count)
        leaves = torch.cat(
            [
                self._leaves(stage, values, visible)
                for values, visible in zip(torch.split(gathered.values, 1024), torch.split(gathered.visible, 1024))
            ]
        )
        rows = IndicatorRows(leaves, self.width)
        self.weights[stage] = solve_indicators(rows, gathered.offsets.flatten(1), self.ridge * count, ranks).float()

    def _grow(self, stage: int, gathered: Gathered, ranks: Ranks, count: int) -> None:
        # Faces of a tree, the same ones for all landmarks, so that only these have to be known everywhere.
        generator = self.generator(stage, 1)
        faces = min(self.tree_faces, count)
        drawn = torch.stack([torch.randperm(count, generator=generator)[:faces] for _ in range(self.trees)])
        used, place = torch.unique(drawn, return_inverse=True)
        device = gathered.values.device
        used, place = used.to(device), place.to(device)
        slot = torch.full((count,), -1, device=device)
        slot[used] = torch.arange(len(used), device=device)
        slot = slot[gathered.position]
        mine, slot = slot >= 0, slot[slot >= 0]
        forest = Forest(*(torch.zeros_like(part) for part in self.forest(stage)))
        for landmark in range(self.landmarks):
            values = gathered.values.new_zeros((len(used), gathered.values.shape[2]))
            values[slot] = gathered.values[mine, landmark]
            known = torch.zeros((len(used), 3), dtype=torch.float32, device=device)
            known[slot, :2] = gathered.offsets[mine, landmark].float()
            known[slot, 2] = gathered.visible[mine, landmark].float()
            values, known = ranks.sum(values), ranks.sum(known)
            # Each process grows some landmarks' trees.
            if landmark % ranks.size == ranks.rank:
                generator = self.generator(stage, 2 + landmark)
                for trees in torch.split(torch.arange(self.trees, device=device), TREES):
                    rows = place[trees]
                    grown = grow_trees(
                        values[rows].transpose(1, 2).contiguous(),
                        known[rows][..., :2],
                        known[rows][..., 2] > 0,
                        self.depth,
                        self.candidates,
                        generator,
                    )
                    for whole, part in zip(forest, grown):
                        whole[landmark, trees] = part[0]
        for whole, part in zip(self.forest(stage), forest):
            whole.copy_(ranks.sum(part))
