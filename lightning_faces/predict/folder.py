"""Prediction on any number of photographs into a folder, so that what cannot be used is named and the rest goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_faces.errors import DataError
from lightning_faces.predict.journal import Journal
from lightning_faces.predict.meshes import FaceMeshes
from lightning_faces.predict.outputs import PredictedPhotograph, write_outputs
from lightning_faces.predict.predictor import RECROPS, FacePredictor, FoundFace, open_photograph
from lightning_faces.predict.sources import Source
from lightning_faces.predict.values import FaceCompleter

FORMAT = 1
"""Version of a line of ``predictions.jsonl``."""
MOST_PIXELS = 24_000_000
"""Pixels of the photographs that are in memory together, but for one larger one."""
NO_FACE, UNREADABLE, NOT_WRITTEN = "without a face", "not readable", "not written"
Boxes = Mapping[tuple[str, int], NDArray[np.float64]]


class Progress(Protocol):
    """Says how far it is."""

    def advance(self, count: int = 1) -> None:
        """So many photographs more are done."""
        ...

    def say(self, line: str) -> None:
        """Show a line."""
        ...


@dataclass
class Summary:
    """What a run did.

    Attributes:
        photographs: Photographs and videos that have faces, those of an earlier run included.
        earlier: Of these, those that an earlier run had done.
        faces: Faces that this run found.
        doubted: Of these, those that are not believed.
        skipped: For each reason, how many were skipped.
    """

    photographs: int = 0
    earlier: int = 0
    faces: int = 0
    doubted: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


@dataclass
class _Read:
    source: Source
    stat: os.stat_result
    image: NDArray[np.uint8]


class FolderRun:
    """Predicts photographs into a folder.

    Args:
        predictor: What predicts.
        out: The folder of the predictions; it exists.
        kinds: Kinds of files to write.
        boxes: Boxes that take the detector's place, by name and frame; None asks the detector.
        batch: Photographs whose faces go through the network together.
        progress: Is told how far it is.
        boxes_digest: Which boxes they are, for the settings.
    """

    def __init__(
        self,
        predictor: FacePredictor,
        out: Path,
        kinds: Sequence[str],
        boxes: Boxes | None,
        batch: int,
        progress: Progress,
        boxes_digest: str = "",
    ) -> None:
        self.predictor, self.out, self.kinds, self.boxes = predictor, out, list(kinds), boxes
        self.batch, self.progress = batch, progress
        self.completer = FaceCompleter(predictor.method)
        self.meshes = FaceMeshes(self.completer.model)
        self.summary = Summary()
        detector = predictor.detector
        settings = {
            "format": FORMAT, "weights": predictor.digest, "margin": predictor.crop.margin, "box": predictor.crop.box,
            "recrops": RECROPS, "face_model": self.completer.model.hash, "write": self.kinds,
            "detector": boxes_digest if boxes is not None else getattr(detector, "name", type(detector).__name__),
        }  # fmt: skip
        self.settings = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]

    def run(self, sources: Sequence[Source], journal: Journal) -> Summary:
        """Predict photographs; those that the journal has with the same settings are not predicted again.

        Args:
            sources: Photographs.
            journal: Of the folder.
        """
        waiting: list[_Read] = []
        for read in self._open(sources, journal):
            pixels = sum(each.image.size // 3 for each in waiting)
            if waiting and pixels + read.image.size // 3 > MOST_PIXELS:
                self._predict(waiting, journal)
                waiting = []
            waiting.append(read)
            if len(waiting) == self.batch:
                self._predict(waiting, journal)
                waiting = []
        if waiting:
            self._predict(waiting, journal)
        return self.summary

    def _open(self, sources: Sequence[Source], journal: Journal) -> Iterator[_Read]:
        for source in sources:
            stat = self.to_do(source, journal)
            if stat is None:
                continue
            if self.boxes is not None and not len(self.boxes.get((source.name, -1), ())):
                self.skip(source, NO_FACE, f"{source.path} has no box.", journal)
                continue
            try:
                image = open_photograph(source.path)
            except DataError as error:
                self.skip(source, UNREADABLE, str(error), journal)
                continue
            yield _Read(source, stat, image)

    def to_do(self, source: Source, journal: Journal) -> os.stat_result | None:
        """Size and time of a file; None if it cannot be read, or was done with the same settings, which is counted."""
        try:
            stat = source.path.stat()
        except OSError as error:
            self.skip(source, UNREADABLE, f"{source.path} cannot be read: {error.strerror}.", journal)
            return None
        if not journal.has(source.name, self.settings, stat.st_size, stat.st_mtime_ns):
            return stat
        self.summary.photographs += 1
        self.summary.earlier += 1
        self.progress.advance()
        return None

    def _predict(self, reads: Sequence[_Read], journal: Journal) -> None:
        boxes = [None if self.boxes is None else self.boxes[read.source.name, -1] for read in reads]
        try:
            found = self.predictor.find([read.image for read in reads], boxes)
        except DataError as error:
            if len(reads) > 1:  # one of them, and nobody knows which
                for read in reads:
                    self._predict([read], journal)
                return
            self.skip(reads[0].source, UNREADABLE, f"{reads[0].source.path}: {error}", journal)
            return
        for read, faces in zip(reads, found):
            self._write(read, faces, journal)

    def _write(self, read: _Read, faces: list[FoundFace], journal: Journal) -> None:
        source = read.source
        if not faces:
            self.skip(source, NO_FACE, f"{source.path} shows no face that the detector finds.", journal)
            return
        photograph = PredictedPhotograph(read.image, [self.completer.complete(face) for face in faces], self.meshes)
        try:
            files = write_outputs(self.out, source.name, photograph, self.kinds)
        except OSError as error:
            name = f" {error.filename}" if error.filename else ""
            self.skip(source, NOT_WRITTEN, f"{source.path} was predicted, but{name}: {error.strerror}.", journal)
            return
        height, width = read.image.shape[:2]
        line = {
            **self.line(source, read.stat), "width": width, "height": height, "settings": self.settings,
            "faces": photograph.records(), "files": files,
        }  # fmt: skip
        journal.add([line])
        self.summary.photographs += 1
        self.summary.faces += len(faces)
        self.summary.doubted += sum(not face.believed for face in faces)
        self.progress.advance()

    @staticmethod
    def line(source: Source, stat: os.stat_result) -> dict[str, Any]:
        """What a line says of a file."""
        return {
            "format": FORMAT, "image": source.name, "source": str(source.path), "bytes": stat.st_size,
            "modified": stat.st_mtime_ns,
        }  # fmt: skip

    def skip(self, source: Source, kind: str, reason: str, journal: Journal) -> None:
        """Name and count a photograph that cannot be used."""
        self.summary.skipped[kind] += 1
        self.progress.say(f"skipped: {reason}")
        journal.add([{"format": FORMAT, "image": source.name, "source": str(source.path), "skipped": reason}])
        self.progress.advance()
