"""What others' libraries warn of or raise, as sentences that name the option and the fix."""

from __future__ import annotations

import logging
import re
import warnings

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_faces.errors import LightningFacesError
from lightning_faces.methods.checkpoint import unfit


def quiet() -> None:
    """Hide the warnings that the user can do nothing about."""
    # Advertisements among Lightning's information.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "Tip:" not in str(record.msg))
    for message in (
        # The run folder is ours: a resumed or tested run has checkpoints in it.
        r"Checkpoint directory .* exists and is not empty",
        # How many loader processes pay off depends on the data; synthetic and cached faces need few.
        r"The '\w+' does not have many workers",
        # Small data sets have fewer batches than log_every_n_steps; the epoch's values are logged all the same.
        r"The number of training batches .* is smaller than the logging interval",
        # Our samplers put the position within the epoch into the checkpoint.
        r"You're resuming from a checkpoint that ended before the epoch ended",
        # A DataLoader pins memory only where a GPU is visible; data modules ask for it on every machine.
        r"'pin_memory' argument is set as true but no accelerator is found",
        # An average of weights is needed in training only: the checkpoint holds its result.
        r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",
        # Lightning's own calls, not ours.
        r".*LeafSpec.*is deprecated",
        r".*`isinstance\(treespec, LeafSpec\)`",
    ):
        warnings.filterwarnings("ignore", message=message)


TRANSLATED = (
    (
        r"No supported gpu backend found|CUDAAccelerator can not run|machine only has: \[\]",
        "trainer.accelerator asks for a GPU, but none was found: use --trainer.accelerator cpu, or auto.",
    ),
    (
        r"You requested gpu: (\[[\d, ]+\])\s+But your machine only has: (\[[\d, ]+\])",
        r"trainer.devices asks for the GPUs \1, but there are \2: lower trainer.devices.",
    ),
    (
        r"DataLoader worker \(pid.*\) is killed by signal: (Bus error|Killed)",
        "A loader process ran out of memory (\1): lower data.num_workers or data.batch_size.",
    ),
    (
        r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal)",
        r"A loader process ended by itself: lower data.num_workers, or set it to 0 to see the error.",
    ),
    (
        r"doesn't match the size of optimizer's group|a different number of parameter groups",
        "The checkpoint's optimizer has other parameters than the configured model: use the model of that training.",
    ),
)
"""Others' messages to sentences."""


def sentence(error: BaseException, checkpoint: str | None = None) -> str | None:
    """One sentence on an error that an option causes; None for an error of the program itself.

    Args:
        error: What was raised.
        checkpoint: The checkpoint that was read, for messages.
    """
    # jsonargparse wraps what a constructor raises.
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        for pattern, says in TRANSLATED:
            if found := re.search(pattern, text):
                return found.expand(says)
        if isinstance(cause, (LightningFacesError, MisconfigurationException)):
            return text
        if isinstance(cause, torch.OutOfMemoryError):
            return "The GPU's memory does not suffice: lower data.batch_size, or the size of the model or of its input."
        if isinstance(cause, RuntimeError) and "Error(s) in loading state_dict" in str(cause):
            return unfit(checkpoint, cause)
        cause = cause.__cause__
    return None
