"""A folder of predictions as one page without outside references: photographs, overlays, and faces that turn."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.components.images import read_image
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.files import write_atomic
from lightning_faces.files.plain_text import printable
from lightning_faces.predict.journal import FILE, MOST_LINE

PAGE = "report.html"
MOST_PHOTOGRAPHS = 50
"""Photographs of a page; a face with its actions takes 1.3 MB of it."""
LONGEST = 900
"""Side of a picture in pixels."""
LARGEST_MESH = 2**26
"""Bytes of a GLB file."""
ACTIONS, LEAST_ACTION = 5, 0.15
"""So many facial actions are named, and only stronger ones."""
PICTURES = {"landmarks": "Landmarks", "mesh": "Surface"}
"""Kinds of pictures in the folder that are shown, and their captions."""


@dataclass
class Predictions:
    """What ``predictions.jsonl`` says.

    Attributes:
        photographs: Its lines by the photograph's name, the last one of each.
        skipped: Why a photograph was skipped, by its name.
        frames: Frames of videos, which a page does not show.
    """

    photographs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    frames: int = 0


def write_page(
    folder: str | Path,
    out: str | Path | None = None,
    photographs: str | Path | None = None,
    most: int = MOST_PHOTOGRAPHS,
) -> Path:
    """Write the page of a folder of predictions.

    It shows the pictures and GLB files that are there. Only files within the two folders are read, whatever the list of
    predictions says.

    Args:
        folder: That ``lightning-faces predict`` wrote.
        out: The .html file; None is ``report.html`` in the folder.
        photographs: Folder of the photographs themselves, which are shown beside the overlays then.
        most: Photographs that the page shows, the first ones; it says how many it leaves out.

    Returns:
        The page.

    Raises:
        ConfigurationError: If there is no such folder, or no predictions in it.
        DataError: If the list of predictions cannot be read.
    """
    folder = Path(folder).expanduser()
    out = folder / PAGE if out is None else Path(out).expanduser()
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise ConfigurationError(f"{out} cannot be a page: give the name of a file that ends in .html.")
    if photographs is not None and not Path(photographs).expanduser().is_dir():
        raise ConfigurationError(f"There is no folder {photographs} of photographs: check the path.")
    found = read_predictions(folder)
    beside = None if photographs is None else Path(photographs).expanduser()
    shown = list(found.photographs.items())[:most]
    parts = [_summary(found, len(shown))]
    parts += [_article(number, name, line, folder, beside) for number, (name, line) in enumerate(shown, start=1)]
    if found.skipped:
        items = "".join(f"<li>{_text(name)}: {_text(reason)}</li>" for name, reason in found.skipped.items())
        parts.append(f"<article><h2>Skipped</h2><ul>{items}</ul></article>")
    files = resources.files("lightning_faces.predict")
    template = (files / "page.html").read_text(encoding="utf-8")
    viewer = (files / "assets" / "viewer.min.js").read_text(encoding="utf-8")
    page = string.Template(template).substitute(content="\n".join(parts), viewer=viewer)
    return write_atomic(out, page.encode("utf-8"))


def read_predictions(folder: Path) -> Predictions:
    """The list of predictions of a folder.

    Raises:
        ConfigurationError: If there is none.
        DataError: If a line is no prediction.
    """
    path = folder / FILE
    if not path.is_file():
        raise ConfigurationError(f"{folder} has no {FILE}: give a folder that `lightning-faces predict` wrote.")
    found = Predictions()
    with path.open("rb") as file:
        number = 0
        while data := file.readline(MOST_LINE):
            number += 1
            try:
                line = json.loads(data)
                name = line["image"]
                if not isinstance(name, str):
                    raise TypeError("its image is no name")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(f"{path} line {number} is no prediction: predict the photographs again.") from error
            if "frame" in line:
                found.frames += 1
                continue
            found.photographs.pop(name, None)
            found.skipped.pop(name, None)
            if "skipped" in line:
                found.skipped[name] = str(line["skipped"])
            else:
                found.photographs[name] = line
    return found


def _text(value: object) -> str:
    return html.escape(printable(str(value)))


def _summary(found: Predictions, shown: int) -> str:
    faces = sum(len(_list(line.get("faces"))) for line in found.photographs.values())
    parts = [f"{len(found.photographs)} photographs with {faces} faces"]
    if left := len(found.photographs) - shown:
        parts.append(f"the first {shown} are shown, {left} are not")
    if found.skipped:
        parts.append(f"{len(found.skipped)} skipped")
    if found.frames:
        parts.append(f"{found.frames} frames of videos are not shown")
    return (
        f'<p class="quiet">{"; ".join(parts)}. Turn a face with mouse, finger or arrow keys; zoom with Ctrl and the '
        "wheel, or two fingers; a double click sets it back.</p>"
    )


def _article(number: int, name: str, line: Mapping[str, Any], folder: Path, photographs: Path | None) -> str:
    files = line.get("files")
    files = files if isinstance(files, dict) else {}
    figures = []
    if photographs is not None:
        figures.append(_figure(_inside(photographs, name), "Photograph", name))
    figures += [_figure(_inside(folder, files.get(kind)), caption, name) for kind, caption in PICTURES.items()]
    meshes = _list(files.get("glb"))
    faces = [
        _face(f"glb-{number}-{k + 1}", k + 1, face, _inside(folder, meshes[k] if k < len(meshes) else None))
        for k, face in enumerate(_list(line.get("faces")))
        if isinstance(face, dict)
    ]
    pictures = "".join(figures)
    return (
        f"<article><h2>{_text(name)}</h2>"
        + (f'<div class="pictures">{pictures}</div>' if pictures else "")
        + f'<div class="faces">{"".join(faces)}</div></article>'
    )


def _figure(path: Path | None, caption: str, name: str) -> str:
    """A picture, made smaller; "" where there is none that can be read."""
    if path is None:
        return ""
    try:
        picture = Image.fromarray(read_image(path, True))
    except DataError:
        return ""
    picture.thumbnail((LONGEST, LONGEST))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img alt="{_text(caption)} of {_text(name)}" width="{picture.width}" height="{picture.height}" '
        f'src="data:image/jpeg;base64,{source}"><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _face(identifier: str, number: int, face: Mapping[str, Any], mesh: Path | None) -> str:
    shown = ""
    if mesh is not None and mesh.stat().st_size <= LARGEST_MESH:
        data = mesh.read_bytes()
        if data[:4] == b"glTF":
            shown = (
                f'<div><canvas tabindex="0" role="img" aria-label="Face {number}, turned by arrow keys" '
                f'data-glb="{identifier}"></canvas><p class="doubted"></p></div>'
                f'<script type="text/plain" id="{identifier}">{base64.b64encode(data).decode()}</script>'
            )
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in _facts(face))
    doubt = "" if face.get("valid", True) else f'<p class="doubted">Not believed: {_text(face.get("reason", ""))}</p>'
    return f'<section class="face">{shown}<div><h3>Face {number}</h3>{doubt}<dl>{rows}</dl></div></section>'


def _facts(face: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is said of a face, by name."""
    facts = []
    if (confidence := _number(face.get("confidence"))) is not None:
        facts.append(("Detector", f"{100 * confidence:.0f} %"))
    pose = face.get("pose")
    if isinstance(pose, dict):
        angles = {name: _number(pose.get(name)) for name in ("pitch", "yaw", "roll")}
        facts += [(name.capitalize(), f"{angle:+.1f}°") for name, angle in angles.items() if angle is not None]
    uncertainty = [value for value in map(_number, _list(face.get("uncertainty"))) if value is not None]
    if uncertainty:
        facts.append(("Uncertainty", f"{sum(uncertainty) / len(uncertainty):.1f} pixels"))
    actions = face.get("actions")
    if isinstance(actions, dict):
        values = {str(name): _number(value) or 0.0 for name, value in actions.items()}
        strongest = sorted(values, key=lambda name: -values[name])[:ACTIONS]
        named = [f"{name} {values[name]:.2f}" for name in strongest if values[name] >= LEAST_ACTION]
        facts.append(("Actions", ", ".join(named) or "none"))
    return facts


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _inside(folder: Path, name: object) -> Path | None:
    """A file below a folder; None for one that is elsewhere, links included, or not there."""
    if not isinstance(name, str) or "\0" in name:
        return None
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
    except OSError:
        return None
