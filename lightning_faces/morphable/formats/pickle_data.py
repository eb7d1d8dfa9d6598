"""Arrays of a pickle, read without running it: opcodes build containers, and calls are only written down.

Python's unpickler imports and calls what a pickle names, and allocates what it claims (a memo of 2^29 entries from 9
bytes). Here nothing is called, and no more is allocated than the file holds. The opcodes are those of Python's
``pickletools``, protocols 0 to 4.
"""

from __future__ import annotations

import codecs
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_OPCODES = 100_000
"""FLAME's models hold some thousand; each is at most one object in memory and takes 3 microseconds."""

_MARK = object()
_LATIN = "latin1"
_NAMES = frozenset(
    {
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")),
        *(("copy_reg", "_reconstructor"), ("copyreg", "_reconstructor"), ("__builtin__", "object")),
        ("builtins", "object"),
    }
)
_LIBRARIES = ("chumpy", "scipy")
"""Libraries whose objects keep arrays in their state."""


class PickleError(ValueError):
    """What is wrong with a pickle."""


class Name:
    """The name of a class or a function, which is never looked up."""

    __slots__ = ("name",)

    def __init__(self, module: str, name: str) -> None:
        if (module, name) not in _NAMES and module.split(".")[0] not in _LIBRARIES:
            raise PickleError(f"it holds {module}.{name}, which is not data")
        self.name = f"{module}.{name}"


