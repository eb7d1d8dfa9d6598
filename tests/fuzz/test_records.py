"""Damaged and hostile records: each is read, or named in one sentence; nothing hangs, grows or ends the process.

Run as a program with a folder, a first and a last seed, it tries the inputs of these seeds and prints what went wrong.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_faces.errors import DataError
from lightning_faces.evaluation.aggregate import summarise
from lightning_faces.evaluation.records import _digest, write_record
from lightning_faces.evaluation.scores import units
from lightning_faces.leaderboard.collect import collect
from lightning_faces.leaderboard.page import to_html
from lightning_faces.leaderboard.rank import boards
from lightning_faces.leaderboard.text import print_boards, to_csv, to_markdown
from tests.evaluation.test_records import example

INPUTS = 5000
PARTS = 4
SLOWEST, MOST_MEMORY = 5.0, 10**9
VALUES: list[Any] = [
    None, True, -1, 0, 10**9, 10**18, 10**40, 0.5, 1e308, "", "x" * 10_000, "../../x", "=1", "[/b]", "\x1b[0m",
    "\ud800", [], {}, [[]], {"a": 1}, "NaN", -0.0, "nme", [1] * 10_000,
]  # fmt: skip


def write_good(folder: Path) -> Path:
    """A small record with all that one can have."""
    count = 12
    rng = np.random.default_rng(0)
    samples = {
        "index": np.arange(count), "sample_id": np.array([f"face{i}" for i in range(count)]),
        "yaw": np.linspace(-89, 89, count), "subject": np.full(count, -1), "invalid": np.zeros(count, dtype=bool),
        "nme": rng.random(count) / 10, "icp": rng.random(count) / 10,
        "faces": np.full((8, 24, 3), 128, dtype=np.uint8), "faces_row": np.array([0, 5, 11]),
    }  # fmt: skip
    metrics = summarise(samples, {**units(), "nme_mean": ("fraction", False)})
    record = example(
        dataset="Faces",
        prediction="stage_1",
        backbone="resnet18",
        invalid={"no face": 1},
        notes=["A note."],
        metrics=metrics,
    )
    return write_record(folder, "good", record, samples)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut off, inserted, removed or repeated."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if not changed:
            break
        at = rng.randrange(len(changed))
        kind = rng.randrange(6)
        if kind <= 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del changed[at : at + rng.randrange(1, 40)]
        elif kind == 4:
            changed[at:at] = rng.randbytes(rng.randrange(1, 40))
        else:
            changed[at:at] = changed[at : at + rng.randrange(1, 200)]
    return bytes(changed[: rng.randrange(len(changed) + 1)] if rng.random() < 0.15 else changed)


def with_other_values(content: Any, rng: random.Random) -> Any:
    """JSON content with a value, a name or a list's item replaced, somewhere."""
    if isinstance(content, dict) and content and rng.random() < 0.9:
        name = rng.choice(sorted(content))
        kind = rng.random()
        if kind < 0.05:
            return {key: value for key, value in content.items() if key != name}
        if kind < 0.1:
            return {**content, str(rng.choice(VALUES)): rng.choice(VALUES)}
        return {**content, name: with_other_values(content[name], rng)}
    if isinstance(content, str) and rng.random() < 0.7:
        return rng.choice([value for value in VALUES if isinstance(value, str)])
    if isinstance(content, (int, float)) and not isinstance(content, bool) and rng.random() < 0.5:
        return content * rng.choice((-1, 1e300, 1e-300, 10**12)) if abs(content) < 1e6 else -content
    return rng.choice(VALUES)


def with_damaged_member(data: bytes, rng: random.Random) -> bytes:
    """An archive that is whole, with one member damaged before it was packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as made:
        names = archive.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = archive.read(name)
            if name == chosen:
                head = content[:128]
                if rng.random() < 0.4:
                    content = flipped(head, rng) + content[128:]
                else:
                    at = rng.randrange(128, len(content))
                    content = content[:at] + rng.randbytes(1) + content[at + 1 :]
                if rng.random() < 0.2:
                    content = content.replace(b"(12,)", b"(99999999999,)")
            made.writestr(name, content)
    return buffer.getvalue()


def damage(path: Path, seed: int) -> None:
    """Change a record or its samples; often signed anew, as a program would that means harm."""
    rng = random.Random(seed)
    content = json.loads(path.read_text())
    samples = path.with_name(content["samples_file"])
    kind = seed % 5
    if kind == 0:
        path.write_bytes(flipped(path.read_bytes(), rng))
        return
    if kind == 1:
        samples.write_bytes(flipped(samples.read_bytes(), rng))
        return
    content["weights"] = "of another run"
    if kind == 2:
        for _ in range(rng.choice((1, 1, 3))):
            content = with_other_values(content, rng)
    else:
        change = flipped if kind == 3 else with_damaged_member
        data = change(samples.read_bytes(), rng)
        samples.write_bytes(data)
        content["samples_sha256"] = hashlib.sha256(data).hexdigest()
    if isinstance(content, dict):
        content["digest"] = _digest(content)
    path.write_text(json.dumps(content))


def show(folder: Path) -> None:
    """All that the command does with what is below a folder."""
    from rich.console import Console

    entries, problems = collect([folder])
    assert any(entry.path.parents[1].name == "good" for entry in entries)
    assert all(len(problem) < 2000 for problem in problems)
    if len(entries) == 1:
        return
    found = boards(entries)
    print_boards(Console(file=io.StringIO(), width=80), found)
    for text in (to_csv(found, None), to_markdown(found, problems), to_html(found, problems)):
        text.encode()


def run(folder: Path, first: int, last: int) -> list[str]:
    """Try the inputs of some seeds; returns a line for each that went wrong."""
    wrong = []
    good = write_good(folder / "good" / "records")
    whole = {path.name: path.read_bytes() for path in good.parent.iterdir()}
    records = folder / "bad" / "records"
    records.mkdir(parents=True)
    for seed in range(first, last):
        for name, data in whole.items():
            (records / name).write_bytes(data)
        damage(records / good.name, seed)
        started = time.monotonic()
        try:
            show(folder)
        except Exception as error:
            wrong.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
        if time.monotonic() - started > SLOWEST:
            wrong.append(f"seed {seed}: {time.monotonic() - started:.1f} s")
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_record_takes_the_board_down(part: int, tmp_path: Path) -> None:
    each = INPUTS // PARTS
    command = [sys.executable, "-m", __name__, str(tmp_path), str(part * each), str((part + 1) * each)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr[-2000:]


def test_the_first_inputs_of_each_kind(tmp_path: Path) -> None:
    assert run(tmp_path, 0, 60) == []


def test_a_bad_record_is_named_and_the_good_one_shown(tmp_path: Path) -> None:
    write_good(tmp_path / "good" / "records")
    path = write_good(tmp_path / "bad" / "records")
    damage(path, 1)
    entries, problems = collect([tmp_path])
    assert [entry.path.parents[1].name for entry in entries] == ["good"]
    assert len(problems) == 1
    assert "bad/records/good" in problems[0]
    assert issubclass(DataError, ValueError)


if __name__ == "__main__":
    for line in run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
        print(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if peak > MOST_MEMORY:
        print(f"{peak:,} bytes of memory")
