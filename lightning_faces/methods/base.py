"""The one base class of all methods."""

from __future__ import annotations

import copy
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError
from lightning_faces.evaluation.scorer import Scorer, shared_model
from lightning_faces.evaluation.scores import Stage, logged_scores
from lightning_faces.geometry.frames import image_to_unit, unit_to_image
from lightning_faces.heads.terms import Term, TermMean, full_precision, masked_term, term_means, weighted_sum
from lightning_faces.methods import continuing
from lightning_faces.methods.arguments import STARTING, plain_arguments, signature

__all__ = [
    "FaceMethod",
    "Term",
    "TermMean",
    "full_precision",
    "image_to_unit",
    "masked_term",
    "term_means",
    "unit_to_image",
    "weighted_sum",
]


class FaceMethod(LightningModule, ABC):
    """A method: a network, its losses, and how its output becomes a ``FacePrediction``.

    A subclass implements ``terms`` and ``predict_faces`` and says what data it needs in ``requires`` and ``spec``. A
    method with several predictions (passes, stages, heads) names them in ``prediction_names`` and gives them all in
    ``predict_named``.

    A method that is fitted without gradients has the optimizer None, and implements ``fit_batch`` and ``end_pass`` in
    the place of ``terms``. An epoch is a pass over the training data. A pass is taken whole: what a method collects in
    it is no part of a checkpoint, so a training that was interrupted within a pass begins that pass again, on any
    number of processes; what ``end_pass`` makes of it must be buffers or parameters.

    Logged are ``train/loss`` and its terms, ``val/loss``, and the metrics as ``val/...`` and ``test/...``; those of a
    named prediction that is not the default as ``val/<name>/...``. The constructor's arguments are saved with a
    checkpoint.

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
    renamed: Mapping[str, str] = {}
    """Beginnings of parameters' names in earlier checkpoints, and what they are called now."""

    def __init__(
        self,
        optimizer: OptimizerCallable | None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__()
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.automatic_optimization = optimizer is not None
        # Those of the subclass, which need not do it itself: test and predict make the method anew from a checkpoint.
        self.save_hyperparameters(ignore=[*self._not_saved()])
        self.val_loss = TermMean()
        self._scorers: dict[str, Scorer] = {}
        self._pass_start: dict[str, Any] | None = None
        self._continued: dict[str, Any] = {}
        self._found_lr: float | None = None

    @classmethod
    def _not_saved(cls) -> set[str]:
        """Arguments of base classes' constructors that this class's own does not take, factories, and files."""
        bases = [set(signature(base)) for base in cls.__mro__ if issubclass(base, FaceMethod)]
        return (set().union(*bases) - bases[0]) | {"optimizer", "lr_scheduler", *STARTING}

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

    # What a method says about itself ---------------------------------------------------------------------------------

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

    def network_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """What the network alone, outside this program, says of faces; see :mod:`lightning_faces.predict.export`.

        It is all of :meth:`predict_faces`. A method whose faces take more than a network (a fit, a renderer) gives that
        part of them which does not, or refuses.

        Args:
            image: ``[B, 3, S, S]`` in [0, 1].

        Returns:
            Tensors under the names of the attributes of ``FacePrediction`` and of its dense images, image frame;
            ``camera`` is its matrix ``[B, 3, 4]``.

        Raises:
            ConfigurationError: If there is no such part.
        """
        faces = in_full_precision(self.predict_faces({"image": image}))  # type: ignore[typeddict-item]
        camera = None if faces.camera is None else faces.camera.matrix
        found = {
            "landmarks": faces.landmarks,
            "vertices": faces.vertices,
            "coefficients": faces.coefficients,
            "camera": camera,
            "visible": faces.visible,
            "uncertainty": faces.uncertainty,
            "dense_mask": faces.dense_mask,
            **faces.dense,
        }
        return {name: value for name, value in found.items() if value is not None}

    def start_pass(self) -> None:
        """Begin a pass over the training data: forget what an interrupted one collected."""

    def fit_batch(self, batch: FaceBatch) -> None:
        """Take in a batch of a pass, without gradients. Ranks take it at different times: nothing collective here."""
        raise TypeError(f"{type(self).__name__} has no optimizer, and so it must implement fit_batch(batch).")

    def end_pass(self) -> None:
        """Finish a pass over the training data, on all ranks at once, before it is validated and saved."""

    def num_parameters(self) -> int:
        """What the records count as the method's parameters: the trainable ones, unless it says otherwise."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def converged(self) -> bool | None:
        """Whether the training has converged; None where that is to be judged by the validations."""
        return None

    # Steps -----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check the names of the predictions; keep DDP's wrapper away from a method without gradients.

        Raises:
            ConfigurationError: If a prediction's name cannot be part of a file's name.
        """
        for name in self.prediction_names:
            if not re.fullmatch(r"[a-z0-9_]+", name) and self.prediction_names != ("",):
                raise ConfigurationError(f"{type(self).__name__} has a prediction {name!r}: use letters, digits and _.")
        if self.make_optimizer is not None:
            return
        # ModelCheckpoint would have the state before an optimizer's step, and there is none.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        strategy = self.trainer.strategy
        if isinstance(strategy, DDPStrategy):
            # The wrapper refuses a module without gradients, and copies rank 0's buffers to all before each batch.
            strategy.configure_ddp = self._share_state  # type: ignore[method-assign]

    def _share_state(self) -> None:
        """All ranks start from what rank 0 has."""
        for value in self.state_dict().values():
            torch.distributed.broadcast(value, 0)

    def training_step(self, batch: FaceBatch, batch_idx: int) -> Tensor | None:
        """Loss of one batch, whose terms are logged; without gradients, a part of a pass."""
        if self.make_optimizer is None:
            self._pass_step(batch)
            return None
        terms = self.terms(batch)
        means = self._term_means(terms)
        total = weighted_sum(terms, means)
        size = len(batch["index"])
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size)
        self.log_dict({f"train/{name}": mean.detach() for name, mean in means.items()}, batch_size=size)
        return total

    def _pass_step(self, batch: FaceBatch) -> None:
        loop = self.trainer.fit_loop.epoch_loop
        if self._pass_start is None:
            self._pass_start = self._position()
            self.start_pass()
        with torch.no_grad():
            self.fit_batch(batch)
            # Not in on_train_epoch_end, which comes after the validation.
            if self.trainer.is_last_batch:
                self.end_pass()
                self._pass_start = None
        # What counts as a step for checkpoints, loggers and max_steps.
        progress = loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def _position(self) -> dict[str, Any]:
        """What a checkpoint says about where the training is."""
        trainer = self.trainer
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loops = {"fit_loop": copy.deepcopy(trainer.fit_loop.state_dict())}
        position = {"loops": loops, "epoch": trainer.current_epoch, "global_step": trainer.global_step}
        return position if data is None else {**position, type(data).__qualname__: data.state_dict()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the method and its plain arguments; within a pass, say that the training is at its beginning."""
        checkpoint["hyper_parameters"] = plain_arguments(type(self), self.hparams)
        if self._pass_start is not None:
            loops = {**checkpoint["loops"], **self._pass_start["loops"]}
            checkpoint.update({**self._pass_start, "loops": loops})
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

    def validation_step(self, batch: FaceBatch, batch_idx: int) -> dict[str, Any]:
        """Score one batch; its predictions go to callbacks as ``prediction`` (the default) and ``predictions``."""
        if self.make_optimizer is not None:
            self.val_loss.update(self.terms(batch))
            self.log("val/loss", self.val_loss, batch_size=len(batch["index"]))
        return self._evaluate(batch, "val")

    def test_step(self, batch: FaceBatch, batch_idx: int) -> dict[str, Any]:
        """Score one batch; its predictions go to callbacks as ``prediction`` (the default) and ``predictions``."""
        return self._evaluate(batch, "test")

    def predict_step(self, batch: FaceBatch, batch_idx: int) -> FacePrediction:
        """The faces of a batch in the pixels of their files."""
        return in_full_precision(self.predict_faces(batch)).to_file(full_precision(batch["crop_to_file"]))

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores of the test."""
        self._log_scores("test")

    def _evaluate(self, batch: FaceBatch, stage: Stage) -> dict[str, Any]:
        predictions = {name: in_full_precision(faces) for name, faces in self.predict_named(batch).items()}
        if tuple(predictions) != tuple(self.prediction_names):
            raise TypeError(
                f"{type(self).__name__}.predict_named gives {list(predictions)}, but prediction_names are "
                f"{list(self.prediction_names)}."
            )
        self._scorers = self._scorers or self._new_scorers(stage)
        for name, prediction in predictions.items():
            self._scorers[name].update(prediction, batch)
        return {"prediction": predictions[self.prediction_names[-1]], "predictions": predictions}

    def _new_scorers(self, stage: Stage) -> dict[str, Scorer]:
        shared = shared_model(self, getattr(self._trainer, "datamodule", None))
        return {name: Scorer(logged_scores(stage), shared) for name in self.prediction_names}

    def _log_scores(self, stage: Stage) -> None:
        """Log the means over all ranks; of a prediction that is not the default, below its name."""
        # A rank without a single batch takes part too.
        for name, scorer in (self._scorers or self._new_scorers(stage)).items():
            scored = scorer.gather()
            default = name == self.prediction_names[-1]
            prefix = f"{stage}/" if default else f"{stage}/{name}/"
            means = scored.means(logged_scores(stage), aggregates=stage == "test")
            values = {
                f"{prefix}{metric}": torch.tensor(value, dtype=torch.float64, device=self.device)
                for metric, value in means.items()
            }
            # The ranks have the same values; any reduction keeps them, and a maximum to the last bit.
            self.log_dict(values, prog_bar=default, sync_dist=True, reduce_fx="max", batch_size=1)
        self._scorers = {}

    def _term_means(self, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        if self._trainer is None or self._trainer.world_size == 1:
            return term_means(terms)
        reduce = partial(self._trainer.strategy.reduce, reduce_op="sum")
        return term_means(terms, self._trainer.world_size, reduce)

    @property
    def lr(self) -> float:
        """The optimizer's learning rate, under the name by which Lightning's learning-rate finder reads and sets it."""
        if self.make_optimizer is None:
            raise AttributeError(f"{type(self).__name__} is fitted without gradients: it has no learning rate.")
        return float(self.make_optimizer([p for p in self.parameters() if p.requires_grad]).param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        self._found_lr = float(value)
        if self._trainer is not None:
            # The schedule begins at the new rate too.
            for config in self._trainer.lr_scheduler_configs:
                if hasattr(config.scheduler, "base_lrs"):
                    config.scheduler.base_lrs = [self._found_lr] * len(config.scheduler.base_lrs)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule over the parameters that require a gradient.

        Raises:
            ConfigurationError: If the optimizer's ``eps`` vanishes in the precision of the weights.
        """
        if self.make_optimizer is None:
            return []
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if self._found_lr is not None:
            for group in optimizer.param_groups:
                group["lr"] = self._found_lr
        for group in optimizer.param_groups:
            # Squares of gradients below 2e-4 are 0 there, so a small eps divides by nothing.
            if any(p.dtype == torch.float16 for p in group["params"]) and group.get("eps", 1) < 1e-4:
                raise ConfigurationError(
                    f"Optimizer option eps is {group['eps']}, which is too small for weights in float16: use the "
                    "trainer's precision bf16-mixed or 16-mixed, or an eps of at least 1e-4."
                )
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        config: LRSchedulerConfigType = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = self.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for before, now in self.renamed.items():
            for key in [key for key in state_dict if key.startswith(prefix + before)]:
                state_dict[prefix + now + key[len(prefix + before) :]] = state_dict.pop(key)
        for name in self.grown:
            saved = state_dict.get(prefix + name)
            # A tensor that claims to be larger than its file keeps its shape, and is refused.
            if saved is not None and saved.numel() * saved.element_size() <= saved.untyped_storage().nbytes():
                module, _, buffer = name.rpartition(".")
                owner = self.get_submodule(module)
                setattr(owner, buffer, getattr(owner, buffer).new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def in_full_precision(faces: FacePrediction) -> FacePrediction:
    """The same faces with nothing in half precision, in which a coordinate of 100 pixels is off by a quarter pixel."""

    def full(value: Tensor | None) -> Tensor | None:
        return full_precision(value) if value is not None and value.is_floating_point() else value

    camera = faces.camera
    if camera is not None:
        camera = replace(camera, matrix=full_precision(camera.matrix), pose=full_precision(camera.pose))
    return replace(
        faces,
        landmarks=full_precision(faces.landmarks),
        vertices=full(faces.vertices),
        coefficients=full(faces.coefficients),
        camera=camera,
        dense={name: full_precision(image) for name, image in faces.dense.items()},
        visible=full(faces.visible),
        uncertainty=full(faces.uncertainty),
    )
