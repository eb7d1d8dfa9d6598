"""What others' libraries warn of or raise, as sentences that name the option and the fix."""

from __future__ import annotations

import logging
import warnings

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


def sentence(error: BaseException, checkpoint: str | None = None) -> str | None:
    """One sentence on an error that an option causes; None for an error of the program itself.

    Args:
        error: What was raised.
        checkpoint: The checkpoint that was read, for messages.
    """
    # jsonargparse wraps what a constructor raises.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (LightningFacesError, MisconfigurationException)):
            return " ".join(str(cause).split())
        if isinstance(cause, RuntimeError) and "Error(s) in loading state_dict" in str(cause):
            return unfit(checkpoint, cause)
        cause = cause.__cause__
    return None
