"""What a run writes about itself: its configuration and what it ran on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from lightning_faces import __version__
from lightning_faces.commands.checks import differences
from lightning_faces.commands.run_folder import RunFolder
from lightning_faces.files import write_atomic

DECIDED = {"dirpath", "save_dir", "project", "name", "id"}
"""Arguments of callbacks and loggers that the run folder decides, unless the user did."""


class SaveRun(SaveConfigCallback):
    """Writes the resolved configuration, and what it ran on, into the run folder and to the loggers.

    What the run folder decides (folders of checkpoints, names and ids of loggers) is left out, so that a run that is
    repeated from the file has its own.

    Args:
        run_folder: Where.
        model: Configuration of a method that came from a checkpoint; None where the command configured it.
        checkpoint: The checkpoint that a training continues.
        **kwargs: As ``SaveConfigCallback`` has them.
    """

    def __init__(
        self,
        *args: Any,
        run_folder: RunFolder,
        model: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.run_folder, self.from_checkpoint, self.checkpoint = run_folder, model, checkpoint

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``; a later command in the same folder writes ``config-<command>.yaml`` beside it."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        if self.from_checkpoint is not None:
            config["model"] = self.from_checkpoint
        wandb_id = forget_folder(config, self.run_folder)
        if self.checkpoint is not None and (found := differences(Path(self.checkpoint).parent.parent, config)):
            print(f"lightning-faces: continuing with {', '.join(found)}.", file=sys.stderr)
        text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
        folder = self.run_folder.path
        path = folder / "config.yaml"
        if path.exists() and path.read_bytes() != text.encode():
            path = folder / f"config-{'resume' if stage == 'fit' else TrainerFn(stage).value}.yaml"
        write_atomic(path, text.encode())
        versions = environment()
        saved = {**versions, **({} if wandb_id is None else {"wandb_id": wandb_id})}
        write_atomic(folder / "environment.yaml", yaml.safe_dump(saved, sort_keys=False).encode())
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": config, "environment": versions})


def forget_folder(config: dict[str, Any], folder: RunFolder) -> str | None:
    """Take out of a configuration what its run folder decides; gives W&B's id of the run."""
    trainer = config.get("trainer") or {}
    ours = {
        str(folder.path), str(folder.checkpoints), folder.path.name, folder.path.parent.name,
    }  # fmt: skip
    wandb_id = None
    for key in ("callbacks", "logger"):
        entries = trainer.get(key)
        for entry in entries if isinstance(entries, list) else [entries]:
            arguments = entry.get("init_args") if isinstance(entry, dict) else None
            for name in DECIDED & set(arguments or {}):
                assert arguments is not None
                if name == "id" and arguments[name] is not None:
                    wandb_id = str(arguments[name])
                if name == "id" or arguments[name] in ours:
                    arguments[name] = "." if name == "save_dir" else None
    if trainer.get("default_root_dir") in ours:
        trainer["default_root_dir"] = None
    return wandb_id


def environment() -> dict[str, str]:
    """Versions of the code and of what it ran on."""
    versions = {"lightning_faces": __version__, "python": sys.version.split()[0], "torch": str(torch.__version__)}
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and (git := shutil.which("git")):
        described = subprocess.run(
            [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        versions["commit"] = described.stdout.strip() or "unknown"
    if torch.cuda.is_available():
        versions["device"] = torch.cuda.get_device_name()
        versions["cuda"] = str(torch.version.cuda)
    return versions
