"""What can be known before the first step, so that a training does not begin that cannot go on."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from lightning_faces.errors import ConfigurationError, LightningFacesError
from lightning_faces.files.yaml_files import read_yaml
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.continuing import make_optimizer

OPTION_ERRORS = (
    ValueError, TypeError, RuntimeError, AttributeError, LookupError, ArithmeticError, AssertionError, OSError,
    ImportError,
)  # fmt: skip
"""What a constructor raises where its arguments do not fit each other."""
UNCHANGED = (
    "model.", "ckpt_path", "config", "runs_dir", "experiment", "name", "trainer.max_", "trainer.min_",
    "trainer.enable_", "trainer.default_root_dir", "trainer.devices", "trainer.num_nodes", "trainer.precision",
    "trainer.gradient_clip_val", "trainer.accumulate_grad_batches", "data.batch_size", "data.seed", "weights_only",
    "trainer.logger",
)  # fmt: skip
"""Options that the method itself compares, or that are there to be changed."""
MOST_DIFFERENCES = 8


def without_gpu(trainer: Namespace) -> bool:
    """Whether a trainer's options put it on the CPU."""
    return trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())


def adapt_to_cpu(trainer: Namespace) -> None:
    """Leave out what only GPUs have, saying so, and refuse what can't be left out.

    Args:
        trainer: The options of the trainer, changed in place.

    Raises:
        ConfigurationError: If float16 weights are to be trained on the CPU.
    """
    if not without_gpu(trainer):
        return
    if trainer.get("sync_batchnorm"):
        trainer.sync_batchnorm = False
        print(
            "lightning-faces: trainer.sync_batchnorm needs GPUs: each process normalises by its own batch.",
            file=sys.stderr,
        )
    if str(trainer.get("precision")) in ("16-true", "transformer-engine-float16"):
        raise ConfigurationError(
            f"trainer.precision is {trainer.precision}, but the CPU lacks operations in float16: use 32-true."
        )


def check_training(method: FaceMethod) -> None:
    """Make the optimizer and its schedule once, as their options are only read then.

    Raises:
        ConfigurationError: If they do not take their options.
    """
    try:
        make_optimizer(method)
    except LightningFacesError:
        raise
    except OPTION_ERRORS as error:
        raise ConfigurationError(
            f"model.optimizer or model.lr_scheduler can't be made of its options: {' '.join(str(error).split())[:300]}."
        ) from error


def unmade(error: BaseException) -> str:
    """One sentence on classes whose constructors do not take their options."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    reason = " ".join(str(error).split())[:400] or "no reason given"
    return f"What the configuration names can't be made: {type(error).__name__}: {reason}{where}."


def differences(run_folder: Path, config: Mapping[str, Any]) -> list[str]:
    """How a configuration differs from the one that the run of a folder was last trained with.

    Args:
        run_folder: Of the checkpoint that is continued.
        config: The configuration of the command.

    Returns:
        ``option VALUE instead of VALUE``, without those that the method compares itself.
    """
    saved = [path for name in ("config.yaml", "config-resume.yaml") if (path := run_folder / name).is_file()]
    if not saved:
        return []
    before, now = _flat(read_yaml(max(saved, key=lambda path: path.stat().st_mtime_ns))), _flat(config)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    found = [
        f"{key} {_short(now.get(key))} instead of {_short(before.get(key))}"
        for key in changed
        if not key.startswith(UNCHANGED)
    ]
    more = len(found) - MOST_DIFFERENCES
    return found if more <= 0 else [*found[:MOST_DIFFERENCES], f"{more} more options that differ"]


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted options; an entry of a list of classes goes by the name of its class."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for name, item in value.items():
            inner = key if name == "init_args" else f"{key}.{name}".lstrip(".")
            found.update(_flat(item, inner))
        return found
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "class_path" in item for item in value):
        found = {}
        for item in value:
            found.update(_flat(item, f"{key}.{str(item['class_path']).rsplit('.', 1)[-1]}"))
        return found
    return {key: value}


def _short(value: Any) -> str:
    return str(value)[:60] if value is not None else "none"


def restoring(trainer: Trainer | None) -> bool:
    """Whether a trainer was reading a checkpoint's states when it stopped."""
    return trainer is not None and bool(trainer._checkpoint_connector._loaded_checkpoint)
