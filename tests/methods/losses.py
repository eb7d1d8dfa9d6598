"""Losses of one batch, for tests that train without a trainer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_faces.batch import FaceBatch
from lightning_faces.methods.base import FaceMethod, Term, term_means, weighted_sum


def loss_of(method: FaceMethod, batch: FaceBatch) -> Tensor:
    terms = method.terms(batch)
    return weighted_sum(terms, term_means(terms))


def mean_of(term: Term) -> Tensor:
    return term_means({"term": term})["term"]


def losses_of_training(method: FaceMethod, batches: Sequence[FaceBatch], steps: int) -> list[float]:
    """Losses of steps with the method's own optimizer, batch after batch."""
    assert method.make_optimizer is not None
    optimizer = method.make_optimizer(method.parameters())
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(method, batches[step % len(batches)])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
