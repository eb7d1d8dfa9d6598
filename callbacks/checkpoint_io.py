"""Checkpoints that are whole or absent, and finding the newest whole one."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lightning_faces.methods.torch_file import is_whole, read_torch_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs it to the disk and renames it; reads one as data.

    Lightning stages checkpoints in the system's temporary folder and moves them, which is a copy between file systems:
    a process killed in the middle leaves a truncated checkpoint under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Save ``checkpoint`` as ``path``; the file has its old content or the new one, and never a part."""
        if storage_options is not None:
            raise TypeError("AtomicCheckpointIO writes to local files and takes no storage_options.")
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint as data, with tensors on the CPU; it may be anyone's."""
        path = Path(path)
        checkpoint: dict[str, Any] = read_torch_file(path)
        states = checkpoint.get("callbacks") if isinstance(checkpoint, dict) else None
        for state in states.values() if isinstance(states, dict) else []:
            forget_other_files(state, path.absolute().parent)
        return checkpoint


def forget_other_files(state: Any, folder: Path) -> None:
    """Take out of a checkpoint callback's state the files that do not lie beside the checkpoint.

    A training that goes on deletes the checkpoints that are no longer the best ones: never those that a file names.
    """
    if not isinstance(state, dict):
        return

    def ours(value: Any) -> bool:
        return isinstance(value, str) and Path(value) == folder / Path(value).name and value.endswith(".ckpt")

    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if key in state and not ours(state[key]):
            state[key] = ""
    if isinstance(state.get("best_k_models"), dict):
        state["best_k_models"] = {path: score for path, score in state["best_k_models"].items() if ours(path)}


def newest_whole(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint of a folder.

    Args:
        folder: Where the ``.ckpt`` files are; it need not exist.

    Returns:
        The checkpoint, or None if there is none, and the newer ones that are damaged.
    """
    damaged: list[Path] = []
    for path in sorted(folder.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        if is_whole(path):
            return path, damaged
        damaged.append(path)
    return None, damaged
