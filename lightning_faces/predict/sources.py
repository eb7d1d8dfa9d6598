"""Which photographs and videos a command line names."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from datamodules.components.files import walk_files
from datamodules.components.images import IMAGE_SUFFIXES
from datamodules.components.video import VIDEO_SUFFIXES
from lightning_faces.errors import ConfigurationError


@dataclass(frozen=True)
class Source:
    """A photograph or video.

    Attributes:
        path: Its file.
        name: What its outputs are called: the path below the folder that was named, or the file's name.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the name is that of a video."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(inputs: Sequence[str], out: Path) -> list[Source]:
    """The photographs and videos that files, folders and patterns name.

    Args:
        inputs: Files of any name, folders (with all below), and patterns with ``*``, ``?``, ``[...]`` or ``**``.
        out: Folder of the predictions, in which nothing is looked for.

    Raises:
        ConfigurationError: If an input names nothing, or two files would have the same name.
    """
    found: dict[str, Source] = {}
    for given in inputs:
        sources = [source for source in _sources(given) if not _below(source.path, out)]
        if not sources:
            raise ConfigurationError(
                f"There is no photograph or video {given}: check the path (read are "
                f"{', '.join(sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES))})."
            )
        for source in sources:
            other = found.setdefault(source.name, source)
            if other.path != source.path:
                raise ConfigurationError(
                    f"{other.path} and {source.path} would both be called {source.name}: give the folder that they "
                    "have in common instead."
                )
    return list(found.values())


def _sources(given: str) -> list[Source]:
    path = Path(given).expanduser()
    if path.is_dir():
        files = walk_files(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        return [Source(file, file.relative_to(path).as_posix()) for file in files]
    if path.is_file():
        return [Source(path, path.name)]
    if not glob.has_magic(str(path)):
        return []
    base = _plain_part(path)
    files = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207 - takes any path
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return [
        Source(file, file.relative_to(base).as_posix())
        for file in files
        if file.is_file() and file.suffix.lower() in known
    ]


def _plain_part(pattern: PurePath) -> Path:
    """The folder before the first part of a pattern that is one."""
    plain = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        plain.append(part)
    return Path(*plain)


def _below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())
