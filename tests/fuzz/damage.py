"""Damaged files, read in a process that they may end: what came of each is counted."""

from __future__ import annotations

import multiprocessing
import resource
import signal
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

import numpy as np

from lightning_faces.errors import LightningFacesError

SECONDS = 5
"""Of computing; the machine may be busy with other things."""
PATIENCE = 90
BYTES = 10**9

Reader = Callable[[Path], object]


class HangError(BaseException):
    """Raised in whatever runs for too long."""


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A cut, a few other bytes (often among the first, where headers are), a number made huge, or bytes twice."""
    kind = rng.integers(8)
    if kind == 0:
        return content[: rng.integers(len(content) + 1)]
    values = np.frombuffer(content, np.uint8).copy()
    end = len(values) if kind % 2 else min(len(values), 600)
    if kind < 5:
        values[rng.integers(end, size=rng.integers(1, 6))] = rng.integers(256)
    elif kind == 5:
        start = rng.integers(end)
        values[start : start + rng.integers(1, 9)] = rng.choice([0x00, 0x7F, 0xFF])
    elif kind == 6:
        values[rng.integers(end)] ^= 1 << rng.integers(8)
    else:
        start, length = rng.integers(end), rng.integers(1, 64)
        return bytes(values[: start + length]) + bytes(values[start:])
    return values.tobytes()


def outcomes(reader: Reader, source: Path, count: int, seed: int = 0) -> Counter[str]:
    """What reading damaged copies of a file comes to.

    Args:
        reader: Reads the file at its own place; a function of a module, which another process can import.
        source: A good file; its copies take its place.
        count: How many.
        seed: Of the damage.

    Returns:
        How many were "read", "named" by an error of ours that says the file or its folder, "unnamed", or ended the
        process by a "signal"; and in how many it took more than 5 s of computing ("hang") or a gigabyte ("memory").
    """
    counts: Counter[str] = Counter()
    context = multiprocessing.get_context("forkserver")  # Imports are paid for once.
    context.set_forkserver_preload([reader.__module__])
    next_one = 0
    while next_one < count:
        here, there = context.Pipe()
        process = context.Process(target=_work, args=(there, reader, source, next_one, count, seed))
        process.start()
        there.close()
        try:
            while here.poll(PATIENCE):
                for outcome in here.recv():
                    counts[outcome] += 1
                next_one += 1
            counts[f"hang {next_one}"] += 1
            process.kill()
        except EOFError:
            process.join()
            if process.exitcode:
                counts[f"signal {process.exitcode} {next_one}"] += 1
        next_one += 1
        process.join()
    return counts


def _work(results: Connection, reader: Reader, source: Path, start: int, count: int, seed: int) -> None:
    content = source.read_bytes()
    signal.signal(signal.SIGPROF, _interrupt)
    for number in range(start, count):
        source.write_bytes(damaged(content, np.random.default_rng((seed, number))))
        before = _memory()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        found = []
        try:
            reader(source)
            found.append("read")
        except LightningFacesError as error:
            named = source.name in str(error) or str(source.parent) in str(error)
            found.append("named" if named else f"unnamed {number}: {error}")
        except HangError:
            found.append(f"hang {number}")
        except Exception as error:  # Whatever it is, it is counted.
            found.append(f"unnamed {number}: {type(error).__name__}: {error}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if _memory() - before > BYTES:
            found.append(f"memory {number}")
        results.send(found)
    source.write_bytes(content)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise HangError


def _memory() -> int:
    """The most that this process and its children have taken so far, bytes."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
