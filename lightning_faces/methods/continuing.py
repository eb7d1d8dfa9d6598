"""Continuing a training with a command that differs from the one that began it: what is used, and what is said.

A checkpoint holds the optimizer's and the schedule's options, the batch size, the number of processes and the versions
that it was trained with. What the command says now counts: options of the optimizer are set, and a changed schedule is
taken to the step that the training has reached. Another batch size, or number of processes, goes on at the same sample
of the epoch. Each difference is printed in one line.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning import Trainer
from lightning import __version__ as lightning_version
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_faces import __version__
from lightning_faces.errors import ConfigurationError
from lightning_faces.methods.arguments import is_plain, plain_arguments

if TYPE_CHECKING:
    from lightning_faces.methods.base import FaceMethod

KEY = "training"
"""Where a checkpoint holds it."""
PROGRESS = frozenset({"last_epoch", "base_lrs", "best", "num_bad_epochs", "cooldown_counter", "total_steps_taken"})
"""Attributes of schedules that change as they go on."""
REPORTED = {
    "batch_size": "data.batch_size", "processes": "processes", "precision": "trainer.precision",
    "accumulate_grad_batches": "trainer.accumulate_grad_batches", "gradient_clip_val": "trainer.gradient_clip_val",
    "data": "data", "train_samples": "training samples", "data_seed": "data.seed",
    "lightning_faces": "lightning_faces", "torch": "torch", "lightning": "lightning",
}  # fmt: skip
"""What is compared, and how it is called."""
POSITION = ("data", "train_samples", "data_seed")
"""What the order of an epoch depends on."""


def describe(method: FaceMethod, trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint says about the training that made it."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    dataset = getattr(data, "datasets", {}).get("train")
    described: dict[str, Any] = {
        "batch_size": getattr(data, "batch_size", None),
        "processes": trainer.world_size,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "precision": str(trainer.precision),
        "gradient_clip_val": trainer.gradient_clip_val,
        "data": getattr(data, "name", None),
        "train_samples": None if dataset is None else len(dataset),
        "data_seed": getattr(data, "seed", None),
        "margin": getattr(data, "margin", None),
        "box": getattr(data, "box", None),
        "lightning_faces": __version__,
        "torch": str(torch.__version__),
        "lightning": lightning_version,
    }
    made = make_optimizer(method)
    if made is not None:
        optimizer, schedule = made
        described["optimizer"] = path_of(optimizer)
        described["optimizer_options"] = options_of(optimizer)
        described["schedule"] = None if schedule is None else path_of(schedule)
        described["schedule_options"] = {} if schedule is None else schedule_options(schedule)
    return {key: value for key, value in described.items() if is_plain(value)}


def make_optimizer(method: FaceMethod) -> tuple[Optimizer, Any] | None:
    """A fresh optimizer and schedule, as the command asks for them; None for a method that makes them its own way."""
    from lightning_faces.methods.base import FaceMethod

    own = type(method).configure_optimizers is not FaceMethod.configure_optimizers
    made: Any = None if own else method.configure_optimizers()
    if not made:
        return None
    if isinstance(made, Optimizer):
        return made, None
    return made["optimizer"], made["lr_scheduler"]["scheduler"]


def path_of(value: Any) -> str:
    """Name of a class, without the module that defines it, which moves between releases."""
    return type(value).__name__


def options_of(optimizer: Optimizer) -> dict[str, Any]:
    """The options that an optimizer was made with, as far as they are plain numbers."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in optimizer.defaults.items()
        if is_plain(value) and value is not None
    }


def schedule_options(schedule: Any) -> dict[str, Any]:
    """The options that a schedule was made with, as far as they are plain numbers."""
    found = {key: value for key, value in vars(schedule).items() if not key.startswith("_") and key not in PROGRESS}
    found = {key: dict(value) if hasattr(value, "items") else value for key, value in found.items()}
    return {str(key): value for key, value in found.items() if is_plain(value)}


def say(line: str, trainer: Trainer) -> None:
    """Print a line, once for all processes."""
    if trainer.is_global_zero:
        print(f"lightning-faces: {line}", file=sys.stderr)


