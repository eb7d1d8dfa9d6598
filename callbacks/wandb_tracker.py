"""Weights & Biases that never stops or slows a training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

Mode = Literal["online", "offline", "disabled"]


def chosen_mode(mode: Mode | None) -> Mode:
    """The mode of a run: what the configuration says, else ``WANDB_MODE``, else online under a W&B sweep agent.

    Otherwise it is offline: without an account, W&B's own default stops the training.
    """
    if mode is not None:
        return mode
    wanted = os.environ.get("WANDB_MODE", "online" if os.environ.get("WANDB_SWEEP_ID") else "offline")
    return wanted if wanted in ("online", "disabled") else "offline"  # type: ignore[return-value]


class WandbTracker(WandbLogger):
    """Lightning's W&B logger, offline unless told otherwise.

    Args:
        save_dir: Folder that gets the ``wandb`` folder: the run folder.
        mode: "online", "offline" or "disabled"; None follows ``WANDB_MODE``, and is offline where that is not set.
        project: W&B project; the command line sets it to the experiment's name.
        entity: W&B user or team.
        name: Name of the run; the command line sets it to that of the run folder.
        id: W&B's id of the run; the same id continues a run.
        group: Group of runs.
        tags: Tags of the run.
    """

    def __init__(
        self,
        save_dir: str | os.PathLike[str] = ".",
        mode: Mode | None = None,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        id: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        self.mode: Mode = chosen_mode(mode)
        if os.environ.get("WANDB_SWEEP_ID"):
            # The agent has told wandb already which run of which project this is.
            project = os.environ.get("WANDB_PROJECT")
            id = None
        super().__init__(
            name=name,
            save_dir=os.fspath(save_dir),
            project=project,
            id=id,
            offline=self.mode == "offline",
            entity=entity,
            group=group,
            tags=tags,
        )
        # wandb no longer knows it, and warns.
        self._wandb_init.pop("anonymous", None)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first use."""
        if self._experiment is None:
            import wandb

            # wandb falls back to the temporary folder, with a warning, where the folder does not exist.
            Path(self._save_dir or ".").mkdir(parents=True, exist_ok=True)
            # console: a live progress bar recorded line by line is of no use. silent: the run folder is printed anyway.
            settings = wandb.Settings(console="off", silent=self.mode != "online")
            run = wandb.init(**self._wandb_init, mode=self.mode, settings=settings)
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            self._experiment = run
        return self._experiment
