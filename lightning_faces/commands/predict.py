"""``lightning-faces predict``: the faces of photographs and videos, with landmarks, pose, meshes and pictures."""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from lightning_faces.errors import ConfigurationError
from lightning_faces.files.owner import Owner
from lightning_faces.files.plain_text import printable
from lightning_faces.predict.detection import read_box_file
from lightning_faces.predict.folder import Boxes, FolderRun, Summary
from lightning_faces.predict.journal import FILE, Journal
from lightning_faces.predict.outputs import OUTPUTS, check_kinds
from lightning_faces.predict.predictor import load
from lightning_faces.predict.sources import Source, find_sources
from lightning_faces.predict.video_files import predict_video

SECONDS = 10.0
"""Between two lines that say how far it is, where there is no terminal."""


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: Those after the command's name.

    Returns:
        0, or 1 if a photograph or video was skipped.

    Raises:
        ConfigurationError: If an argument is wrong, or the folder cannot be written to.
        DataError: If the checkpoint or the boxes cannot be used.
    """
    options = _parser().parse_args(arguments)
    if options.batch < 1:
        raise ConfigurationError(f"--batch is {options.batch}; it must be at least 1.")
    out = Path(options.out).expanduser()
    kinds = check_kinds(options.write)
    sources = find_sources(options.inputs, out)
    boxes, digest = _boxes(options.boxes, sources)
    extra = {} if options.face_model is None else {"face_model": options.face_model}
    predictor = load(options.checkpoint, device=options.device, margin=options.margin, **extra)
    owner = _claim(out)
    try:
        journal = Journal(out)
        with Counter(len(sources)) as counter:
            run = FolderRun(predictor, out, kinds, boxes, options.batch, counter, digest)
            run.run([source for source in sources if not source.is_video], journal)
            for source in sources:
                if source.is_video:
                    predict_video(run, source, journal)
        journal.close()
    finally:
        owner.release()
    print(sentence(run.summary, out))
    return 1 if run.summary.skipped else 0


def sentence(summary: Summary, out: Path) -> str:
    """What a run did, in one line."""
    parts = [f"{summary.photographs:,} predicted"]
    if summary.earlier:
        parts[0] += f" ({summary.earlier:,} by an earlier run)"
    parts.append(f"{summary.faces:,} faces" + (f" ({summary.doubted:,} not believed)" if summary.doubted else ""))
    if summary.skipped:
        reasons = ", ".join(f"{count:,} {kind}" for kind, count in sorted(summary.skipped.items()))
        parts.append(f"{sum(summary.skipped.values()):,} skipped ({reasons})")
    return f"{', '.join(parts)}: {out / FILE}"


class Counter:
    """How far it is: a bar in a terminal, else a line now and then.

    Args:
        total: Number of photographs and videos.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Bar(*columns, console=self.console, transient=True) if self.console.is_terminal else None
        self.task = self.bar.add_task("predict", total=total) if self.bar else None
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> Counter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, count: int = 1) -> None:
        """So many photographs more are done."""
        self.done += count
        now = time.monotonic()
        if self.bar and self.task is not None:
            self.bar.advance(self.task, count)
        elif now - self.printed >= SECONDS and self.done < self.total:
            self.printed = now
            left = int((self.total - self.done) * (now - self.began) / self.done)
            print(
                f"{self.done:,} of {self.total:,}, {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left",
                flush=True,
            )

    def say(self, line: str) -> None:
        """Show a line."""
        self.console.print(Text(printable(line)))


def _boxes(given: str | None, sources: Sequence[Source]) -> tuple[Boxes | None, str]:
    """Boxes of a file, and which they are."""
    if given is None:
        return None, ""
    path = Path(given).expanduser()
    boxes = read_box_file(path)
    names = {source.name for source in sources}
    unknown = sorted({name for name, _ in boxes} - names)
    if unknown:
        raise ConfigurationError(
            f"{path} has a box for {unknown[0]!r}, which is none of the photographs (such as {min(names)!r}): name "
            "each by its path below the folder that is predicted, or by its file's name."
        )
    return boxes, hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _claim(out: Path) -> Owner:
    """Make the folder, and make it this process's own."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(out))
        return Owner(out, "predict", "--out")
    except OSError as error:
        raise ConfigurationError(
            f"--out is {out}, which cannot be written ({error.strerror}): choose another folder."
        ) from error


def _parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {name:<10} {row.help}" for name, row in OUTPUTS.items())
    parser = argparse.ArgumentParser(
        prog="lightning-faces predict",
        description="Find the faces of photographs and videos, and write their landmarks, pose, meshes and pictures.",
        epilog=f"kinds of files:\n{kinds}\n\nThe exit code is 1 if a photograph or video was skipped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="photograph, video, folder, or pattern such as '*.jpg'"
    )
    parser.add_argument("--out", default="faces", help="folder to write to (default: faces); a rerun goes on there")
    parser.add_argument("--checkpoint", help="a .ckpt file, or a name of weights (default: those of the installation)")
    parser.add_argument(
        "--boxes", metavar="FILE", help="boxes instead of a detector's: .csv (file, x0, y0, x1, y1) or .json"
    )
    parser.add_argument("--write", nargs="+", metavar="KIND", help="kinds of files to write (default: all)")
    parser.add_argument("--device", default="cpu", help="where the network runs: cpu (default), cuda, cuda:1")
    parser.add_argument("--batch", type=int, default=8, help="photographs that are predicted together (default: 8)")
    parser.add_argument("--margin", type=float, help="crop over box, for checkpoints of earlier versions (else 1.3)")
    parser.add_argument(
        "--face-model", help="name or path of the face model, for a checkpoint made with one of your own"
    )
    return parser
