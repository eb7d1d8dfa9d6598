from __future__ import annotations

from pathlib import Path

import pytest

from lightning_faces.records import write_atomic


def test_write_atomic_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.json"
    write_atomic(target, b"a long first content")
    assert write_atomic(target, b"short") == target
    assert target.read_bytes() == b"short"
    assert [p.name for p in target.parent.iterdir()] == ["file.json"]


def test_write_atomic_keeps_the_old_content_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_atomic(tmp_path / "file.json", b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("lightning_faces.records.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]
