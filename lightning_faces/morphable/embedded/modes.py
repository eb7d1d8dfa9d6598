"""Identity modes from sampled adults, and the facial actions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lightning_faces.morphable.embedded.head import Head, rest_vertices
from lightning_faces.morphable.surface import Bools, Floats, Ints, principal_components

SIZE_STD = 0.03
"""Relative standard deviation of head size among adults (head circumference: 1.6 cm of 56 cm)."""
# Standard deviation of a local change (1 is the full target of the MakeHuman artists) by the part of its name; the
# first that matches counts. Sideways shifts of whole features are kept small: faces are nearly symmetric.
LOCAL_STD = (
    ("trans-out", 0.08),
    ("head-angle", 0.10),
    ("head-trans", 0.10),
    ("head-age", 0.25),
    ("neck", 0.18),
    ("ear-", 0.25),
    ("eye-scale", 0.25),
    ("mouth-trans-forward", 0.20),
    ("nose-compression", 0.20),
    ("nose-septumangle", 0.25),
    ("chin-cleft", 0.25),
    ("head-", 0.30),
    ("forehead", 0.30),
    ("cheek", 0.32),
    ("chin", 0.32),
    ("eye", 0.32),
    ("mouth", 0.32),
    ("nose", 0.32),
)
SIDE_ASYMMETRY = 0.12
"""Standard deviation of a left or right change around their common value, as a part of the common one's."""


def sample_identities(model: Any, head: Head, count: int, generator: np.random.Generator) -> Floats:
    """Random adults ``[count, V, 3]``: phenotypes, and the local changes of the head."""
    labels = list(model.phenotype_labels)
    phenotypes = np.full((count, len(labels)), 0.5)
    phenotypes[:, labels.index("gender")] = generator.beta(0.6, 0.6, count)
    phenotypes[:, labels.index("age")] = generator.uniform(0.6, 0.97, count)
    phenotypes[:, labels.index("muscle")] = generator.beta(2.0, 2.0, count)
    phenotypes[:, labels.index("weight")] = generator.beta(1.8, 1.8, count)
    phenotypes[:, labels.index("height")] = generator.beta(6.0, 6.0, count)
    phenotypes[:, labels.index("proportions")] = generator.beta(2.0, 2.0, count)
    ancestry = generator.dirichlet((0.5, 0.5, 0.5), count)
    for column, name in enumerate(("african", "asian", "caucasian")):
        phenotypes[:, labels.index(name)] = ancestry[:, column]
    changes = np.zeros((count, len(model.local_change_labels)))
    common: dict[str, Floats] = {}
    for column, label in enumerate(model.local_change_labels):
        scale = next((value for part, value in LOCAL_STD if part in label), 0.0)
        if any(part in label for part in ("forearm", "torso", "foot", "hand")) or scale == 0.0:
            continue
        sided = label[:2] in ("l-", "r-")
        key = label[2:] if sided else label
        if key not in common:
            common[key] = generator.normal(0.0, scale, count)
        own = generator.normal(0.0, SIDE_ASYMMETRY * scale, count) if sided else 0.0
        changes[:, column] = np.clip(common[key] + own, -1.0, 1.0)
    batches = []
    for start in range(0, count, 50):
        part = slice(start, min(start + 50, count))
        batches.append(
            rest_vertices(
                model,
                phenotype_kwargs=torch.as_tensor(phenotypes[part], dtype=model.dtype),
                local_changes_kwargs=torch.as_tensor(changes[part], dtype=model.dtype),
            )[:, head.kept]
        )
    return np.concatenate(batches)


def facial_actions(model: Any, head: Head) -> tuple[list[str], Floats]:
    """Names and displacements ``[Ke, V, 3]`` of the facial actions that move this mesh (it has no tongue).

    Left and right actions are made exact mirror images of each other, so that coefficients can flip a face.
    """
    neutral = rest_vertices(model)[0]
    names, moves = [], []
    for label in model.facial_action_labels:
        move = (rest_vertices(model, facial_actions={label: 1.0})[0] - neutral)[head.kept]
        if np.abs(move).max() > 1e-6:
            names.append(str(label))
            moves.append(move)
    other = [names.index(_other_side(name)) for name in names]
    actions = np.stack(moves)
    return names, 0.5 * (actions + actions[other][:, head.mirror] * (-1.0, 1.0, 1.0))


def _other_side(name: str) -> str:
    """``mouthSmileRight`` for ``mouthSmileLeft`` and the other way round; names without a side stay."""
    for side, other in (("Left", "Right"), ("Right", "Left")):
        if name.endswith(side):
            return name.removesuffix(side) + other
    return name


def calm_size(samples: Floats, mask: Bools) -> tuple[Floats, float]:
    """Scale each shape so that sizes spread as adult heads do: the sampled mix of changes spreads them further.

    Returns:
        Shapes ``[N, V, 3]`` and the relative standard deviation of size that they had.
    """
    size = np.sqrt(((samples[:, mask] - samples[:, mask].mean(1, keepdims=True)) ** 2).sum(-1).mean(-1))
    log = np.log(size) - np.log(size).mean()
    spread = float(log.std())
    return samples * np.exp(log * (SIZE_STD / spread - 1.0))[:, None, None], spread


def identity_basis(samples: Floats, mirror: Ints, count: int) -> tuple[Floats, Floats, Floats]:
    """Mean ``[V, 3]``, unit modes ``[count, V, 3]`` and standard deviations of the samples and their mirror images.

    With the mirror images the covariance splits into a symmetric and an antisymmetric part, so that every mode is one
    or the other exactly.
    """
    flipped = samples[:, mirror] * (-1.0, 1.0, 1.0)
    mean = (0.5 * (samples + flipped)).mean(0)
    size = len(samples)
    even = (0.5 * (samples + flipped) - mean).reshape(size, -1)
    odd = (0.5 * (samples - flipped)).reshape(size, -1)
    odd -= odd.mean(0)
    directions, std = [], []
    for part in (even, odd):
        found, spread = principal_components(part, count)
        directions.append(found)
        std.append(spread)
    all_std = np.concatenate(std)
    chosen = np.argsort(-all_std, kind="stable")[:count]
    basis = np.concatenate(directions)[chosen].reshape(count, -1, 3)
    return mean, basis, all_std[chosen]
