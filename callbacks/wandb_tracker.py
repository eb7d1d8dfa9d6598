"""Weights & Biases that never stops or slows a training."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning_utilities.core.rank_zero import rank_zero_only

Mode = Literal["online", "offline", "disabled"]
PROBE_SECONDS = 5
START_SECONDS = 30.0
FINISH_SECONDS = 60.0


def chosen_mode(mode: Mode | None) -> Mode:
    """The mode of a run: what the configuration says, else ``WANDB_MODE``, else online under a W&B sweep agent.

    Otherwise it is offline: without an account, W&B's own default stops the training.
    """
    if mode is not None:
        return mode
    wanted = os.environ.get("WANDB_MODE", "online" if os.environ.get("WANDB_SWEEP_ID") else "offline")
    return wanted if wanted in ("online", "disabled") else "offline"  # type: ignore[return-value]


def why_unreachable() -> str | None:
    """Why W&B cannot be used now; None if its server answers and there is a key."""
    import wandb

    server = wandb.setup().settings.base_url
    if not wandb.api.api_key:
        return f"there is no API key for {server} (wandb login makes one)"
    try:
        with urllib.request.urlopen(server, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"{server} answers with status {error.code}" if error.code >= 500 else None
    except (OSError, ValueError) as error:  # URLError and a timeout are OSErrors; ValueError is a malformed URL
        return f"{server} cannot be reached ({getattr(error, 'reason', error)})"


class WandbTracker(WandbLogger):
    """Lightning's W&B logger, offline unless told otherwise, and never in the way.

    Where the server cannot be reached, is too slow or refuses, the run goes on offline and says so once. Uploads happen
    in W&B's own process; what is not uploaded a minute after the end stays in the run folder for ``wandb sync``. At the
    end the checkpoints become one artifact with the aliases ``best`` and ``last``, offline ones too.

    Args:
        save_dir: Folder that gets the ``wandb`` folder: the run folder.
        mode: "online", "offline" or "disabled"; None follows ``WANDB_MODE``, and is offline where that is not set.
        project: W&B project; the command line sets it to the experiment's name.
        entity: W&B user or team.
        name: Name of the run; the command line sets it to that of the run folder.
        id: W&B's id of the run; the same id continues a run.
        group: Group of runs.
        tags: Tags of the run.
        log_checkpoints: Whether the checkpoints become an artifact.
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
        log_checkpoints: bool = True,
    ) -> None:
        self.mode: Mode = chosen_mode(mode)
        self.log_checkpoints = log_checkpoints
        self._checkpoints: dict[str, Path] = {}
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

    def __getstate__(self) -> dict[str, Any]:
        """The state without the live run; whoever gets it attaches to the same one."""
        # As WandbLogger's, but for a call that current wandb answers by a warning on every copy of a model.
        run, state = self.experiment, self.__dict__.copy()
        state.update(_id=run.id, _attach_id=getattr(run, "_attach_id", None), _name=run.name, _experiment=None)
        return state

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first use."""
        if self._experiment is None:
            # wandb falls back to the temporary folder, with a warning, where the folder does not exist.
            Path(self._save_dir or ".").mkdir(parents=True, exist_ok=True)
            reason = why_unreachable() if self.mode == "online" else None
            run = None
            if reason is None:
                run, reason = self._start(self.mode)
            if run is None:
                print(
                    f"lightning-faces: W&B is not available: {reason}. The run goes on offline; "
                    f"wandb sync uploads it later from {self._save_dir}/wandb.",
                    file=sys.stderr,
                )
                self.mode = "offline"
                run, reason = self._start("offline")
            assert run is not None, reason
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            self._experiment = run
        return self._experiment

    def _start(self, mode: Mode) -> tuple[Any | None, str]:
        import wandb

        settings = wandb.Settings(
            # A live progress bar recorded line by line is of no use.
            console="off",
            # The command line prints the run folder; online, W&B prints the address.
            silent=mode != "online",
            init_timeout=START_SECONDS,
            finish_timeout=FINISH_SECONDS,
        )
        try:
            return wandb.init(**self._wandb_init, mode=mode, settings=settings), ""
        except (wandb.Error, OSError) as error:
            if mode != "online":
                raise
            wandb.teardown()
            return None, str(error).split("\n", 1)[0].rstrip(".")

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember the file; it is logged at the end, when it is final."""
        for path in (checkpoint_callback.best_model_path, checkpoint_callback.last_model_path):
            if path:
                self._checkpoints[Path(path).stem] = Path(path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Log the checkpoints that are new."""
        if self._experiment is None or not self.log_checkpoints or self.mode == "disabled":
            return
        import wandb

        for alias in ("best", "last"):
            path = self._checkpoints.pop(alias, None)
            if path is not None and path.is_file():
                artifact = wandb.Artifact(f"model-{self._experiment.id}", type="model", metadata={"status": status})
                # Immutable: uploaded from where it is, without a copy.
                artifact.add_file(str(path), name="model.ckpt", policy="immutable")
                self._experiment.log_artifact(artifact, aliases=[alias])
