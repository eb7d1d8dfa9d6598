"""Arguments of a method: which of them are plain data, and reading those of a file that may be anyone's."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union

from lightning_faces.errors import DataError

STARTING = frozenset({"start_from", "pose_source"})
"""Arguments that name files of the user's own: what a training starts from, where poses come from."""
MOST_ARGUMENTS = 10_000
"""Values that the arguments of a method may have in all."""
DEEPEST = 20
ADDRESS = re.compile(r"^\s*(hf[-_]hub|local-dir|file|https?|ftp|s3|gs|ssh|registry|torchhub)\b.*|.*://.*", re.I | re.S)
"""Text that a library may fetch."""
FILE = re.compile(
    r"[/\\~\0]|^\.|\.(npz?|mat|h5|pkl|pickle|pth?|ckpt|bin|safetensors|onnx|json|ya?ml|csv|txt|obj|ply|zip|tar|gz)$",
    re.I,
)
"""Text that names a file."""
FETCHING = {"pretrained": False}
"""Arguments that fetch weights, or take them from the disk; those of a checkpoint are in the checkpoint."""
OPENING = frozenset(
    {
        "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "hf_hub_id", "url", "file",
        "class_path", "init_args", "_target_",
    }
)  # fmt: skip
"""Arguments, of a method or of a network in it, that open files, fetch something or name code."""


def imported_subclasses(base: type) -> list[type]:
    """All imported subclasses, the class itself first."""
    found = [base]
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        found += [kind for kind in imported_subclasses(subclass) if kind not in found]
    return found


def signature(kind: type) -> dict[str, tuple[Any, Any]]:
    """Constructor arguments of a class with their annotations and defaults, and those that ``**kwargs`` hands on."""
    found: dict[str, tuple[Any, Any]] = {}
    for owner in kind.__mro__:
        if "__init__" not in vars(owner):
            continue
        constructor: Any = vars(owner)["__init__"]
        try:
            hints = typing.get_type_hints(constructor)
        except (NameError, TypeError, AttributeError):
            hints = {}
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, (hints.get(parameter.name, Any), parameter.default))
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def is_factory(annotation: Any) -> bool:
    """Whether an argument is a function, such as one that makes the optimizer."""
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return any(part is Callable or typing.get_origin(part) is Callable for part in map(_plain_origin, parts))


def made_by(annotation: Any) -> tuple[type, ...]:
    """The classes of which a function that an argument takes makes one; none where the annotation does not say."""
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    made: tuple[type, ...] = ()
    for part in parts:
        if _plain_origin(part) is Callable and typing.get_args(part):
            result = typing.get_args(part)[-1]
            kinds = typing.get_args(result) if _is_union(result) else (result,)
            made += tuple(kind for kind in kinds if isinstance(kind, type))
    return made


def _plain_origin(annotation: Any) -> Any:
    return (
        Callable
        if annotation in (Callable, typing.Callable) or typing.get_origin(annotation) is Callable
        else annotation
    )


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


