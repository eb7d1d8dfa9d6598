"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with run folders and readable errors."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_only

import callbacks  # noqa: F401 - makes short class names known
import datamodules  # noqa: F401
import lightning_faces.methods  # noqa: F401
from callbacks.checkpoint_io import is_whole, newest_whole
from datamodules.base import FaceDataModule
from lightning_faces import __version__
from lightning_faces.errors import ConfigurationError, LightningFacesError
from lightning_faces.files import write_atomic
from lightning_faces.methods.base import FaceMethod
from lightning_faces.parser import FacesParser, how_to_choose

RUN_FOLDER_VARIABLE = "LIGHTNING_FACES_RUN_FOLDER"
"""Carries the run folder to the processes that DDP starts, which run the same command again."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "callbacks": [
        {"class_path": "lightning.pytorch.callbacks.RichProgressBar"},
        {"class_path": "callbacks.CheckMonitor"},
        {"class_path": "callbacks.SeedSteps"},
        {"class_path": "callbacks.BestCheckpoint"},
        {"class_path": "callbacks.LastCheckpoint"},
        {"class_path": "callbacks.TrainingStatistics"},
        {"class_path": "callbacks.ContactSheet"},
        {"class_path": "callbacks.DenseSheet"},
        {"class_path": "callbacks.EvaluationRecord"},
        # After all that count steps, and with the checkpoints, which Lightning calls last.
        {"class_path": "callbacks.GracefulStop"},
    ],
    "logger": [
        {"class_path": "callbacks.MetricsCSV", "init_args": {"save_dir": "."}},
        {"class_path": "callbacks.WandbTracker"},
    ],
    "plugins": [{"class_path": "callbacks.AtomicCheckpointIO"}],
    "log_every_n_steps": 10,
}
"""Defaults of ``trainer``, all of which a configuration can replace (``callbacks:``) or add to (``callbacks+:``)."""


class SaveRun(SaveConfigCallback):
    """Writes the resolved configuration, and what it ran on, into the run folder and to the loggers."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml``; a later command in the same folder writes ``config-<command>.yaml`` beside it."""
        text = self.parser.dump(self.config, skip_none=False)
        folder = Path(trainer.default_root_dir)
        path = folder / "config.yaml"
        if path.exists() and path.read_text() != text:
            path = folder / f"config-{'resume' if stage == 'fit' else TrainerFn(stage).value}.yaml"
        write_atomic(path, text.encode())
        config = yaml.safe_load(text)
        write_atomic(folder / "environment.yaml", yaml.safe_dump(environment(), sort_keys=False).encode())
        for logger in trainer.loggers:
            logger.log_hyperparams({"config": config, "environment": environment()})


def environment() -> dict[str, str]:
    """Versions of the code and of what it ran on."""
    versions = {"lightning_faces": __version__, "python": sys.version.split()[0], "torch": str(torch.__version__)}
    root = Path(__file__).resolve().parent.parent
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


