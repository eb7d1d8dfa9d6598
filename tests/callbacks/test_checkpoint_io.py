from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks import AtomicCheckpointIO
from callbacks.checkpoint_io import is_whole, newest_whole


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.arange(3)}, path)
    save = torch.save

    def fail_half_way(value: Any, file: Any) -> None:
        save(value, file)
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(3)}, path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["x"], torch.arange(3))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_newest_whole_passes_over_damage_at_any_place(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "absent") == (None, [])
    io = AtomicCheckpointIO()
    for age, name in enumerate(("old", "truncated", "flipped", "empty")):
        io.save_checkpoint({"x": torch.full((1000,), float(age))}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", ns=(age, age))
    whole = (tmp_path / "old.ckpt").read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "flipped": whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:],
        "empty": b"",
    }
    for age, (name, content) in enumerate(damaged.items()):
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        os.utime(path, ns=(age + 1, age + 1))
        assert not is_whole(path)
    found, broken = newest_whole(tmp_path)
    assert found == tmp_path / "old.ckpt"
    assert [p.stem for p in broken] == ["empty", "flipped", "truncated"]


def test_files_that_a_checkpoint_names_are_not_the_runs_own(tmp_path: Path) -> None:
    """A training that goes on deletes the best checkpoint of before: only one that lies beside the checkpoint."""
    best, outside = tmp_path / "best.ckpt", tmp_path.parent / "precious.ckpt"
    for path in (str(outside), f"{tmp_path}/../precious.ckpt", f"{tmp_path}/notes.txt", "best.ckpt", 3):
        state = {
            "best_model_path": path, "kth_best_model_path": path, "last_model_path": str(best),
            "best_k_models": {path: 1.0, str(best): 2.0}, "best_model_score": 0.5,
        }  # fmt: skip
        AtomicCheckpointIO().save_checkpoint({"callbacks": {"Best": state, "Other": 3}}, tmp_path / "last.ckpt")
        read = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["callbacks"]["Best"]
        assert (read["best_model_path"], read["kth_best_model_path"]) == ("", "")
        assert read["last_model_path"] == str(best)
        assert read["best_k_models"] == {str(best): 2.0}
        assert read["best_model_score"] == 0.5