class ArgumentReader:
    """Reads values of a checkpoint as annotations say.

    Args:
        path: The checkpoint, for messages.
        kind: The class that takes them.
    """

    def __init__(self, path: Path, kind: type) -> None:
        self.path, self.kind = path, kind
        self.count = 0

    def read(self, value: Any, annotation: Any, name: str, depth: int = 0) -> Any:
        """A value that fits an annotation, as the annotation's type.

        Raises:
            DataError: If it does not fit, or names a file, an address or code.
        """
        self.count += 1
        if self.count > MOST_ARGUMENTS or depth > DEEPEST:
            raise DataError(
                f"{self.path} has more values in the option {name!r} of {self.kind.__name__} than are read."
            )
        try:
            return self._fit(value, annotation, name, depth)
        except _UnfitError as error:
            shown = (
                " ".join(f"{value!r}"[:80].split()) if isinstance(value, (str, int, float)) else type(value).__name__
            )
            raise DataError(
                f"{self.path} has {shown} for the option {name!r} of {self.kind.__name__}, which does not fit: "
                "use another checkpoint."
            ) from error

    def _fit(self, value: Any, annotation: Any, name: str, depth: int) -> Any:
        origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
        if _is_union(annotation):
            return self._first_fit(value, parts, name, depth)
        if origin is Literal:
            if not any(type(value) is type(part) and value == part for part in parts):
                raise _UnfitError
            return value
        if annotation in (None, type(None)):
            if value is not None:
                raise _UnfitError
            return None
        if annotation is Any or annotation is object:
            return self._plain(value, name, depth)
        if annotation in (bool, int, float, str):
            return self._scalar(value, annotation, name)
        container = origin or annotation
        if container is tuple:
            return self._tuple(value, parts, name, depth)
        if container in (list, Sequence, set, frozenset) or container is typing.Sequence:
            if not isinstance(value, (list, tuple, set)):
                raise _UnfitError
            items = [self.read(item, parts[0] if parts else Any, name, depth + 1) for item in value]
            return items if container not in (set, frozenset) else container(items)
        if container in (dict, Mapping) or container is typing.Mapping:
            return self._mapping(value, parts, name, depth)
        if isinstance(annotation, type) and not is_factory(annotation):
            return self._part(value, annotation, name, depth)
        raise _UnfitError

    def _first_fit(self, value: Any, parts: Sequence[Any], name: str, depth: int) -> Any:
        # An exact type before one that converts: 3 stays an int in `float | int`.
        for part in sorted(parts, key=lambda part: type(value) is not part):
            with suppress(_UnfitError):
                return self._fit(value, part, name, depth)
        raise _UnfitError

    def _scalar(self, value: Any, kind: type, name: str) -> Any:
        if kind is float and type(value) is int and abs(value) < 2**53:
            return float(value)
        if type(value) is not kind:
            raise _UnfitError
        if isinstance(value, str):
            self._check_text(value, name)
        return value

    def _check_text(self, value: str, name: str) -> None:
        shown = repr(value[:80])
        if ADDRESS.match(value):
            raise DataError(
                f"{self.path} gives the option {name!r} of {self.kind.__name__} the address {shown}: a checkpoint "
                "fetches nothing; use another one."
            )
        if FILE.search(value) or len(value) > 1000 or name in OPENING:
            raise DataError(
                f"{self.path} gives the option {name!r} of {self.kind.__name__} the file {shown}: a checkpoint opens "
                f"no file, so name it yourself: --model {self.kind.__name__} --model.{name} FILE."
            )

    def _tuple(self, value: Any, parts: Sequence[Any], name: str, depth: int) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise _UnfitError
        kinds = list(parts) if parts else [Any, ...]
        if len(kinds) == 2 and kinds[1] is ...:
            kinds = [kinds[0]] * len(value)
        if len(kinds) != len(value):
            raise _UnfitError
        return tuple(self.read(item, kind, name, depth + 1) for item, kind in zip(value, kinds))

    def _mapping(self, value: Any, parts: Sequence[Any], name: str, depth: int) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise _UnfitError
        key_kind, value_kind = parts if len(parts) == 2 else (Any, Any)
        read: dict[Any, Any] = {}
        for key, item in value.items():
            if key in OPENING or (isinstance(key, str) and key.startswith("_")):
                raise DataError(
                    f"{self.path} has {str(key)[:60]!r} in the option {name!r} of {self.kind.__name__}: a checkpoint "
                    "opens, fetches and names nothing; use another one."
                )
            known = self.read(key, key_kind, name, depth + 1)
            read[known] = FETCHING[key] if key in FETCHING else self.read(item, value_kind, f"{name}.{key}", depth + 1)
        return read

    def _plain(self, value: Any, name: str, depth: int) -> Any:
        """A value without an annotation: plain data."""
        if value is None or type(value) in (bool, int, float):
            return value
        if isinstance(value, str):
            self._check_text(value, name)
            return value
        if isinstance(value, (list, tuple)):
            return type(value)(self.read(item, Any, name, depth + 1) for item in value)
        if isinstance(value, dict):
            return self._mapping(value, (), name, depth)
        raise _UnfitError

    def _part(self, value: Any, base: type, name: str, depth: int) -> Any:
        """A part of a method, such as a head: a class of the platform or of the method's module, with arguments."""
        own = {"lightning_faces", self.kind.__module__.split(".")[0]}
        if not isinstance(value, dict) or base.__module__.split(".")[0] not in own:
            raise _UnfitError
        class_path = value.get("class_path")
        arguments = value.get("init_args") or {}
        if (
            not isinstance(class_path, str)
            or not isinstance(arguments, dict)
            or set(value) - {"class_path", "init_args"}
        ):
            raise _UnfitError
        short = class_path.rsplit(".", 1)[-1]
        kinds = [kind for kind in imported_subclasses(base) if kind.__name__ == short and not inspect.isabstract(kind)]
        kinds = [kind for kind in kinds if kind.__module__.split(".")[0] in own]
        if not kinds:
            raise DataError(
                f"{self.path} names {class_path[:80]!r} for the option {name!r} of {self.kind.__name__}, which is no "
                f"{base.__name__} that is imported: use another one."
            )
        known = signature(kinds[0])
        if unknown := set(arguments) - set(known):
            raise DataError(
                f"{self.path} was saved with the option {name}.{min(map(str, unknown))[:60]!r}, which is no more."
            )
        read = {
            str(key): self.read(item, known[key][0], f"{name}.{key}", depth + 1)
            for key, item in arguments.items()
            if not is_factory(known[key][0]) and key not in OPENING
        }
        return kinds[0](**read)


class _UnfitError(Exception):
    """A value is not of an annotation's type."""


def plain_arguments(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint keeps of the arguments that an object was made with: plain data, and the name of the class.

    Args:
        kind: The class of the object.
        arguments: By name.
    """
    known = signature(kind)
    taken = {name for name in known if not is_factory(known[name][0])} - STARTING
    kept = {name: value for name, value in arguments.items() if name in taken and is_plain(value)}
    return {"_class_path": f"{kind.__module__}.{kind.__qualname__}", **kept}


def is_plain(value: Any) -> bool:
    """Whether a value is made of numbers, text, lists and mappings alone."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)
