"""The command line's parser: no abbreviations, and errors of one sentence that name the nearest valid choice."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import get_loader, set_loader, set_parsing_settings
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yaml import YAMLError

from datamodules.base import FaceDataModule
from lightning_faces.commands.configurations import present_name, with_present_names
from lightning_faces.errors import ConfigurationError
from lightning_faces.methods.base import FaceMethod


def subclass_names(*bases: type) -> set[str]:
    """Names of all imported public subclasses that can be made."""
    names: set[str] = set()
    for base in bases:
        subclasses: list[type] = base.__subclasses__()
        for subclass in subclasses:
            names |= subclass_names(subclass)
            if not subclass.__name__.startswith("_") and not inspect.isabstract(subclass):
                names.add(subclass.__name__)
    return names


def _load(text: str) -> Any:
    """YAML of a configuration or an option, with the present names of classes that have moved."""
    return with_present_names(get_loader("yaml")(text))


set_loader("faces", _load, (YAMLError,))
# What an option without a type holds is data, also where it looks like a class.
set_parsing_settings(instantiate_subclass_spec_in_any=False, validate_subclass_spec_in_any=False)

POOLS: dict[str, tuple[type, ...]] = {
    "model": (FaceMethod,),
    "data": (FaceDataModule,),
    "optimizer": (Optimizer,),
    "lr_scheduler": (LRScheduler,),
    "callbacks": (Callback,),
    "logger": (Logger,),
}
"""Last part of an option to the classes that it takes."""
FAILS_INSIDE = (
    ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError, RuntimeError, LookupError,
    ArithmeticError, AssertionError,
)  # fmt: skip
"""What a module that is imported may raise."""


def why_not_importable(name: str) -> str | None:
    """Why a class can't be imported; None if it can.

    Args:
        name: Its import path, such as ``mymodule.MyMethod``.
    """
    module, _, attribute = name.rpartition(".")
    try:
        imported = import_module(module)
    except FAILS_INSIDE as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent is not None and f"{module}.".startswith(f"{absent}."):
            paths = dict.fromkeys(path or str(Path.cwd()) for path in sys.path)
            # Python's own library is not where one would look for it.
            folders = ", ".join(p for p in paths if Path(p).is_dir() and not p.startswith(sys.base_prefix + os.sep))
            return f"there is no module {absent!r} in {folders}"
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        return f"importing {module} fails with {type(error).__name__}: {error}{where}"
    if hasattr(imported, attribute):
        return None
    near = difflib.get_close_matches(attribute, dir(imported), n=1)
    return f"{module} has no {attribute}{f', did you mean {near[0]}' if near else ''}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest valid names, or all of them where they are few."""
    known = sorted(set(known))
    # The whole key first; then its last part, for a key in the wrong place.
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    last = name.rsplit(".", 1)[-1]
    near = near or [k for k in known if difflib.SequenceMatcher(None, last, k.rsplit(".", 1)[-1]).ratio() > 0.8][:3]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose one of {', '.join(known)}." if 0 < len(known) <= 25 else "see --help for what there is."


def _readable(kind: str) -> str:
    kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace("typing.", "").replace("NoneType", "null")
    return re.sub(r"Literal\[(.*)\]", lambda found: " or ".join(found[1].split(", ")), kind)


