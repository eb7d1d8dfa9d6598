"""YAML files that people write, read with bounds and with errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_faces.errors import ConfigurationError
from lightning_faces.files.kinds import what_it_is

LARGEST = 16 * 2**20
"""Bytes; a resolved configuration has a few thousand."""
MOST_VALUES = 200_000
"""Values, those that an alias repeats included."""
DEEPEST = 60
ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_yaml(path: str | Path, what: str = "configuration") -> dict[str, Any]:
    """Read a mapping.

    Args:
        path: A YAML (or JSON) file.
        what: What the file should be, for messages.

    Returns:
        Its content; an empty file is an empty mapping.

    Raises:
        ConfigurationError: If it is absent, not UTF-8, no YAML, no mapping, or larger than a file of this kind.

    Example:
        >>> _ = Path("small.yaml").write_text("seed_everything: 3")
        >>> read_yaml("small.yaml")
        {'seed_everything': 3}
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder, but a {what} is a YAML file: name the file.")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise ConfigurationError(f"There is no file {path}: check the path.") from None
    except OSError as error:
        raise ConfigurationError(f"Cannot read the {what} {path}: {error.strerror}.") from error
    kind = what_it_is(path)
    other = kind not in (None, "a YAML file", "a JSON file", "a text file", "an empty file")
    if len(data) > LARGEST:
        raise ConfigurationError(f"{path} is no {what}{f' but {kind}' if other else ''}: it has more than 16 MiB.")
    try:
        content = yaml.load(data.decode("utf-8-sig"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except UnicodeDecodeError as error:
        encoding = ENCODINGS.get(data[:2])
        says = f"but {kind}" if kind else f"in UTF-8 but in {encoding}" if encoding else "text in UTF-8"
        raise ConfigurationError(
            f"{path} is no {what}, as it is not {says}: save it as UTF-8."
            if not kind
            else f"{path} is no {what} {says}: give a YAML file."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, AttributeError, TypeError) as error:
        if other:
            raise ConfigurationError(f"{path} is no {what} but {kind}: give a YAML file.") from error
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(f"{path} is not valid YAML: {reason}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        says = f"but {kind}" if other else "but holds no keys with values"
        raise ConfigurationError(f"{path} is no {what} {says}: give a YAML file of keys and values.")
    _check_size(content, path, what)
    return content


def _check_size(content: dict[str, Any], path: Path, what: str) -> None:
    left: list[tuple[Any, int]] = [(content, 0)]
    count = 0
    while left:
        value, depth = left.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise ConfigurationError(f"{path} is no {what}: it holds more values, or deeper ones, than any.")
        if isinstance(value, dict):
            left += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, (list, tuple, set)):
            left += [(item, depth + 1) for item in value]
