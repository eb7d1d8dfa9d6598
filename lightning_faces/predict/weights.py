"""Weights that need no training run: what a checkpoint holds for prediction, as two files of numbers and text.

``NAME.safetensors`` has the method's tensors by name. ``NAME.json`` has the method's name and arguments, the crop that
it was trained on, and the SHA-256 of the other file. Both are read as a checkpoint is: as data.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from datamodules.components.files import square_box
from lightning_faces import __version__
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.files import write_atomic
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.checkpoint import method_of, read_checkpoint

DEFAULT = "faces"
"""Name of the weights that are used where none are named."""
FORMAT = 1
MARGIN = 1.3
"""The data modules' own, for checkpoints of earlier versions, which do not say it."""


@dataclass(frozen=True)
class CropRule:
    """How a face is cut out of its photograph.

    Attributes:
        margin: Side of the crop over the longer side of the box.
        box: "tight", or "square" of side (w + h) / 2 on the same centre (PRNet).
    """

    margin: float = MARGIN
    box: Literal["tight", "square"] = "tight"

    def apply(self, tight: NDArray[np.float64]) -> NDArray[np.float64]:
        """The box ``[4]`` that the crop is ``margin`` times as large as, from the tight one of the landmarks."""
        return square_box(tight) if self.box == "square" else tight


@dataclass(frozen=True)
class Loaded:
    """What :func:`load_weights` finds.

    Attributes:
        method: In evaluation mode, on the CPU.
        crop: What it was trained on.
        name: Of the weights or of the checkpoint's file.
        digest: SHA-256 of the weights, shortened: which they are, wherever their file lies.
    """

    method: FaceMethod
    crop: CropRule
    name: str
    digest: str


def shipped() -> list[str]:
    """Names of the weights in this installation."""
    folder = _folder()
    return (
        sorted(Path(path.name).stem for path in folder.iterdir() if path.name.endswith(".json"))
        if folder.is_dir()
        else []
    )


def _folder() -> Any:
    return resources.files("lightning_faces") / "weights"


def load_weights(name_or_path: str | Path | None = None, margin: float | None = None, **options: Any) -> Loaded:
    """A method with its weights, from a name, a checkpoint or the installation's default.

    Args:
        name_or_path: Name of weights of this installation, a ``.ckpt`` file of a training, or a ``.json`` file that
            :func:`save_weights` wrote; None takes the installation's own.
        margin: Side of the crop over the longer side of the box, instead of what the file says.
        **options: Arguments of the method that count instead of those in the file, such as ``face_model``.

    Raises:
        ConfigurationError: If there is no such file or name.
        DataError: If the file cannot be used.
    """
    if margin is not None and not 0.1 <= margin <= 100:
        raise ConfigurationError(f"margin is {margin}: give the crop's side over the box's, from 0.1 to 100.")
    path = _find(name_or_path)
    if path.suffix == ".json":
        content, label, digest = _read_pair(path)
    else:
        content, label = read_checkpoint(path), str(path)
        digest = _digest(content["state_dict"])
    method = method_of(content, path, None, options)
    return Loaded(method.eval(), _crop_of(content.get("training"), path, margin), label, digest[:16])


def save_weights(checkpoint: str | Path, path: str | Path, half: bool = True) -> Path:
    """Take from a checkpoint what prediction needs.

    Args:
        checkpoint: A ``.ckpt`` file.
        path: The ``.json`` file to write; the tensors go beside it.
        half: Store floating-point tensors with 16 bits, in half the space.

    Returns:
        The path.

    Raises:
        ConfigurationError: If the path does not end in .json, or there is no checkpoint.
        DataError: If the checkpoint cannot be used.

    Example:
        >>> from lightning import Trainer
        >>> from lightning_faces.methods import MeanLandmarks
        >>> trainer = Trainer(logger=False, accelerator="cpu")
        >>> trainer.strategy.connect(MeanLandmarks())
        >>> trainer.save_checkpoint("mean.ckpt")
        >>> load_weights(save_weights("mean.ckpt", "mean.json")).crop
        CropRule(margin=1.3, box='tight')
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ConfigurationError(f"{path} cannot be the description of weights: give a name that ends in .json.")
    loaded = load_weights(checkpoint)
    content = read_checkpoint(checkpoint)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in loaded.method.state_dict().items():
        stored = value.half() if half and value.is_floating_point() else value
        if not bool(torch.isfinite(stored).all()):
            raise DataError(f"{checkpoint} has the tensor {name}, which 16 bits cannot hold: save it with half=False.")
        tensors[name] = stored.clone(memory_format=torch.contiguous_format)
    data = safetensors.torch.save(tensors)
    description = {
        "format": FORMAT,
        "lightning_faces": __version__,
        "sha256": hashlib.sha256(data).hexdigest(),
        **asdict(loaded.crop),
        "hyper_parameters": content["hyper_parameters"],
    }
    write_atomic(path.with_suffix(".safetensors"), data)
    return write_atomic(path, json.dumps(description, indent=1).encode())


def _find(name_or_path: str | Path | None) -> Path:
    given = Path(DEFAULT if name_or_path is None else name_or_path).expanduser()
    if name_or_path is not None and (given.exists() or given.suffix or len(given.parts) > 1):
        return given
    found = Path(str(_folder() / f"{given.name}.json"))
    if found.is_file():
        return found
    names = ", ".join(shipped())
    has = f"it has {names}" if names else "it has none"
    raise ConfigurationError(
        f"This installation has no weights {given.name!r} ({has}): name a checkpoint of your own, such as "
        "runs/METHOD/NAME/checkpoints/best.ckpt (--checkpoint on the command line)."
    )


def _read_pair(path: Path) -> tuple[dict[str, Any], str, str]:
    """Content in the form of a checkpoint, the weights' name, and their SHA-256."""
    if not path.is_file():
        raise ConfigurationError(f"There are no weights {path}: check the path.")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} does not describe weights ({error}): replace it.") from error
    if not isinstance(described, dict) or not isinstance(described.get("hyper_parameters"), dict):
        raise DataError(f"{path} does not describe weights: it has no hyper_parameters.")
    if described.get("format") != FORMAT:
        raise DataError(
            f"{path} describes weights in format {described.get('format')!r}, and this version reads {FORMAT}: "
            "use the version of the program that wrote them."
        )
    tensors = path.with_suffix(".safetensors")
    if not tensors.is_file():
        raise DataError(f"{tensors} is missing: {path} describes its weights; put both in one folder.")
    data = tensors.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != described.get("sha256"):
        raise DataError(f"{tensors} is not the file that {path} describes (its SHA-256 differs): get both again.")
    try:
        state = safetensors.torch.load(data)
    except SafetensorError as error:
        raise DataError(f"{tensors} holds no tensors ({error}): get it again.") from error
    content = {"hyper_parameters": described["hyper_parameters"], "state_dict": state, "training": described}
    return content, path.stem, digest


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}\n".encode())
        digest.update(state[name].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _crop_of(described: object, path: Path, margin: float | None) -> CropRule:
    """The crop that a file says its method was trained on."""
    given = described if isinstance(described, dict) else {}
    found = given.get("margin", MARGIN) if margin is None else margin
    box = given.get("box") or "tight"
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0.1 <= found <= 100:
        raise DataError(f"{path} says that its crops have the margin {found!r:.60}, which is none: give margin.")
    if box not in ("tight", "square"):
        raise DataError(f"{path} says that its crops are of {box!r:.60} boxes: this version knows tight and square.")
    return CropRule(float(found), "square" if box == "square" else "tight")
