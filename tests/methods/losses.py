"""Losses of one batch, for tests that train without a trainer."""

from __future__ import annotations

from torch import Tensor

from lightning_faces.batch import FaceBatch
from lightning_faces.methods.base import FaceMethod, Term, term_means, weighted_sum


def loss_of(method: FaceMethod, batch: FaceBatch) -> Tensor:
    terms = method.terms(batch)
    return weighted_sum(terms, term_means(terms))


def mean_of(term: Term) -> Tensor:
    return term_means({"term": term})["term"]