def before_restoring(method: FaceMethod, trainer: Trainer, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Compare a checkpoint with the command, say what differs, and find the position in the interrupted epoch.

    Args:
        method: With the arguments that it is given now.
        trainer: Set up, before the states of loops, data and optimizer are restored.
        checkpoint: The position in it is changed where batches are of another size now.

    Returns:
        What the checkpoint says about its training; empty for one of an earlier version.

    Raises:
        ConfigurationError: If the optimizer is another one, or the checkpoint has no position in the training.
    """
    loops = checkpoint.get("loops")
    loop = loops.get("fit_loop") if isinstance(loops, dict) else None
    if not isinstance(loop, dict) or not {"epoch_progress", "epoch_loop.batch_progress"} <= set(loop):
        raise ConfigurationError("The checkpoint does not fit this training: it does not say how far it was trained.")
    saved = checkpoint.get(KEY)
    saved = saved if isinstance(saved, dict) and is_plain(saved) else {}
    for key in ("optimizer_options", "schedule_options"):
        if not isinstance(saved.get(key, {}), dict):
            saved = {}
    now = describe(method, trainer)
    if saved.get("optimizer", now.get("optimizer")) != now.get("optimizer"):
        raise ConfigurationError(
            f"The checkpoint was trained with {saved['optimizer']}, whose state {now.get('optimizer')} can't go on "
            f"with: set model.optimizer to {saved['optimizer']}, or start a new run."
        )
    differences = [
        f"{name} {now.get(key)} instead of {saved[key]}"
        for key, name in REPORTED.items()
        if key in saved and saved[key] != now.get(key)
    ]
    arguments = checkpoint.get("hyper_parameters")
    before = arguments if isinstance(arguments, dict) else {}
    for key, value in plain_arguments(type(method), method.hparams).items():
        if not key.startswith("_") and key in before and _listed(before[key]) != _listed(value):
            differences.append(f"model.{key} {value} instead of {before[key]}")
    if differences:
        say(f"continuing with {', '.join(differences)}.", trainer)
    if saved:
        _find_position(method, trainer, checkpoint, saved, now)
    return saved


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _find_position(
    method: FaceMethod, trainer: Trainer, checkpoint: dict[str, Any], saved: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Go on at the same sample of the epoch with batches of another size."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    state = checkpoint.get(type(data).__qualname__)
    if not isinstance(state, dict) or not state.get("batches"):
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
    resized = any(saved.get(key) != now.get(key) for key in ("batch_size", "processes"))
    if any(key in saved and saved[key] != now.get(key) for key in POSITION) or (method.every_sample_once and resized):
        say(
            f"the samples have another order or number now, so epoch {int(state['epoch']) + 1} begins anew.",
            trainer,
        )
        position, seen = 0, 0
    elif "samples" in state and resized:
        processes, size = int(now["processes"]), int(now["batch_size"])
        each, seen = int(now["train_samples"]) // processes, int(state["samples"])
        if seen % processes:
            say(f"{seen % processes} samples of the interrupted epoch are seen twice.", trainer)
        position = each // size - (each - seen // processes) // size
    else:
        return
    moved = position - int(progress["processed"])
    for key in progress:
        # "completed" may come to -1: Lightning counts up the batch that was being completed.
        progress[key] = int(progress[key]) + moved
    state.update(batches=position, samples=seen)


def after_restoring(method: FaceMethod, trainer: Trainer, saved: Mapping[str, Any]) -> None:
    """Give the restored optimizer and schedule the options of the command, and say which differ.

    Args:
        method: With the arguments that it is given now.
        trainer: Before the first step.
        saved: From :func:`before_restoring`.
    """
    made = make_optimizer(method)
    if made is None or "optimizer_options" not in saved:
        return
    fresh, schedule = made
    asked, before = options_of(fresh), saved["optimizer_options"]
    changed = {key: value for key, value in asked.items() if key in before and before[key] != value}
    differences = [f"{key} {value} instead of {before[key]}" for key, value in changed.items()]
    name, options = (None, {}) if schedule is None else (path_of(schedule), schedule_options(schedule))
    if name != saved.get("schedule"):
        differences.append(f"the schedule {name or 'none'} instead of {saved.get('schedule') or 'none'}")
    else:
        old = saved.get("schedule_options", {})
        differences += [
            f"{key} {value} instead of {old.get(key)}" for key, value in options.items() if old.get(key) != value
        ]
    if not differences:
        return
    (optimizer,) = trainer.optimizers
    for group, wanted in zip(optimizer.param_groups, fresh.param_groups):
        group.update({key: wanted[key] for key in changed if key != "lr"})
    _set_rate(trainer, optimizer, fresh, schedule, float(before.get("lr", 0.0)))
    say(
        f"continuing with {', '.join(differences)}; the learning rate is now {optimizer.param_groups[0]['lr']:.6g}.",
        trainer,
    )


def _set_rate(trainer: Trainer, optimizer: Optimizer, fresh: Optimizer, schedule: Any, before: float) -> None:
    """The rate that the command's schedule has at the step that the training has reached."""
    configs = trainer.lr_scheduler_configs
    if schedule is None:
        for group, wanted in zip(optimizer.param_groups, fresh.param_groups):
            group["lr"] = wanted["lr"]
        return
    (config,) = configs
    if isinstance(schedule, ReduceLROnPlateau):
        # What it has learnt of the metric stays; the rate keeps its distance to the first one.
        for key, value in schedule_options(schedule).items():
            setattr(config.scheduler, key, value)
        for group, wanted in zip(optimizer.param_groups, fresh.param_groups):
            group["lr"] = wanted["lr"] * group["lr"] / before if before > 0 else wanted["lr"]
        return
    steps = trainer.global_step if config.interval == "step" else trainer.fit_loop.epoch_progress.current.completed
    try:
        with warnings.catch_warnings():
            # That the optimizer should go first: it has, in the training that is continued.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)`")
            for _ in range(steps):
                schedule.step()
    except ValueError as error:
        raise ConfigurationError(
            f"The schedule {path_of(schedule)} ends before step {steps}, which the training has reached ({error}): "
            "make model.lr_scheduler longer."
        ) from error
    config.scheduler.load_state_dict(schedule.state_dict())
    for group, wanted in zip(optimizer.param_groups, fresh.param_groups):
        group.update({key: value for key, value in wanted.items() if key != "params"})
