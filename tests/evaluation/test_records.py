from __future__ import annotations

import hashlib
import json
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_faces.errors import DataError
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
from lightning_faces.files import write_atomic


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

    monkeypatch.setattr("lightning_faces.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def example(**changes: Any) -> Record:
    """A record with made-up numbers."""
    record = Record(
        version=RECORD_VERSION,
        method="Zhao2016",
        prediction="",
        run="quickstart/zhao",
        backbone=None,
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
        invalid={},
        notes=[],
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
    "yaw": np.array([0.0, 40.0, -70.0, np.nan]),
    "subject": np.full(4, -1),
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


def test_a_record_of_version_1_is_read(tmp_path: Path) -> None:
    path = write_record(tmp_path, "a-test", example(), SAMPLES)
    content = json.loads(path.read_text())
    for new in ("prediction", "backbone", "invalid", "notes"):
        del content[new]
    content["version"] = 1
    content["digest"] = _digest(content)
    path.write_text(json.dumps(content))
    record = read_record(path)
    assert (record.version, record.prediction, record.backbone, record.invalid, record.notes) == (1, "", None, {}, [])
    assert record.metrics == example().metrics
    # A version 2 without them is not whole, and 3 is of a later program.
    for version, message in ((2, r"fields \(backbone, invalid, notes, prediction\)"), (3, "version 3")):
        edit(path, sign=True, version=version)
        with pytest.raises(DataError, match=message):
            read_record(path)


def test_predictions_and_weights_tell_records_apart() -> None:
    assert example(prediction="stage_1").key() != example(prediction="stage_2").key()
    assert example(run="elsewhere").key() == example().key()


def test_an_archive_that_claims_10_billion_values_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = write_record(tmp_path, "a-test", example(), SAMPLES)
    samples = tmp_path / read_record(path).samples_file
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000,), }\n"
    with zipfile.ZipFile(samples, "w") as archive:
        archive.writestr("nme.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    edit(path, sign=True, samples_sha256=hashlib.sha256(samples.read_bytes()).hexdigest())
    tracemalloc.start()
    with pytest.raises(DataError, match=rf"{samples.name} is not a whole .*10000000000.* in 0 bytes.*evaluate again"):
        read_samples(path, read_record(path))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_file": "../secret.npz"}, "names '../secret.npz' as its per-sample file"),
        ({"samples_file": "/etc/passwd"}, "names '/etc/passwd'"),
        ({"samples_file": "a\\b.npz"}, "per-sample file"),
        ({"samples_file": "a\0.npz"}, "per-sample file"),
        ({"samples_file": "x" * 3000 + ".npz"}, "cannot be read|lacks its per-sample file"),
        ({"prediction": "../x"}, "prediction is '../x'"),
        ({"parameters": 10**30}, "parameters is a number of 31 digits"),
        ({"margin": 10**400}, "margin is a number of 401 digits"),
        ({"method": "x" * 5000}, "method has 5,000 characters"),
        ({"notes": ["a"] * 5000}, "notes is not a list of at most 4000"),
        ({"notes": "text"}, "notes is not a list"),
        ({"invalid": {"why": "many"}}, "why is 'many', not a finite int"),
        ({"version": True}, "version True"),
        ({"version": None}, "version None"),
        ({"version": [[[]]]}, "version"),
    ],
)
def test_values_that_no_record_has_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write_record(tmp_path, "a-test", example(), SAMPLES)
    edit(path, sign=True, **changes)
    with pytest.raises(DataError, match=message):
        read_record(path)


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe{", b"[" * 100_000, b'{"version": ' + b"9" * 5000 + b"}", b"", b"null", b'{"a": NaN', b"\x00" * 50],
)
def test_a_json_file_of_any_kind_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"a\.json"):
        read_record(path)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.json is no file"):
        read_record(path)
    with path.open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(DataError, match="more than 16,777,216 bytes"):
        read_record(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"yaw": None}, "no array yaw"),
        ({"index": np.array([0, 1, 1, 2])}, "order of their index"),
        ({"index": np.zeros((4, 4), dtype=np.int64)}, "no array index"),
        ({"nme": np.array([0.1, 0.2, np.inf, 0.3])}, "infinite values in 'nme'"),
        ({"nme": np.zeros(3)}, "'nme' that is no column of errors"),
        ({"subject": np.zeros(4)}, "no array subject"),
        ({"faces": np.zeros((0, 4, 3), dtype=np.uint8)}, "picture `faces` of shape"),
        ({"faces": np.zeros((4, 9000, 3), dtype=np.uint8)}, "picture `faces` of shape"),
        ({"faces": np.zeros((4, 4, 3), dtype=np.uint8), "faces_row": np.array([0, 1, 4])}, "faces_row"),
        ({"faces": np.zeros((4, 4, 3), dtype=np.uint8)}, "faces_row"),
    ],
)
def test_arrays_that_do_not_belong_together_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    samples = {key: value for key, value in {**SAMPLES, **changes}.items() if value is not None}
    path = write_record(tmp_path, "a-test", example(), samples)
    with pytest.raises(DataError, match=message):
        read_samples(path, read_record(path))
