from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_faces.errors import DataError
from lightning_faces.files import write_atomic
from lightning_faces.evaluation.records import (
    RECORD_VERSION,
    MetricValue,
    Record,
    Speed,
    Training,
    _digest,
    read_record,
    read_samples,
    write_record,
)


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

    monkeypatch.setattr("lightning_faces.evaluation.records.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def example(**changes: Any) -> Record:
    """A record with made-up numbers."""
    record = Record(
        version=RECORD_VERSION,
        method="Zhao2016",
        run="quickstart/zhao",
        parameters=1000,
        weights="a1",
        config="c1",
        dataset="AFLW2000-3D",
        split="test",
        fingerprint="f1",
        image_size=96,
        margin=1.3,
        protocol={"samples": "4 of 4"},
        metrics={"nme": MetricValue(0.05, 0.04, 0.06, 4, "fraction", False)},
        samples_file="",
        samples_sha256="",
        training=Training(1000, 3, 0, True),
        speed=Speed(100.0, 32, "CPU", 1, 10**8),
        git_commit=None,
        packages={"torch": "2.11.0"},
        created="2026-01-01T00:00:00+00:00",
    )
    return replace(record, **changes)


SAMPLES = {
    "index": np.arange(4),
    "nme": np.array([0.03, 0.04, 0.06, np.nan]),
    "sample_id": np.array(["a", "b", "c", "d"]),
}


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = write_record(tmp_path, "a-test", example(), SAMPLES)
    record = read_record(path)
    assert record == example(samples_file=record.samples_file, samples_sha256=record.samples_sha256)
    samples = read_samples(path, record)
    assert samples["sample_id"].tolist() == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(samples["nme"], SAMPLES["nme"])


def test_a_second_record_of_the_name_replaces_the_first_and_its_samples(tmp_path: Path) -> None:
    write_record(tmp_path, "a-test", example(), SAMPLES)
    write_record(tmp_path, "a-test", example(parameters=7), {**SAMPLES, "nme": np.zeros(4)})
    other = write_record(tmp_path, "b-test", example(), SAMPLES)
    assert read_record(tmp_path / "a-test.json").parameters == 7
    assert len(list(tmp_path.iterdir())) == 4
    read_record(other)


def test_a_value_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    broken = {"nme": MetricValue(float("nan"), 0.0, 0.0, 1, "fraction", False)}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path, "a", example(metrics=broken), SAMPLES)
    assert not (tmp_path / "a.json").exists()


def edit(path: Path, sign: bool = False, **changes: Any) -> None:
    """Change a record's file; with ``sign``, as another program would that knows how to make the digest."""
    content = {**json.loads(path.read_text()), **changes}
    if sign:
        content["digest"] = _digest(content)
    path.write_text(json.dumps(content))


def test_every_kind_of_bad_record_is_named_with_its_file(tmp_path: Path) -> None:
    path = write_record(tmp_path, "a-test", example(), SAMPLES)
    good = path.read_text()

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=f"a-test.*{message}"):
            read_record(path)
        path.write_text(good)

    path.write_text(good[: len(good) // 2])
    refused("not a whole JSON file")
    path.write_text("[1, 2]")
    refused("not an evaluation record")
    edit(path, version=0)
    refused("version 0")
    edit(path, parameters=999)
    refused("changed after it was written")
    edit(path, sign=True, surprise=1)
    refused(r"fields \(surprise\)")
    edit(path, sign=True, parameters="many")
    refused("parameters is 'many', not a finite int")
    edit(path, sign=True, metrics={"nme": {"value": 0.1}})
    refused("nme has missing or unknown fields")
    edit(path, sign=True, speed={**json.loads(good)["speed"], "images_per_second": True})
    refused("images_per_second is True")
    samples = tmp_path / json.loads(good)["samples_file"]
    data = samples.read_bytes()
    samples.write_bytes(data[:-10])
    refused("is not the file that was written with")
    samples.unlink()
    refused("lacks its per-sample file")


def test_a_picture_of_another_shape_is_named(tmp_path: Path) -> None:
    path = write_record(tmp_path, "a-test", example(), {**SAMPLES, "faces": np.zeros((3, 20, 20, 3), dtype=np.uint8)})
    with pytest.raises(DataError, match=r"picture `faces` of shape \(3, 20, 20, 3\), not \[H, W, 3\]: evaluate again"):
        read_samples(path, read_record(path))