class Call:
    """What a pickle wants called: with which arguments, and the state that the result would be given."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments, self.state = name, arguments, None


def read_pickle(path: Path) -> Any:
    """The object of a pickle: containers, numbers, bytes, text, :class:`Name` and :class:`Call`.

    Raises:
        PickleError: If it is damaged, of a later protocol, or names what is not data.
    """
    return _Reader(path.read_bytes()).read()


def as_text(value: Any) -> str | None:
    """Text, also that of Python 2; None for anything else."""
    return value.decode(_LATIN) if isinstance(value, bytes) else value if isinstance(value, str) else None


def as_array(value: Any) -> NDArray[Any] | None:
    """The array of numbers that a call would make; None if it is of another kind.

    Raises:
        PickleError: If its values do not fit its shape.
    """
    if not isinstance(value, Call) or not value.name.endswith(".multiarray._reconstruct"):
        return None
    state = value.state
    if not isinstance(state, tuple) or len(state) not in (4, 5):
        return None
    shape, kind, turned, data = state[-4:]
    dtype = _dtype(kind)
    data = _encoded(data)
    if dtype is None or not isinstance(data, bytes) or not isinstance(shape, tuple) or len(shape) > 32:
        return None
    if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise PickleError(f"it holds an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("=")).reshape(shape, order="F" if turned else "C")


def _dtype(value: Any) -> np.dtype[Any] | None:
    """The type of numbers that a call of ``numpy.dtype`` would make."""
    if not isinstance(value, Call) or value.name != "numpy.dtype" or not value.arguments:
        return None
    code = as_text(value.arguments[0]) or ""
    order = as_text(value.state[1]) if isinstance(value.state, tuple) and len(value.state) > 1 else "="
    if not re.fullmatch(r"[iu][1248]|f[248]", code) or order not in ("<", ">", "|", "="):
        return None
    return np.dtype(f"{order}{code}")


def _encoded(value: Any) -> Any:
    """The bytes that Python 3 writes into protocol 2 as ``_codecs.encode(text, "latin1")``."""
    if isinstance(value, Call) and value.name == "_codecs.encode" and value.arguments:
        text = value.arguments[0]
        return text.encode(_LATIN, "replace") if isinstance(text, str) else text
    return value


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        try:
            for _ in range(MAX_OPCODES):
                opcode = self.take(1)
                if opcode == b".":
                    return self.pop()
                action = _ACTIONS.get(opcode)
                if action is None:
                    raise PickleError(f"it has the opcode {opcode!r}, which data does not need")
                action(self)
        except PickleError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
            raise PickleError(f"it is damaged before byte {self.place} ({error})") from error
        raise PickleError(f"it holds more than {MAX_OPCODES} objects")

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self.content) - self.place:
            raise PickleError("it ends too early")
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def line(self) -> bytes:
        end = self.content.find(b"\n", self.place)
        if end < 0:
            raise PickleError("it ends too early")
        return self.take(end + 1 - self.place)[:-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("it is damaged: a mark is in the place of an object")
        return value

    def marked(self) -> list[Any]:
        """What lies above the last mark, which goes."""
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise PickleError("it is damaged: a mark is missing")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def pop_mark(self) -> None:
        self.marked()

    def duplicate(self) -> None:
        self.push(self.stack[-1])

    def integer(self) -> None:
        line = self.line()
        self.push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else _digits(line))

    def long(self) -> None:
        self.push(_digits(self.line().removesuffix(b"L")))

    def quoted(self) -> None:
        """Python 2's text, as ``repr`` writes it; bytes."""
        line = self.line().strip()
        if not re.fullmatch(rb"'.*'|\".*\"", line, re.DOTALL):
            raise PickleError("it is damaged: a text is not quoted")
        self.push(codecs.escape_decode(line[1:-1])[0])

    def append(self) -> None:
        value = self.pop()
        self.contained(list).append(value)

    def extend(self) -> None:
        values = self.marked()
        self.contained(list).extend(values)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.fill(self.contained(dict), [key, value])

    def set_items(self) -> None:
        values = self.marked()
        self.fill(self.contained(dict), values)

    def dictionary(self) -> None:
        found: dict[str, Any] = {}
        self.fill(found, self.marked())
        self.push(found)

    def contained(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise PickleError(f"it is damaged: something is put into what is no {kind.__name__}")
        return self.stack[-1]

    @staticmethod
    def fill(target: dict[str, Any], values: list[Any]) -> None:
        """Keys that are no text are left out: only arrays by their names are looked for."""
        for key, value in zip(values[::2], values[1::2]):
            name = as_text(key)
            if name is not None:
                target[name] = value

    def tuple_of(self, count: int) -> None:
        self.push(tuple(self.pop() for _ in range(count))[::-1])

    def named(self) -> None:
        module, name = self.line().decode(), self.line().decode()
        self.push(Name(module, name))

    def stacked_name(self) -> None:
        name, module = self.pop(), self.pop()
        self.push(Name(str(as_text(module)), str(as_text(name))))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise PickleError("it is damaged: something is called that has no name")
        self.push(Call(function.name, arguments))

    def build(self) -> None:
        state = self.pop()
        self.contained(Call).state = state


def _digits(text: bytes) -> int:
    if not re.fullmatch(rb"[+-]?\d{1,40}", text):
        raise PickleError(f"it is damaged: {text[:40]!r} is no whole number")
    return int(text)


def _pushed(value: Callable[[_Reader], Any]) -> Callable[[_Reader], None]:
    return lambda reader: reader.push(value(reader))


def _counted(code: str, decode: Callable[[bytes], Any]) -> Callable[[_Reader], None]:
    return _pushed(lambda reader: decode(reader.take(reader.number(code))))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _long(content: bytes) -> int:
    return int.from_bytes(content[:32], "little", signed=True)


_ACTIONS: dict[bytes, Callable[[_Reader], Any]] = {
    **{
        b"\x80": lambda reader: reader.take(1),
        b"\x95": lambda reader: reader.take(8),
        b"(": lambda reader: reader.push(_MARK),
        b"0": lambda reader: reader.stack.pop(),
        b"1": _Reader.pop_mark,
        b"2": _Reader.duplicate,
    },
    **{
        b"N": _pushed(lambda reader: None),
        b"\x88": _pushed(lambda reader: True),
        b"\x89": _pushed(lambda reader: False),
        b"I": _Reader.integer,
        b"L": _Reader.long,
        b"J": _pushed(lambda reader: reader.number("i")),
        b"K": _pushed(lambda reader: reader.number("B")),
        b"M": _pushed(lambda reader: reader.number("H")),
        b"\x8a": _counted("B", _long),
        b"\x8b": _counted("i", _long),
        b"F": _pushed(lambda reader: float(reader.line())),
        b"G": _pushed(lambda reader: struct.unpack(">d", reader.take(8))[0]),
    },
    **{
        b"S": _Reader.quoted,
        b"T": _counted("i", bytes),
        b"U": _counted("B", bytes),
        b"B": _counted("I", bytes),
        b"C": _counted("B", bytes),
        b"\x8e": _counted("Q", bytes),
        b"V": _pushed(lambda reader: reader.line().decode("raw-unicode-escape")),
        b"X": _counted("I", _text),
        b"\x8c": _counted("B", _text),
        b"\x8d": _counted("Q", _text),
    },
    **{
        b"]": _pushed(lambda reader: []),
        b"}": _pushed(lambda reader: {}),
        b")": _pushed(lambda reader: ()),
        b"l": _pushed(_Reader.marked),
        b"d": _Reader.dictionary,
        b"t": _pushed(lambda reader: tuple(reader.marked())),
        b"\x85": lambda reader: reader.tuple_of(1),
        b"\x86": lambda reader: reader.tuple_of(2),
        b"\x87": lambda reader: reader.tuple_of(3),
        b"a": _Reader.append,
        b"e": _Reader.extend,
        b"s": _Reader.set_item,
        b"u": _Reader.set_items,
    },
    **{
        b"p": lambda reader: reader.remember(_digits(reader.line())),
        b"q": lambda reader: reader.remember(reader.number("B")),
        b"r": lambda reader: reader.remember(reader.number("I")),
        b"\x94": lambda reader: reader.remember(len(reader.memo)),
        b"g": _pushed(lambda reader: reader.memo[_digits(reader.line())]),
        b"h": _pushed(lambda reader: reader.memo[reader.number("B")]),
        b"j": _pushed(lambda reader: reader.memo[reader.number("I")]),
    },
    **{
        b"c": _Reader.named,
        b"\x93": _Reader.stacked_name,
        b"R": _Reader.call,
        b"\x81": _Reader.call,
        b"b": _Reader.build,
    },
}
"""What each opcode does. No data needs persistent ids, registered extensions, old instances and sets."""
