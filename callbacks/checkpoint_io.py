"""Checkpoints that are whole or absent, and finding the newest whole one."""

from __future__ import annotations

import os
import secrets
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs it to the disk and renames it.

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


def is_whole(path: Path) -> bool:
    """Whether a checkpoint can be read to its end: all its parts are there and their checksums fit."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, OSError):
        return False


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
