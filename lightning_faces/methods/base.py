"""The one base class of all methods."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric, MetricCollection

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.methods import continuing
from lightning_faces.methods.arguments import plain_arguments
from lightning_faces.metrics import landmark_arguments, landmark_metrics


@dataclass(eq=False)
class Term:
    """One term of a loss, sample by sample, so that it can be averaged over all samples of all ranks exactly.

    Attributes:
        value: ``[B]``, sum of a sample's errors; 0 for a sample without the target.
        count: ``[B]``, how many errors that is: 1 or 0 for one error a face, the valid pixels for a dense target.
        weight: What the term's mean counts in the loss.
    """

    value: Tensor
    count: Tensor
    weight: float | Tensor = 1.0


class FaceMethod(LightningModule, ABC):
    """A method: a network, its losses, and how its output becomes a ``FacePrediction``.

    A subclass implements ``terms`` and ``predict_faces`` and says what data it needs in ``requires`` and ``spec``. A
    method with several predictions (passes, stages, heads) names them in ``prediction_names`` and gives them all in
    ``predict_named``. A method that is fitted without gradients has no optimizer, and implements ``fit_batch`` and
    ``end_pass`` in the place of ``terms``.

    Logged are ``train/loss`` and its terms, ``val/loss``, and the metrics as ``val/...`` and ``test/...``; those of a
    named prediction that is not the default as ``val/<name>/...``.

    Args:
        optimizer: Makes the optimizer of the trainable parameters; None for a method that is fitted without gradients.
        lr_scheduler: Makes the learning-rate schedule; None keeps the rate.
        lr_scheduler_interval: Whether the schedule advances by epoch or by step.
    """

    requires: frozenset[str] = frozenset({"landmarks"})
    """Target keys of the batch that the method trains on."""
    scores: frozenset[str] = frozenset()
    """Further target keys that a test scores where the data has them."""
    protocol: Mapping[str, str] = {}
    """What a record of this method must say beside the usual, such as another input than the image."""
    monitor = "val/nme"
    """The metric that decides which checkpoint is best, and that plateau schedules follow."""
    prediction_names: tuple[str, ...] = ("",)
    """Names of the predictions, of ``[a-z0-9_]``; the last is the default. A method with one leaves its name empty."""
    every_sample_once = False
    """Whether a training pass must give each sample exactly once, on any number of processes."""
    grown: tuple[str, ...] = ()
    """Buffers that grow while the method is fitted: restored with the shape that they have in the checkpoint."""

    def __init__(
        self,
        optimizer: OptimizerCallable | None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        # Those of the subclass, which need not do it itself: test and predict make the method anew from a checkpoint.
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.val_metrics = landmark_metrics().clone(prefix="val/")
        self.test_metrics = landmark_metrics(yaw_bins=True).clone(prefix="test/")
        self.val_loss = TermMean()
        self._continued: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FaceMethod:
        """A copy with weights of its own, as weight averaging makes, that shares the optimizer's factory.

        The factories that the command line makes hold the whole program, so that copying them would copy the data set.
        """
        for factory in (self.make_optimizer, self.make_lr_scheduler):
            memo[id(factory)] = factory
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))  # type: ignore[no-untyped-call]
        return copied

    @property
    def spec(self) -> FaceSpec:
        """What the method needs of its data; any data will do by default."""
        return FaceSpec()

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """The terms of the training loss, the same names whatever the batch has."""
        raise TypeError(f"{type(self).__name__} has an optimizer, and so it must implement terms(batch).")

    @abstractmethod
    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """The faces of a batch, in the image frame; of several predictions, the default.

        It changes nothing of the method, and what it gives for a face does not depend on earlier calls.
        """

    def predict_named(self, batch: FaceBatch) -> dict[str, FacePrediction]:
        """All predictions by name, as ``prediction_names`` lists them; as pure as :meth:`predict_faces`."""
        return {"": self.predict_faces(batch)}

    def fit_batch(self, batch: FaceBatch) -> None:
        """Take in a batch of a pass, without gradients. Ranks take it at different times: nothing collective here."""
        raise TypeError(f"{type(self).__name__} has no optimizer, and so it must implement fit_batch(batch).")

    def end_pass(self) -> None:
        """Finish a pass over the training data, on all ranks at once."""

    def num_parameters(self) -> int:
        """What the records count as the method's parameters: the trainable ones, unless it says otherwise."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def converged(self) -> bool | None:
        """Whether the training has converged; None where that is to be judged by the validations."""
        return None

    def training_step(self, batch: FaceBatch, batch_idx: int) -> Tensor | None:
        """Loss of one batch; logs every term."""
        if self.make_optimizer is None:
            with torch.no_grad():
                self.fit_batch(batch)
            return None
        terms = self.terms(batch)
        means = self._term_means(terms)
        total = weighted_sum(terms, means)
        size = len(batch["index"])
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": mean.detach() for name, mean in means.items()}, batch_size=size)
        return total

    def on_train_epoch_end(self) -> None:
        """End a pass without gradients."""
        if self.make_optimizer is None:
            with torch.no_grad():
                self.end_pass()

    def validation_step(self, batch: FaceBatch, batch_idx: int) -> dict[str, Any]:
        """Score one batch; its predictions go to callbacks as ``prediction`` (the default) and ``predictions``."""
        if self.make_optimizer is not None:
            self.val_loss.update(self.terms(batch))
            self.log("val/loss", self.val_loss, batch_size=len(batch["index"]))
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: FaceBatch, batch_idx: int) -> dict[str, Any]:
        """Score one batch; its predictions go to callbacks as ``prediction`` (the default) and ``predictions``."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: FaceBatch, batch_idx: int) -> FacePrediction:
        """The faces of a batch in the pixels of their files."""
        return self.predict_faces(batch).to_file(batch["crop_to_file"])

    def _evaluate(self, batch: FaceBatch, metrics: MetricCollection) -> dict[str, Any]:
        predictions = self.predict_named(batch)
        prediction = predictions[self.prediction_names[-1]]
        metrics.update(**landmark_arguments(prediction.landmarks, batch))
        # Metric objects, not values: Lightning computes them once, over all ranks.
        self.log_dict(metrics, batch_size=len(batch["index"]), prog_bar=True)
        return {"prediction": prediction, "predictions": predictions}

    def _term_means(self, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        if self._trainer is None or self._trainer.world_size == 1:
            return term_means(terms)
        reduce = partial(self._trainer.strategy.reduce, reduce_op="sum")
        return term_means(terms, self._trainer.world_size, reduce)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule over the parameters that require a gradient."""
        if self.make_optimizer is None:
            return None
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = self.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the method and its arguments, as far as they are plain data, and say how it is trained."""
        checkpoint["hyper_parameters"] = plain_arguments(type(self), self.hparams)
        if self._trainer is not None and self._trainer.state.fn == "fit":
            checkpoint[continuing.KEY] = continuing.describe(self, self._trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what differs from the training that is continued."""
        if self._trainer is not None and self._trainer.state.fn == "fit":
            self._continued = continuing.before_restoring(self, self._trainer, checkpoint)

    def on_train_start(self) -> None:
        """Use the options of this training where it continues one with others."""
        if self._continued:
            continuing.after_restoring(self, self.trainer, self._continued)
            self._continued = {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.grown:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                setattr(self, name, torch.empty_like(saved, device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def term_means(
    terms: Mapping[str, Term], ranks: int = 1, sum_over_ranks: Callable[[Tensor], Tensor] = lambda values: values
) -> dict[str, Tensor]:
    """Mean of each term over the samples of all ranks: sum of values over sum of counts, 0 where nothing counts.

    The value is the same on all ranks. Its gradient is this rank's part times the number of ranks, so that the mean of
    the ranks' gradients, which DDP takes, is that of the loss over all samples.

    Args:
        terms: By name.
        ranks: Number of ranks.
        sum_over_ranks: Sums a tensor over them, without a gradient.

    Returns:
        Scalars by name.

    Example:
        >>> terms = {"depth": Term(torch.tensor([3.0, 0.0, 5.0]), torch.tensor([1, 0, 1]))}
        >>> term_means(terms)
        {'depth': tensor(4.)}
    """
    values = torch.stack([_full(term.value).sum() for term in terms.values()])
    counts = torch.stack([_full(term.count).sum() for term in terms.values()]).to(values.dtype)
    all_values, all_counts = sum_over_ranks(torch.stack((values.detach(), counts)))
    all_counts = torch.where(all_counts > 0, all_counts, 1.0)
    means = values / all_counts
    if ranks > 1:
        means = ranks * means
        means = means + (all_values / all_counts - means).detach()
    return dict(zip(terms, means.unbind()))


def weighted_sum(terms: Mapping[str, Term], means: Mapping[str, Tensor]) -> Tensor:
    """The loss of terms with the means that :func:`term_means` gives."""
    return torch.stack([term.weight * means[name] for name, term in terms.items()]).sum()


def _full(values: Tensor) -> Tensor:
    """Half precision as float32, since sums over a batch do not fit into it; booleans and integers too."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


class TermMean(Metric):
    """The weighted sum of terms' means over all samples of all ranks, as a float64 scalar."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = False

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[str, Tensor] = {}

    def update(self, terms: Mapping[str, Term]) -> None:
        """Add a batch."""
        for name, term in terms.items():
            if name not in self.weights:
                for state in (f"value_{name}", f"count_{name}"):
                    self.add_state(state, torch.zeros((), dtype=torch.float64, device=self.device), "sum")
            self.weights[name] = torch.as_tensor(term.weight, dtype=torch.float64).detach()
            self._add(f"value_{name}", term.value)
            self._add(f"count_{name}", term.count)

    def compute(self) -> Tensor:
        """The loss; a term that nothing counted in adds nothing."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for name, weight in self.weights.items():
            count = getattr(self, f"count_{name}")
            total = total + weight.to(total.device) * getattr(self, f"value_{name}") / torch.where(
                count > 0, count, 1.0
            )
        return total

    def _add(self, state: str, values: Tensor) -> None:
        setattr(self, state, getattr(self, state) + values.detach().sum(dtype=torch.float64))


def image_to_unit(points: Tensor, image_size: int) -> Tensor:
    """Image-frame pixels to coordinates in which the image spans [-1, 1]; a depth is scaled alike, not moved."""
    centre = points.new_zeros(points.shape[-1])
    centre[:2] = (image_size - 1) / 2
    return (points - centre) * (2 / image_size)


def unit_to_image(points: Tensor, image_size: int) -> Tensor:
    """Inverse of :func:`image_to_unit`."""
    centre = points.new_zeros(points.shape[-1])
    centre[:2] = (image_size - 1) / 2
    return points * (image_size / 2) + centre


def masked_term(values: Tensor, mask: Tensor, weight: float | Tensor = 1.0) -> Term:
    """A term of errors ``[B, ...]`` where ``mask``, of the same shape, is true."""
    marked = mask.to(values.dtype)
    return Term((values * marked).flatten(1).sum(dim=1), marked.flatten(1).sum(dim=1), weight)
