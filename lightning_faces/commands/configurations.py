"""What can be checked of a command line before anything heavy is imported, and old names of classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning_faces
from lightning_faces.errors import ConfigurationError
from lightning_faces.files.kinds import what_it_is
from lightning_faces.files.yaml_files import read_yaml

MOVED = {
    "datamodules.crop": "datamodules.components.transform",
    "datamodules.files": "datamodules.components.files",
    "datamodules.fitted": "datamodules.components.fitted",
    "datamodules.table.TableFaceDataModule": "datamodules.components.tables.TableFaceDataModule",
    "lightning_faces.methods.timm_models": "lightning_faces.backbones",
    "lightning_faces.rendering.texture": "lightning_faces.rendering.synthesis.texture",
}
"""Modules and classes that have moved, to where they are now: configurations that were saved before are still read."""
PACKAGES = ("callbacks", "datamodules")
BY_NAME = frozenset({"last", "best", "auto", "initial", "hpc"})


def values_of(arguments: Sequence[str], *names: str) -> Iterator[str]:
    """The values that an option has on a command line, as ``--name value`` or ``--name=value``."""
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name in names:
            yield value if equals else next(words, "")


def check_arguments(arguments: Sequence[str]) -> None:
    """Check the files that a command line names, and that the platform's packages are its own.

    Args:
        arguments: The command line after the command's name.

    Raises:
        ConfigurationError: If a configuration or a checkpoint is not there or is something else, or if another package
            has the name of one of the platform's.
    """
    for value in values_of(arguments, "--config", "-c"):
        # A configuration may also be given as text, or be fetched.
        if value and "{" not in value and "\n" not in value and "://" not in value:
            read_yaml(value)
    for value in values_of(arguments, "--ckpt_path"):
        path = Path(value).expanduser()
        if value in BY_NAME or not value or path.is_dir():
            continue
        if not path.exists() and not any(path.parent.glob("*.ckpt")):
            raise ConfigurationError(f"There is no checkpoint {path}: check --ckpt_path.")
        if path.is_file() and (kind := what_it_is(path)):
            raise ConfigurationError(
                f"{path} is no checkpoint but {kind}: give a .ckpt file, such as a run's checkpoints/best.ckpt."
            )
    check_packages()


def check_packages() -> None:
    """See that no other package hides one of the platform's.

    Raises:
        ConfigurationError: If one does.
    """
    root = Path(lightning_faces.__file__).resolve().parent.parent
    for name in PACKAGES:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        found = loaded or getattr(find_spec(name), "origin", None)
        if found is None or Path(found).resolve().parent.parent != root:
            raise ConfigurationError(
                f"There are two packages called {name}, the platform's in {root / name} and another in "
                f"{Path(found).parent if found else 'a folder'}, which hides it: rename yours, or take it off the path."
            )


def present_name(name: str) -> str:
    """Where a class is now.

    Args:
        name: Import path of a class, such as ``datamodules.table.TableFaceDataModule``.

    Returns:
        Its present import path; the same for one that has not moved.
    """
    module, _, attribute = name.rpartition(".")
    return f"{MOVED[module]}.{attribute}" if module in MOVED else MOVED.get(name, name)


def with_present_names(value: Any) -> Any:
    """A configuration in which each ``class_path`` is where the class is now."""
    if isinstance(value, dict):
        return {
            key: present_name(item) if key == "class_path" and isinstance(item, str) else with_present_names(item)
            for key, item in value.items()
        }
    return [with_present_names(item) for item in value] if isinstance(value, list) else value
