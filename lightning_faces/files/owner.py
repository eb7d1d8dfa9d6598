"""One folder has one owner: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import IO

from lightning_faces.errors import ConfigurationError

OWNER_FILE = ".owner"
"""Locked by the process that writes into the folder."""


class Owner:
    """This process as the owner of a folder.

    Args:
        folder: An existing folder.
        purpose: What for, for the message that another process gets.
        option: What that process may choose another of.

    Raises:
        ConfigurationError: If another process owns it.
    """

    def __init__(self, folder: Path, purpose: str, option: str = "--name") -> None:
        self.path = folder / OWNER_FILE
        self._file: IO[str] | None = None
        while self._file is None:
            file = self.path.open("a+")
            try:
                # Unlike flock, it is not inherited by loader processes, which may outlive a killed training.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(self._held(file, folder, option)) from None
            # The last owner may have removed the file between the two calls.
            if self._is(file):
                self._file = file
        self._file.truncate(0)
        self._file.write(json.dumps({"process": os.getpid(), "machine": socket.gethostname(), "purpose": purpose}))
        self._file.flush()

    def _is(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    @staticmethod
    def _held(file: IO[str], folder: Path, option: str) -> str:
        file.seek(0)
        try:
            owner = json.loads(file.read(1000))
            who = f"process {int(owner['process'])} on {str(owner['machine'])[:60]} ({str(owner['purpose'])[:20]})"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        finally:
            file.close()
        shown = os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)
        return f"{shown} is in use by {who}: wait for it or stop it, or choose another {option}."

    def release(self) -> None:
        """Let others have the folder."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
