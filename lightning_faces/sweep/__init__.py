"""``lightning-faces sweep``: a W&B sweep file on this machine, without an account.

The file is the one that ``wandb sweep`` takes, and W&B's own engine (the package ``sweeps``) suggests the trials.
"""

from lightning_faces.sweep.definition import command_line, read_sweep
from lightning_faces.sweep.run import Sweep

__all__ = ["Sweep", "command_line", "read_sweep"]
