"""Files of ``torch.save`` read as data: nothing in them is run, imported or opened, nor larger than the file.

``torch.load(weights_only=True)`` runs no code either, but it believes the sizes that a file claims. Here the zip
archive is checked whole, and its pickle is read by an interpreter that knows the few instructions and types that a
checkpoint has: numbers, text, lists, mappings and dense tensors.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_faces.errors import DataError
from lightning_faces.files.kinds import what_it_is

LARGEST_PICKLE = 64 * 2**20
"""Bytes of the part that is not tensors; that of a network of 4,000 tensors has about 1 MiB."""
MOST_VALUES = 3_000_000
"""Instructions of that part, which bound the time and memory that it takes."""
BROKEN = (
    zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, KeyError, IndexError,
    TypeError, AttributeError, struct.error, zlib.error, OverflowError, MemoryError, RecursionError,
)  # fmt: skip
"""What reading a damaged archive or its pickle raises."""

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class _StorageType(NamedTuple):
    dtype: torch.dtype


class _Storage(NamedTuple):
    values: Tensor


def read_torch_file(path: Path) -> Any:
    """The content of a file of ``torch.save``, its tensors on the CPU.

    Args:
        path: A whole file of ``torch.save`` (the zip format that it writes since torch 1.6).

    Raises:
        DataError: If it is something else, is damaged, or holds what is not plain data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path)
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(explain(path, error)) from error


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read to its end: all its parts are there and their checksums fit."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path)
            return archive.testzip() is None
    except (DataError, *BROKEN):
        return False


def explain(path: Path, error: BaseException) -> str:
    """One sentence on a file that could not be read as a checkpoint."""
    if isinstance(error, OSError) and error.errno is not None and not path.is_file():
        return f"Cannot read the checkpoint {path}: {error.strerror}."
    if kind := what_it_is(path):
        return f"{path} is no checkpoint but {kind}: give a .ckpt file, such as a run's checkpoints/best.ckpt."
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return f"The checkpoint {path} is damaged ({reason}): use another one."


def _check_sizes(archive: zipfile.ZipFile, path: Path) -> None:
    """torch.save compresses nothing, so that the parts cannot be larger than the file."""
    size = path.stat().st_size
    for part in archive.infolist():
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size or part.flag_bits & 1:
            raise DataError(f"{path} is no checkpoint: {what_it_is(path) or 'its parts are compressed'}.")
    if sum(part.file_size for part in archive.infolist()) > size:
        raise DataError(f"The checkpoint {path} is damaged (its parts are larger than it is): use another one.")


def _read_archive(archive: zipfile.ZipFile, path: Path) -> Any:
    _check_sizes(archive, path)
    names = archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or len(set(names)) != len(names):
        kind = what_it_is(path) or "a zip archive of something else"
        raise DataError(
            f"{path} is no checkpoint but {kind}: give a .ckpt file, such as a run's checkpoints/best.ckpt."
        )
    root = pickles[0].removesuffix("data.pkl")
    if archive.getinfo(pickles[0]).file_size > LARGEST_PICKLE:
        raise DataError(f"{path} is no checkpoint: the part beside its tensors is larger than any network's.")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise DataError(f"The checkpoint {path} was written on a big-endian machine: save it on a little-endian one.")
    reader = _Reader(archive, root, path)
    value = reader.read(archive.read(pickles[0]))
    # Reading a part checks its checksum; the file is whole if the parts that no tensor needs are whole as well.
    for name in set(names) - {pickles[0], *(f"{root}data/{key}" for key in reader.storages)}:
        archive.read(name)
    return value