class FacesParser(LightningArgumentParser):
    """Parser whose errors are one sentence each, and that takes no abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Abbreviations would silently take --trainer.max_epoch for --trainer.max_epochs.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False, "parser_mode": "faces"})

    def parse_args(self, args: Any = None, *more: Any, **kwargs: Any) -> Any:
        """Parse a command line, with the present names of classes that have moved."""
        if isinstance(args, (list, tuple)):
            parts = [str(word).partition("=") for word in args]
            args = [f"{name}={present_name(value)}" if equals else present_name(name) for name, equals, value in parts]
        return super().parse_args(args, *more, **kwargs)

    def option_names(self) -> set[str]:
        """Dotted names of all options, those of subcommands included, without the subcommand."""
        names = {action.dest for action in self._actions if action.dest not in ("subcommand", "print_config")}
        names = {name for name in names if name.rsplit(".", 1)[-1] != "help"}
        for parser in getattr(self._subcommands_action, "_name_parser_map", {}).values():
            names |= parser.option_names()
        return names

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Check a configuration; an unknown option is reported with the names that are near."""
        if self.exit_on_error:
            # A command line as a whole, not the arguments of a class: the model may come from a checkpoint.
            kwargs["skip_required"] = True
        try:
            super().validate(*args, **kwargs)
        except KeyError as error:
            found = re.search(r"ption '([^']+)'", str(error))
            if found is None or isinstance(error, _UnknownOptionError):
                raise
            name = found[1]
            # The parser of a class has its constructor's arguments, each of which may be a class with more.
            raise _UnknownOptionError(
                f"{name!r} is not an option here: {did_you_mean(name, self.option_names())}"
            ) from None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise :class:`ConfigurationError` with one sentence."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise ConfigurationError(self.sentence(message))

    def sentence(self, message: str) -> str:
        """Say in one sentence what jsonargparse says in a paragraph."""
        if found := re.search(r"unrecognized arguments?: (-*)([^\s=]+)", message):
            return f"{found[1]}{found[2]} is not an option: {did_you_mean(found[2], self.option_names())}"
        if found := re.search(r"'[^'\n]+' is not an option here: [^\n]+", message):
            return found[0].split(". Got value:")[0]
        if found := re.search(r"File does not exist: '?([^'\n]+)'?", message):
            return f"There is no file {found[1]}: check the path."
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return f"{found[1]!r} is not a command: choose one of {found[2].replace(chr(39), '')}."
        if 'expected "subcommand"' in message:
            return "No command was given: choose one of fit, validate, test, predict."
        if "Problems parsing config" in message:
            lines = [line.strip() for line in message.splitlines() if line.strip()]
            return f"A configuration is not valid YAML: {'; '.join(lines[1:2] + lines[-1:])}."
        # A class nests its arguments' errors; the innermost one is what is wrong.
        keys = list(re.finditer(r'[Pp]arser key "([^"]+)"', message))
        if not keys:
            return re.sub(r"\s+", " ", message).strip()
        key = ".".join(found[1] for found in keys)
        rest = message[keys[-1].end() :] + "\nGot value: "
        innermost, value, _ = re.split(r"(?:Given|Got) value: (.*)", rest, maxsplit=1)
        value = value.split(". Got value:")[0]
        if said := self._about_class(key, message, value):
            return said
        kinds = re.findall(r"Expected an? (?!path|dot import)(.+?)(?:\. |$)", innermost, re.M)
        expected = list(dict.fromkeys(_readable(kind) for kind in kinds))
        class_name = re.search(r"Expected a dot import path string: (\S+)", innermost)
        if class_name and not set(expected) - {"null", "FaceMethod", "FaceDataModule", "Callback", "Logger"}:
            anything = tuple(base for pool in POOLS.values() for base in pool)
            names = subclass_names(*POOLS.get(key.rsplit(".", 1)[-1], anything))
            return f"{key}: there is no class {class_name[1]!r}: {did_you_mean(class_name[1], names)}"
        if expected:
            return f"{key} is {value!r}, which does not fit: it must be {' or '.join(expected)}."
        return re.sub(r"\s+", " ", message).strip()

    def _about_class(self, key: str, message: str, value: str) -> str | None:
        """The sentence on a class that can't be imported, is abstract, or is of another kind."""
        paths = re.findall(r"Problem with given class_path '([\w.]+)'", message)
        paths += re.findall(r"Expected a path but ([\w.]+) either", message)
        for path in dict.fromkeys(reversed(paths)):
            if "." in path and (why := why_not_importable(path)):
                return f"{key}: {path} can't be imported: {why}."
        name = paths[-1] if paths else value
        pool = POOLS.get(key.rsplit(".", 1)[-1], ())
        choice = f"choose one of {', '.join(sorted(subclass_names(*pool)))}." if pool in _SHORT else "see --help."
        if "Expected an instantiatable class, but is abstract" in message:
            return f"{key}: {name.rsplit('.', 1)[-1]} is abstract, so that it can't be made: {choice}"
        found = re.search(r"does not correspond to a subclass of (\w+)", message)
        found = found or re.search(r"to be a (?:function that returns|subclass of) <class '(?:\w+\.)*(\w+)'>", message)
        if found and "." in name:
            return f"{key}: {name} is no {found[1]}: {choice}"
        return None


_SHORT = (POOLS["model"], POOLS["data"])
"""Kinds of class of which there are few."""


class _UnknownOptionError(KeyError):
    """An option that a parser does not have, already put as a sentence."""

    def __str__(self) -> str:
        return str(self.args[0])


def how_to_choose(keys: list[str]) -> str:
    """What to add where options are missing."""
    pools: dict[str, type] = {"model": FaceMethod, "data": FaceDataModule}
    parts = [f"add --{key} with one of {', '.join(sorted(subclass_names(pools[key])))}" for key in keys if key in pools]
    return " and ".join(parts or [f"add --{key}" for key in keys]) + ", or a --config that has it."
