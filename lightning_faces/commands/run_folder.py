"""The folder of a run: its name, its one owner, and what is taken back when a command can't begin."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from lightning_faces.errors import ConfigurationError
from lightning_faces.files.owner import OWNER_FILE, Owner
from lightning_faces.files.yaml_files import read_yaml

RUN_FOLDER_VARIABLE = "LIGHTNING_FACES_RUN_FOLDER"
"""Carries the run folder to the processes that DDP starts, which run the same command again."""
MOST_RUNS = 1000
"""Runs that may start within one second."""


class RunFolder:
    """A run folder, ``<runs_dir>/<experiment>/<name>``.

    Args:
        path: Where.
        shared: Whether several processes write into it as one (an inherited folder, or a name that a job gives), so
            that a process that is not the first one claims nothing.
        fresh: Whether the name is only the time, so that another one is taken where two runs start at once.
    """

    def __init__(self, path: Path, shared: bool = False, fresh: bool = False) -> None:
        self.path, self.shared, self.fresh = path.absolute(), shared, fresh
        self.made: list[Path] = []
        self._before: set[Path] = set()
        self._owner: Owner | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def trained(self) -> bool:
        """Whether a training has left a checkpoint."""
        return self.checkpoints.is_dir() and any(self.checkpoints.iterdir())

    def claim(self, command: str) -> None:
        """Make the folder this process's own, until :meth:`release` or the end of the process.

        Args:
            command: What it is for, for the message that another process gets.

        Raises:
            ConfigurationError: If another process holds it.
        """
        if self.shared:
            return
        missing = [folder for folder in self.path.parents if not folder.exists()]
        there = self.path.exists() and not self.fresh
        self._make()
        self.made = [*([] if there else [self.path]), *missing]
        self._before = set(self.path.rglob("*"))
        self._owner = Owner(self.path, command)

    def _make(self) -> None:
        if not self.fresh:
            self.path.mkdir(parents=True, exist_ok=True)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        first = self.path
        for number in range(2, MOST_RUNS):
            with suppress(FileExistsError):
                self.path.mkdir()
                return
            self.path = first.with_name(f"{first.name}-{number}")

    def release(self) -> None:
        """Let others have the folder."""
        if self._owner is not None:
            self._owner.release()
            self._owner = None

    def take_back(self) -> None:
        """Remove what this command has added, as it could not do what it was to do."""
        if self._owner is None:
            return
        new = set(self.path.rglob("*")) - self._before - {self.path / OWNER_FILE}
        for path in sorted(new, reverse=True):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self.release()
        for folder in self.made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def wandb_id(self) -> str:
        """The id under which W&B knows the run: the same each time, and another one elsewhere."""
        for name in ("environment.yaml", "config.yaml"):
            path = self.path / name
            saved = read_yaml(path) if path.exists() else {}
            loggers = (saved.get("trainer") or {}).get("logger") if isinstance(saved.get("trainer"), dict) else None
            ids = [saved.get("wandb_id")]
            # Where older versions kept it.
            for logger in loggers if isinstance(loggers, list) else []:
                arguments = logger.get("init_args") if isinstance(logger, dict) else None
                ids.append(arguments.get("id") if isinstance(arguments, dict) else None)
            for found in ids:
                if isinstance(found, str) and re.fullmatch(r"[\w.-]{1,128}", found):
                    return found
        return f"{re.sub(r'[^a-z0-9]+', '-', self.path.name.lower())}-{os.urandom(4).hex()}"


def shown(path: Path) -> str:
    """A path as a reader of messages wants it: relative to the current folder where it lies below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def default_name() -> tuple[str, bool]:
    """Name of a run that was given none, and whether it is only the time.

    Where several processes must agree on it, it is that of their job.
    """
    if "WANDB_RUN_ID" in os.environ:
        return os.environ["WANDB_RUN_ID"], False
    if "SLURM_JOB_ID" in os.environ and "SLURM_PROCID" in os.environ:
        return f"slurm-{os.environ['SLURM_JOB_ID']}", False
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if job == "none":
            raise ConfigurationError("Several processes need one run folder: add --name, or torchrun --rdzv-id.")
        return f"job-{job}", False
    return time.strftime("%Y%m%d-%H%M%S"), True