class _Reader:
    """Interprets the pickle of a checkpoint.

    Args:
        archive: The open file.
        root: Folder in the archive, with its slash.
        path: The file, for messages.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path) -> None:
        self.archive, self.root, self.path = archive, root, path
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}

    def read(self, data: bytes) -> Any:
        """The value that the pickle describes."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if count > MOST_VALUES:
                raise self.refuse("more values than a checkpoint has")
            if opcode.name == "STOP":
                break
            self.step(opcode.name, argument)
        (value,) = self.stack
        return value

    def refuse(self, what: str) -> DataError:
        """The error for something that is not plain data."""
        return DataError(
            f"{self.path} holds {what}: a checkpoint is read as data, so it may hold numbers, text, lists, mappings "
            "and tensors alone."
        )

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            if len(stack) < size:
                raise ValueError("its pickle has no values for a tuple")
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "TUPLE":
            self.close_mark().append(tuple(stack))
        elif name == "APPEND":
            value = stack.pop()
            self.top(list).append(value)
        elif name == "APPENDS":
            self.close_mark()
            self.top(list).extend(stack)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self.top(dict)[key] = value
        elif name == "SETITEMS":
            self.close_mark()
            self.top(dict).update(zip(stack[::2], stack[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                argument = f"{module} {attribute}"
            stack.append(self.find(str(argument)))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(self.call(function, arguments))
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name == "BUILD":
            # The versions of modules, which a state_dict carries as an attribute.
            state = stack.pop()
            versions = state.get("_metadata") if isinstance(state, dict) else None
            if isinstance(versions, dict) and all(isinstance(version, dict) for version in versions.values()):
                self.top(OrderedDict)._metadata = versions
        elif name not in ("PROTO", "FRAME"):
            raise self.refuse(f"the pickle instruction {name}")

    def close_mark(self) -> list[Any]:
        """Go back to the stack below the last mark, and give it."""
        self.stack = self.marks.pop()
        return self.stack

    def top(self, kind: type[Any]) -> Any:
        """The value on top of the stack, which must be of a kind."""
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"its pickle has a {type(self.stack[-1]).__name__} where a {kind.__name__} belongs")
        return self.stack[-1]

    def find(self, name: str) -> Any:
        """What a dotted name of the pickle stands for."""
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        module, _, attribute = name.partition(" ")
        if module == "torch" and attribute in _DTYPES:
            return _StorageType(_DTYPES[attribute])
        if module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype):
            return getattr(torch, attribute)
        raise self.refuse(f"the name {'.'.join((module, attribute))[:100]!r}, which is no part of a checkpoint")

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call of the pickle gives: only the functions of ``_FUNCTIONS`` can be called."""
        if not any(function is known for known in _FUNCTIONS.values()) or not isinstance(arguments, tuple):
            raise self.refuse("a call of something that is no function")
        return function(*arguments)

    def storage(self, description: Any) -> _Storage:
        """The values of one or several tensors, from a part of the archive."""
        kind, storage_type, key, _, count = description
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(key, str):
            raise ValueError("its pickle describes no storage")
        if key not in self.storages:
            data = self.archive.read(f"{self.root}data/{key}")
            values = (
                torch.frombuffer(bytearray(data), dtype=storage_type.dtype)
                if data
                else torch.empty(0, dtype=storage_type.dtype)
            )
            if storage_type.dtype == torch.bool and data and max(data) > 1:
                raise ValueError("a truth value is neither true nor false")
            self.storages[key] = _Storage(values)
        found = self.storages[key]
        if found.values.dtype != storage_type.dtype or found.values.numel() != count:
            raise ValueError(f"tensor {key} does not have the size that is said")
        return found


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor has no valid size")
    elements = 1
    for side in size:
        elements *= side
    # A stride of 0 would make a tensor of any size of one value.
    if elements > storage.values.numel():
        raise ValueError("a tensor is larger than its values")
    return torch.as_strided(storage.values, tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Any, requires_grad: Any = False, hooks: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise ValueError("a parameter is no tensor")
    return data


def _bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes are not written as text")
    return text.encode("latin1")


def _of(kind: Callable[..., Any], *allowed: type) -> Callable[..., Any]:
    """A constructor of plain data from at most one argument of given types."""

    def make(*arguments: Any) -> Any:
        if len(arguments) > 1 or not all(isinstance(argument, allowed) for argument in arguments):
            raise ValueError("its pickle makes something of the wrong values")
        return kind(*arguments)

    return make


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "collections OrderedDict": _of(OrderedDict, list, tuple),
    "collections Counter": _of(Counter, dict),
    "torch Size": _of(tuple, list, tuple),
    "torch device": _of(str, str),
    "builtins set": _of(set, list, tuple),
    "__builtin__ set": _of(set, list, tuple),
    "_codecs encode": _bytes,
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_LITERALS = frozenset(
    {
        "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES",
        "SHORT_BINBYTES", "SHORT_BINSTRING",
    }
)  # fmt: skip
