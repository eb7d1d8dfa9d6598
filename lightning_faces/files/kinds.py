"""What a file that was given by mistake is, in two or three words for a message."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile, ZipFile

BEGINNINGS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML file",
    b"\x89png": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"gif8": "a GIF picture",
    b"%pdf": "a PDF document",
    b"\x93numpy": "a NumPy array",
    b"\x89hdf": "an HDF5 file",
    b"matlab ": "a MATLAB file",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"rar!": "a RAR archive",
    b"bzh": "a bzip2 archive",
    b"\xfd7zxz": "an xz archive",
    b"sqlite format": "an SQLite database",
    b"version https://git-lfs": "a pointer of Git LFS (run git lfs pull)",
}
"""First bytes in lower case to a description."""
TEXTS = {
    ".json": "a JSON file",
    ".yaml": "a YAML file",
    ".yml": "a YAML file",
    ".csv": "a table",
    ".md": "a Markdown document",
    ".py": "a Python file",
    ".html": "a web page",
    ".htm": "a web page",
    ".toml": "a TOML file",
}
"""Ending of a file of text to a description."""


def what_it_is(path: Path) -> str | None:
    """What a file is by its first bytes, and for text by its name; None where they do not tell.

    Args:
        path: The file.

    Example:
        >>> _ = Path("board.html").write_text("<!DOCTYPE html><title>Board</title>")
        >>> what_it_is(Path("board.html"))
        'a web page'
    """
    if path.is_dir():
        return "a folder"
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return None
    if not head:
        return "an empty file"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, kind in BEGINNINGS.items():
        if start.startswith(beginning):
            return kind
    if head.startswith(b"PK"):
        return _what_archive(path)
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in range(1, 6):
        return "a pickle, which is not read as it can run code"
    if b"\0" not in head and _is_text(head):
        return TEXTS.get(path.suffix.lower()) or ("a JSON file" if start[:1] == b"{" else "a text file")
    return None


def _is_text(head: bytes) -> bool:
    try:
        # The last character may be cut in two.
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and len(head) == 512
    return True


def _what_archive(path: Path) -> str | None:
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive"
    if any(name.endswith("/data.pkl") for name in names):
        return None
    return "a zip archive"
