"""``fit``, ``validate`` and ``test``: LightningCLI with run folders and safe checkpoints."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning_utilities.core.rank_zero import rank_zero_only
from torch.optim import Optimizer

import callbacks  # noqa: F401 - makes short class names known
import datamodules  # noqa: F401
import lightning_faces.methods  # noqa: F401
from callbacks.checkpoint_io import newest_whole
from datamodules.base import FaceDataModule
from lightning_faces.commands.checks import OPTION_ERRORS, adapt_to_cpu, check_training, restoring, unmade
from lightning_faces.commands.parser import FacesParser, how_to_choose
from lightning_faces.commands.run_folder import RUN_FOLDER_VARIABLE, RunFolder, default_name, shown
from lightning_faces.commands.save_run import SaveRun
from lightning_faces.commands.sentences import quiet, sentence
from lightning_faces.errors import ConfigurationError, DataError, LightningFacesError
from lightning_faces.methods.arguments import is_factory, made_by, signature
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.checkpoint import (
    build_method,
    checkpoint_method,
    method_arguments,
    read_checkpoint,
    saved_class,
)

TRAINER_DEFAULTS: dict[str, Any] = {
    "callbacks": [
        {"class_path": "lightning.pytorch.callbacks.RichProgressBar"},
        {"class_path": "callbacks.ProgressLines"},
        {"class_path": "callbacks.CheckMonitor"},
        {"class_path": "callbacks.SeedSteps"},
        {"class_path": "callbacks.FiniteLoss"},
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
RUNS = "runs"
CHECKPOINT_HELP = {
    "fit": "Checkpoint to go on with: a path, last or best of the run's folder, or auto (last, if there is one).",
    "test": "Checkpoint: a path, last or best of the run's folder, or initial (the weights that it starts with).",
}
CHECKPOINTS_BY_NAME = ("last", "best", "auto", "initial")


class FacesCLI(LightningCLI):
    """LightningCLI that gives each training one folder, ``<runs_dir>/<experiment>/<name>``."""

    run_folder: RunFolder
    checkpoint: str | None = None
    from_checkpoint: tuple[type[FaceMethod], dict[str, Any]] | None = None

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The stock options; ``trainer`` has our defaults, and the model may come from a checkpoint."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        parser.add_lightning_class_args(FaceMethod, "model", subclass_mode=True)
        parser.add_lightning_class_args(FaceDataModule, "data", subclass_mode=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The options that say where the run folder is."""
        parser.add_argument(
            "--runs_dir",
            type=str | None,
            default=None,
            help="Folder of all runs (default: runs; with a checkpoint, where its run is).",
        )
        parser.add_argument(
            "--experiment", type=str | None, default=None, help="Folder of related runs (default: the method's name)."
        )
        parser.add_argument(
            "--name", type=str | None, default=None, help="Name of the run (default: the time at its start)."
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """The options of a command; ``ckpt_path`` takes our names for checkpoints."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        for action in parser._actions:
            if action.dest == "ckpt_path":
                action.help = CHECKPOINT_HELP["fit" if subcommand == "fit" else "test"]
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; that ``args`` and ``sys.argv`` differ is not worth a warning, as this is callable from Python."""
        self.arguments = list(args)
        self.config = parser.parse_args(args)

    @property
    def options(self) -> Namespace:
        """The configuration of the subcommand."""
        return self.config[self.config.subcommand]  # type: ignore[no-any-return]

    def _parse_ckpt_path(self) -> None:
        """Choose the run folder, find the checkpoint, and take the method from it where none was configured."""
        options, command = self.options, self.config.subcommand
        wanted = options.get("ckpt_path")
        if command != "fit" and wanted is None:
            raise ConfigurationError(
                f"{command} needs the weights of a training: name its checkpoint with --ckpt_path, "
                "e.g. runs/METHOD/NAME/checkpoints/best.ckpt (--ckpt_path initial scores the method as it starts)."
            )
        if command == "fit" and wanted == "initial":
            wanted = options.ckpt_path = None
        self.run_folder = self._choose_run_folder()
        self.checkpoint = self._find_checkpoint(wanted)
        if self.checkpoint is not None and self.checkpoint != "hpc":
            self._match_method(Path(self.checkpoint))
        check_factories(options.get("model"))
        missing = [key for key in ("model", "data") if not options.get(key)]
        missing = [key for key in missing if key == "data" or self.from_checkpoint is None]
        if missing:
            raise ConfigurationError(f"No {' and no '.join(missing)} was chosen: {how_to_choose(missing)}")

    def _match_method(self, path: Path) -> None:
        """See that the checkpoint holds the configured method; take the method from it where that decides."""
        options = self.options
        checkpoint = read_checkpoint(path)
        chosen = _class_of(options.get("model"))
        if self.config.subcommand == "fit" and chosen is not None:
            # A training is continued with the arguments that it is given now: longer, or with another batch size.
            if saved_class(checkpoint):
                checkpoint_method(checkpoint, path, chosen)
            return
        kind = checkpoint_method(checkpoint, path, chosen)
        given = {}
        if chosen is not None:
            # What the user says counts before what the checkpoint says, but not the defaults of what nobody said.
            explicit = self.parser.parse_args(self.arguments, defaults=False)[self.config.subcommand].model
            given = dict(self._instantiate_arguments(chosen, explicit.get("init_args") or Namespace()))  # type: ignore[no-untyped-call]
        self.from_checkpoint = kind, method_arguments(checkpoint, path, kind, given)
        self._weights = checkpoint["state_dict"]
        options.model = None

    def _instantiate_arguments(self, kind: type[FaceMethod], given: Namespace) -> Namespace:
        """The arguments that the user gave, without optimizers and schedules, which nothing but training builds."""
        parser = FacesParser(exit_on_error=False)
        parser.add_class_arguments(kind, "model", instantiate=False, fail_untyped=False)
        known = signature(kind)
        explicit = {key for key in vars(given) if key in known and not is_factory(known[key][0])}
        given = Namespace({key: given[key] for key in explicit})  # type: ignore[no-untyped-call]
        values = parser.instantiate_classes(Namespace(model=given)).model  # type: ignore[no-untyped-call]
        return Namespace({key: value for key, value in vars(values).items() if key in explicit})  # type: ignore[no-untyped-call]

    def _choose_run_folder(self) -> RunFolder:
        inherited = os.environ.get(RUN_FOLDER_VARIABLE)
        if inherited:
            return RunFolder(Path(inherited), shared=True)
        options, checkpoint = self.options, self.options.get("ckpt_path")
        owner = None
        if checkpoint not in (None, *CHECKPOINTS_BY_NAME) and Path(checkpoint).parent.name == "checkpoints":
            # A checkpoint that is scored, or trained on, belongs to the run that made it.
            owner = Path(checkpoint).expanduser().absolute().parent.parent
        if owner is not None and options.name is options.experiment is options.runs_dir is None:
            return RunFolder(owner, shared=not _is_rank_zero())
        timed = False
        if options.experiment is None:
            named = _class_name(options.get("model")) or "run"
            options.experiment = owner.parent.name if owner is not None else named.lower()
        if options.name is None:
            options.name, timed = (owner.name, False) if owner is not None else default_name()
        if options.runs_dir is None:
            options.runs_dir = RUNS
        for key in ("experiment", "name"):
            if not re.fullmatch(r"[\w.=+-]+", options[key]) or options[key].strip(".") == "":
                raise ConfigurationError(
                    f"{key} is {options[key]!r}: use letters, digits and ._=+-, as it names a folder."
                )
        path = Path(options.runs_dir).expanduser() / options.experiment / options.name
        folder = RunFolder(path, shared=not _is_rank_zero(), fresh=timed)
        if self.config.subcommand == "fit" and folder.trained and not (checkpoint or timed) and _is_rank_zero():
            raise ConfigurationError(
                f"{path} holds a training already: continue it with --ckpt_path last, or choose another --name."
            )
        return folder

    def _find_checkpoint(self, wanted: str | None) -> str | None:
        """The checkpoint file for ``ckpt_path``: a path, or a name for one of the run folder."""
        if wanted in (None, "hpc", "initial"):
            return wanted if wanted == "hpc" else None
        folder = self.run_folder.checkpoints
        if wanted in ("last", "auto"):
            newest, damaged = newest_whole(folder)
            if newest is None and wanted == "last":
                says = f"{damaged[0]} is damaged, and there is no other" if damaged else f"{shown(folder)} has none"
                fix = "--ckpt_path auto starts anew where there is none" if self.config.subcommand == "fit" else ""
                raise ConfigurationError(
                    f"There is no checkpoint to go on with: {says}; check --runs_dir, --experiment and --name"
                    f"{', or give its path' if not fix else f' ({fix})'}."
                )
            if _is_rank_zero():
                for path in damaged:
                    says = f"continuing from {newest.name}" if newest else "there is no other, starting anew"
                    print(f"lightning-faces: {path} is damaged: {says}.", file=sys.stderr)
            return str(newest) if newest else None
        path = folder / "best.ckpt" if wanted == "best" else Path(str(wanted)).expanduser()
        if not path.is_file():
            near = newest_whole(folder if wanted == "best" else path.parent)[0] if not path.is_dir() else None
            near = newest_whole(path)[0] if path.is_dir() else near
            hint = f"there is {near}." if near else "check --ckpt_path."
            raise ConfigurationError(f"There is no checkpoint {path}: {hint}")
        try:
            read_checkpoint(path)
        except DataError as error:
            near = newest_whole(path.parent)[0] if "is damaged" in str(error) else None
            hint = f"use --ckpt_path {near}, the newest whole one." if near else "there is no other one beside it."
            if "is damaged" not in str(error):
                raise
            raise ConfigurationError(f"The checkpoint {path} is damaged: {hint}") from error
        return str(path.absolute())

    def before_instantiate_classes(self) -> None:
        """Put everything that the run writes into its folder, and make that this process's own."""
        options = self.options
        adapt_to_cpu(options.trainer)
        if not options.trainer.get("fast_dev_run"):
            self.run_folder.claim(self.config.subcommand)
        if options.name is not None:
            options.name = self.run_folder.path.name
        os.environ[RUN_FOLDER_VARIABLE] = str(self.run_folder.path)
        _place(options.trainer, self.run_folder)
        self.save_config_kwargs["run_folder"] = self.run_folder
        self.save_config_kwargs["checkpoint"] = self.checkpoint if self.config.subcommand == "fit" else None
        if self.from_checkpoint is not None:
            kind, arguments = self.from_checkpoint
            plain = {name: value for name, value in arguments.items() if not callable(value)}
            self.save_config_kwargs["model"] = {
                "class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": _as_yaml(plain),
            }  # fmt: skip

    def instantiate_classes(self) -> None:
        """Make method, data and trainer; a method from a checkpoint is made of that alone."""
        try:
            super().instantiate_classes()
        except OPTION_ERRORS as error:
            raise ConfigurationError(sentence(error, self.checkpoint) or unmade(error)) from error
        if self.from_checkpoint is not None:
            assert self.checkpoint is not None
            kind, arguments = self.from_checkpoint
            self.model = build_method(kind, arguments, Path(self.checkpoint), self._weights)
            del self._weights
        if self.config.subcommand == "fit":
            check_training(self.model)

    def _say_where(self) -> None:
        if _is_rank_zero() and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(f"Run folder: {os.path.relpath(self.run_folder.path)}")

    after_fit = after_validate = after_test = _say_where

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = self.checkpoint
        return kwargs


def check_factories(model: Namespace | None) -> None:
    """See that an optimizer is an optimizer and a schedule a schedule, before anything of them is called.

    Args:
        model: The configuration of a method.

    Raises:
        ConfigurationError: If one is something else.
    """
    kind = _class_of(model)
    if model is None or kind is None:
        return
    for name, (annotation, _) in signature(kind).items():
        value = (model.get("init_args") or {}).get(name)
        path = value.get("class_path") if isinstance(value, Namespace) else None
        if path is None or not is_factory(annotation):
            continue
        module, _, attribute = str(path).rpartition(".")
        made, wanted = getattr(import_module(module), attribute), made_by(annotation)
        if wanted and not (isinstance(made, type) and issubclass(made, wanted)):
            raise ConfigurationError(
                f"model.{name} is {path}, which is no {wanted[0].__name__}: name a class, e.g. "
                f"torch.optim.{'AdamW' if wanted[0] is Optimizer else 'lr_scheduler.StepLR'}."
            )


def _place(trainer: Namespace, folder: RunFolder) -> None:
    """Set what the run folder decides, also where a configuration was saved by another run."""
    trainer.default_root_dir = str(folder.path)
    for entry in _entries(trainer.callbacks):
        if entry.class_path.endswith("Checkpoint"):
            given = entry.init_args.get("dirpath")
            if given is None or _of_a_run(Path(given)):
                entry.init_args.dirpath = str(folder.checkpoints)
    for entry in _entries(trainer.logger):
        if entry.class_path.endswith((".MetricsCSV", ".WandbTracker")):
            other, entry.init_args.save_dir = entry.init_args.get("save_dir"), str(folder.path)
        if entry.class_path.endswith(".WandbTracker"):
            if other not in (None, ".", str(folder.path)) and _of_a_run(Path(other) / "checkpoints"):
                # Names that another run's folder gave.
                for key, part in (("project", Path(other).parent.name), ("name", Path(other).name)):
                    if entry.init_args.get(key) == part:
                        entry.init_args[key] = None
            experiment, name = folder.path.parts[-2:]
            entry.init_args.project = entry.init_args.get("project") or experiment
            entry.init_args.name = entry.init_args.get("name") or name
            entry.init_args.id = folder.wandb_id()
    # What is switched off by its flag need not be taken out of the list as well.
    if isinstance(trainer.callbacks, list):
        off = {"enable_progress_bar": ("ProgressBar", "ProgressLines"), "enable_checkpointing": ("Checkpoint",)}
        ends = tuple(end for flag, names in off.items() if trainer.get(flag) is False for end in names)
        trainer.callbacks = [c for c in trainer.callbacks if not (ends and c.class_path.endswith(ends))]


def _of_a_run(checkpoints: Path) -> bool:
    """Whether a folder is that of a run's checkpoints."""
    return checkpoints.name == "checkpoints" and (checkpoints.parent / "config.yaml").exists()


def _as_yaml(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _as_yaml(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_yaml(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _is_rank_zero() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def _class_name(namespace: Namespace | None) -> str | None:
    """Name of the class that a model or data option chooses."""
    return None if not namespace else str(namespace.class_path).rsplit(".", 1)[-1]


def _class_of(namespace: Namespace | None) -> type[FaceMethod] | None:
    """The class that the model option chooses, which the parser has imported."""
    if not namespace:
        return None
    module, _, name = str(namespace.class_path).rpartition(".")
    kind: type[FaceMethod] = getattr(import_module(module), name)
    return kind


def _entries(value: Any) -> list[Namespace]:
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if isinstance(entry, Namespace) and entry.get("init_args") is None:
            entry.init_args = Namespace()  # type: ignore[no-untyped-call]
    return [entry for entry in entries if isinstance(entry, Namespace)]


def run(command: str, arguments: Sequence[str]) -> int | None:
    """Run ``fit``, ``validate`` or ``test``.

    Args:
        command: Which.
        arguments: What follows it on the command line.

    Raises:
        LightningFacesError: For anything that the user can put right.
    """
    quiet()
    words = [command, *arguments]
    paths = list(sys.path)
    if not {"", str(Path.cwd())} & set(paths):
        # A module in the current folder is found, as with python -m; the platform's own are imported already.
        sys.path.insert(0, str(Path.cwd()))
    # Lightning starts the other processes of a DDP run with sys.argv.
    argv, sys.argv = sys.argv, [sys.argv[0], *words]
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
            args=words,
        )
    except (LightningFacesError, MisconfigurationException, *OPTION_ERRORS) as error:
        message = sentence(error, cli.checkpoint)
        if message is None and restoring(getattr(cli, "trainer", None)):
            reason = " ".join(str(error).split())[:200]
            message = f"The checkpoint {cli.checkpoint} does not fit this training ({type(error).__name__}: {reason})."
        if message is None:
            raise
        _take_back(cli)
        raise ConfigurationError(message) from error
    finally:
        sys.argv, sys.path[:] = argv, paths
        _finish_wandb()
        if inherited is None:
            os.environ.pop(RUN_FOLDER_VARIABLE, None)
        if hasattr(cli, "run_folder"):
            cli.run_folder.release()
    return None


def _finish_wandb(exit_code: int | None = None) -> None:
    if "wandb" in sys.modules and (run := sys.modules["wandb"].run) is not None:
        run.finish(exit_code=exit_code)


def _take_back(cli: FacesCLI) -> None:
    """Leave nothing behind of a command that did not begin."""
    trainer = getattr(cli, "trainer", None)
    began = trainer is not None and cli.config.subcommand == "fit" and trainer.fit_loop.total_batch_idx > 0
    if not began and hasattr(cli, "run_folder"):
        _finish_wandb(exit_code=2)
        cli.run_folder.take_back()


def fit(arguments: Sequence[str]) -> int | None:
    """Train a method."""
    return run("fit", arguments)


def validate(arguments: Sequence[str]) -> int | None:
    """Score a checkpoint on the validation split."""
    return run("validate", arguments)


def test(arguments: Sequence[str]) -> int | None:
    """Score a checkpoint on the test split and record the result."""
    return run("test", arguments)