class FacesCLI(LightningCLI):
    """LightningCLI that gives each training one folder, ``<runs_dir>/<experiment>/<name>``."""

    run_folder: Path
    made_folder = False
    checkpoint: str | None = None

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The stock options; ``trainer`` has our defaults, and the model may come from a checkpoint."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        parser.add_lightning_class_args(FaceMethod, "model", subclass_mode=True)
        parser.add_lightning_class_args(FaceDataModule, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options that say where the run folder is."""
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
        parser.add_argument(
            "--experiment", type=str | None, default=None, help="Folder of related runs (default: the method's name)."
        )
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the run (default: the time at its start)."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; that ``args`` and ``sys.argv`` differ is not worth a warning, as this is callable from Python."""
        self.config = parser.parse_args(args)

    @property
    def options(self) -> Namespace:
        """The configuration of the subcommand."""
        return self.config[self.config.subcommand]  # type: ignore[no-any-return]

    def _parse_ckpt_path(self) -> None:
        """Choose the run folder, find the checkpoint, and take the method from it where none was configured."""
        options, subcommand = self.options, self.config.subcommand
        self.run_folder = self._choose_run_folder()
        self.checkpoint = self._find_checkpoint(options.get("ckpt_path"))
        if self.checkpoint is not None:
            chosen = _class_name(options.get("model"))
            saved = str(_hyperparameters(self.checkpoint).get("_class_path", "")).rsplit(".", 1)[-1]
            if chosen and saved and chosen != saved:
                raise ConfigurationError(
                    f"{self.checkpoint} holds a {saved}, but the model is {chosen}: "
                    "use a checkpoint of that method, or leave the model out."
                )
            # A training is continued with the arguments that it is given now: longer, or with another batch size.
            if not (subcommand == "fit" and chosen):
                options.ckpt_path = self.checkpoint
                super()._parse_ckpt_path()
        missing = [key for key in ("model", "data") if not self.options.get(key)]
        if missing:
            raise ConfigurationError(f"No {' and no '.join(missing)} was chosen: {how_to_choose(missing)}")

    def _choose_run_folder(self) -> Path:
        inherited = os.environ.get(RUN_FOLDER_VARIABLE)
        if inherited:
            return Path(inherited)
        options = self.options
        checkpoint = options.get("ckpt_path")
        if options.name is None and checkpoint and Path(checkpoint).parent.name == "checkpoints":
            # A checkpoint that is scored, or trained on, belongs to the run that made it.
            return Path(checkpoint).absolute().parent.parent
        if options.experiment is None:
            options.experiment = (_class_name(options.get("model")) or "run").lower()
        if options.name is None:
            options.name = _default_name()
        for key in ("experiment", "name"):
            if not re.fullmatch(r"[\w.=+-]+", options[key]) or options[key].strip(".") == "":
                raise ConfigurationError(
                    f"{key} is {options[key]!r}: use letters, digits and ._=+-, as it names a folder."
                )
        folder = Path(options.runs_dir).expanduser() / options.experiment / options.name
        trained = (folder / "checkpoints").is_dir() and any((folder / "checkpoints").iterdir())
        if self.config.subcommand == "fit" and trained and not options.get("ckpt_path") and _is_rank_zero():
            raise ConfigurationError(
                f"{folder} holds a training already: continue it with --ckpt_path last, or choose another --name."
            )
        return Path(folder).absolute()

    def _find_checkpoint(self, wanted: str | None) -> str | None:
        """The checkpoint file for ``ckpt_path``: a path, or "best" or "last" of the run folder."""
        if wanted is None or wanted == "hpc":
            return wanted
        folder = self.run_folder / "checkpoints"
        if wanted == "last":
            newest, damaged = newest_whole(folder)
            if _is_rank_zero():
                for path in damaged:
                    says = f"continuing from {newest.name}" if newest else "there is no other, starting anew"
                    print(f"lightning-faces: {path} is damaged: {says}.", file=sys.stderr)
            if newest is None and self.config.subcommand != "fit":
                raise ConfigurationError(f"{folder} has no checkpoint: give the path of one with --ckpt_path.")
            # A first training with `ckpt_path: last` in its configuration starts from nothing.
            return str(newest) if newest else None
        path = folder / "best.ckpt" if wanted == "best" else Path(wanted).expanduser()
        if not path.is_file():
            near = newest_whole(folder if wanted == "best" else path.parent)[0]
            hint = f"there is {near}." if near else "check --ckpt_path."
            raise ConfigurationError(f"There is no checkpoint {path}: {hint}")
        if not is_whole(path):
            near = newest_whole(path.parent)[0]
            hint = f"use --ckpt_path {near}, the newest whole one." if near else "there is no other one beside it."
            raise ConfigurationError(f"The checkpoint {path} is damaged: {hint}")
        return str(path.absolute())

    def before_instantiate_classes(self) -> None:
        """Put everything that the run writes into its folder."""
        os.environ[RUN_FOLDER_VARIABLE] = str(self.run_folder)
        self.made_folder = not self.run_folder.exists()
        trainer = self.options.trainer
        trainer.default_root_dir = str(self.run_folder)
        for entry in _entries(trainer.callbacks):
            if entry.class_path.endswith("Checkpoint") and entry.init_args.get("dirpath") is None:
                entry.init_args.dirpath = str(self.run_folder / "checkpoints")
        for entry in _entries(trainer.logger):
            if entry.class_path.endswith((".MetricsCSV", ".WandbTracker")):
                entry.init_args.save_dir = str(self.run_folder)
            if entry.class_path.endswith(".WandbTracker"):
                experiment, name = self.run_folder.parts[-2:]
                entry.init_args.project = entry.init_args.get("project") or experiment
                entry.init_args.name = entry.init_args.get("name") or name
                entry.init_args.id = entry.init_args.get("id") or _wandb_id(self.run_folder)
        # What is switched off by its flag need not be taken out of the list as well.
        if isinstance(trainer.callbacks, list):
            off = {"enable_progress_bar": "ProgressBar", "enable_checkpointing": "Checkpoint"}
            ends = tuple(end for flag, end in off.items() if trainer.get(flag) is False)
            trainer.callbacks = [c for c in trainer.callbacks if not (ends and c.class_path.endswith(ends))]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer; a value that it refuses is reported in one sentence."""
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error

    def _say_where(self) -> None:
        if _is_rank_zero() and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(f"Run folder: {os.path.relpath(self.run_folder)}")

    after_fit = after_validate = after_test = _say_where

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = self.checkpoint
        return kwargs


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _class_name(namespace: Namespace | None) -> str | None:
    """Name of the class that a model or data option chooses."""
    return None if not namespace else str(namespace.class_path).rsplit(".", 1)[-1]


def _entries(value: Any) -> list[Namespace]:
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, Namespace) and entry.get("init_args") is None:
            entry.init_args = Namespace()  # type: ignore[no-untyped-call]
    return [entry for entry in entries if isinstance(entry, Namespace)]


def _default_name() -> str:
    """The time, or, where several processes must agree on it, the name of their job."""
    if "WANDB_RUN_ID" in os.environ:
        return os.environ["WANDB_RUN_ID"]
    if "SLURM_JOB_ID" in os.environ and "SLURM_PROCID" in os.environ:
        return f"slurm-{os.environ['SLURM_JOB_ID']}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if job == "none":
            raise ConfigurationError("Several processes need one run folder: add --name, or torchrun --rdzv-id.")
        return f"job-{job}"
    return time.strftime("%Y%m%d-%H%M%S")


def _wandb_id(folder: Path) -> str:
    """The id under which W&B knows the run of a folder: the same each time, and another one elsewhere."""
    config = folder / "config.yaml"
    if config.exists():
        loggers = (yaml.safe_load(config.read_text()).get("trainer") or {}).get("logger")
        for logger in loggers if isinstance(loggers, list) else []:
            saved = (logger.get("init_args") or {}).get("id")
            if saved:
                return str(saved)
    return f"{re.sub(r'[^a-z0-9]+', '-', folder.name.lower())}-{os.urandom(4).hex()}"


def _hyperparameters(path: str) -> dict[str, Any]:
    """What ``save_hyperparameters`` put into a checkpoint."""
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"{path} is not a checkpoint of this platform: {reason}") from error
    if "state_dict" not in checkpoint:
        raise ConfigurationError(f"{path} is not a checkpoint of this platform: it has no state_dict.")
    return dict(checkpoint.get("hyper_parameters", {}))


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


def main(args: Sequence[str] | None = None) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        args: The command line, subcommand first; None reads ``sys.argv``.

    Raises:
        SystemExit: With 2 for anything that the user can put right, after one sentence on stderr.
    """
    quiet()
    arguments = list(sys.argv[1:] if args is None else args)
    # Lightning starts the other processes of a DDP run with sys.argv.
    argv, sys.argv = sys.argv, [sys.argv[0], *arguments]
    inherited = os.environ.get(RUN_FOLDER_VARIABLE)
    cli = FacesCLI.__new__(FacesCLI)
    try:
        cli.__init__(  # type: ignore[misc]
            FaceMethod,
            FaceDataModule,
            save_config_callback=SaveRun,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_class=FacesParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=arguments,
        )
    except (LightningFacesError, MisconfigurationException) as error:
        _give_up(cli, str(error))
    except ValueError as error:
        # jsonargparse wraps what a constructor raises.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, LightningFacesError):
            cause = cause.__cause__
        if cause is None:
            raise
        _give_up(cli, str(cause))
    except RuntimeError as error:
        if "Error(s) in loading state_dict" not in str(error):
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        _give_up(cli, f"The checkpoint {cli.checkpoint} does not fit the configured model: {lines[1]}")
    finally:
        sys.argv = argv
        if "wandb" in sys.modules and (run := sys.modules["wandb"].run) is not None:
            run.finish()
        if inherited is None:
            os.environ.pop(RUN_FOLDER_VARIABLE, None)


def _give_up(cli: FacesCLI, message: str) -> NoReturn:
    """Say what is wrong, and leave no folder behind for a run that did not begin."""
    print(f"lightning-faces: {' '.join(message.split())}", file=sys.stderr)
    began = getattr(cli, "trainer", None) is not None and cli.trainer.global_step > 0
    if cli.made_folder and not began and _is_rank_zero() and cli.run_folder.exists():
        if "wandb" in sys.modules and (run := sys.modules["wandb"].run) is not None:
            run.finish(exit_code=2)
        shutil.rmtree(cli.run_folder, ignore_errors=True)
        for parent in list(cli.run_folder.parents)[:2]:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
    sys.exit(2)
