"""Methods from checkpoints that may come from anyone: what a checkpoint holds is data.

A checkpoint names its method and that method's arguments. The name is looked up among the methods that are imported
already: those of this platform, and those of modules that the user named. The arguments are read against the method's
signature; optimizers and schedules are left out, as nothing but training needs them. No value of a checkpoint makes the
program run, import, open or fetch something.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import lightning_faces.methods  # noqa: F401 - makes the platform's methods known
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.methods.arguments import (
    FETCHING,
    STARTING,
    ArgumentReader,
    imported_subclasses,
    is_factory,
    signature,
)
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.torch_file import BROKEN, read_torch_file

LEAST_LIGHTNING = 2
"""Checkpoints of older releases of Lightning have another layout."""
SPARE_ELEMENTS = 2**27
"""What a method may make beside its weights, such as tables of a face model."""
CONSTRUCTORS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye})


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint as data: numbers, text, lists, mappings and tensors on the CPU.

    Args:
        path: A ``.ckpt`` file.

    Returns:
        What Lightning saved, with ``state_dict``, and ``hyper_parameters`` (possibly empty).

    Raises:
        ConfigurationError: If there is no such file.
        DataError: If it is something else, is damaged, or is no checkpoint of Lightning.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ConfigurationError(f"There is no checkpoint {path}: check the path.")
    if path.is_dir():
        raise DataError(f"{path} is no checkpoint but a folder: give one of its .ckpt files.")
    content = read_torch_file(path)
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise DataError(f"{path} is no checkpoint of this platform: it has no state_dict of tensors.")
    release = str(content.get("pytorch-lightning_version", ""))
    if not re.fullmatch(r"\d{1,3}\.\d{1,3}(\.\w{1,20})*", release) or int(release.split(".")[0]) < LEAST_LIGHTNING:
        raise DataError(f"{path} is no checkpoint of this platform: it does not say that Lightning wrote it.")
    content.setdefault("hyper_parameters", {})
    if not isinstance(content["hyper_parameters"], dict):
        raise DataError(f"{path} is no checkpoint of this platform: its hyper_parameters are no mapping.")
    return content


def load_method(
    path: str | Path,
    map_location: str | torch.device = "cpu",
    *,
    method: type[FaceMethod] | None = None,
    **options: Any,
) -> FaceMethod:
    """The method in a checkpoint, with its weights, ready to predict.

    Args:
        path: A ``.ckpt`` file.
        map_location: Device of the method.
        method: Its class; None takes the one that the checkpoint names, which must be imported already.
        **options: Arguments of the method that count instead of those in the checkpoint, such as ``face_model``: a
            checkpoint opens no file, so a face model of your own must be named here.

    Returns:
        The method in evaluation mode.

    Raises:
        ConfigurationError: If there is no such file, or the options do not fit the weights.
        DataError: If it is no checkpoint of this platform, is damaged, or holds what a checkpoint must not.

    Example:
        >>> from lightning import Trainer
        >>> from lightning_faces.methods import MeanLandmarks
        >>> trainer = Trainer(logger=False, accelerator="cpu")
        >>> trainer.strategy.connect(MeanLandmarks())
        >>> trainer.save_checkpoint("mean.ckpt")
        >>> load_method("mean.ckpt").landmark_scheme
        '68'
    """
    path = Path(path).expanduser()
    loaded = method_of(read_checkpoint(path), path, method, options)
    return loaded.to(torch.device(map_location)).eval()


def method_of(
    content: dict[str, Any], path: Path, method: type[FaceMethod] | None, options: dict[str, Any]
) -> FaceMethod:
    """The method whose arguments and weights a checkpoint's content is; see :func:`load_method`."""
    kind = checkpoint_method(content, path, method)
    loaded = build_method(kind, method_arguments(content, path, kind, options), path, content["state_dict"])
    take_weights(loaded, content["state_dict"], path)
    return loaded


class BoundedMemory(TorchFunctionMode):
    """Refuses tensors that are far larger than a checkpoint, which claims the sizes of its method.

    Args:
        elements: Elements of the checkpoint's tensors.
    """

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.left = 8 * elements + SPARE_ELEMENTS

    def __torch_function__(
        self, function: Callable[..., Any], kinds: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        """Count what a function that makes a tensor makes."""
        if function in CONSTRUCTORS:
            sizes = arguments[0] if arguments and isinstance(arguments[0], (tuple, list)) else arguments
            sizes = (options or {}).get("size", sizes)
            self.left -= 1 + math.prod(size for size in sizes if isinstance(size, int) and size > 0)
            if self.left < 0:
                raise MemoryError("its network would be far larger than its weights")
        return function(*arguments, **(options or {}))


def build_method(
    kind: type[FaceMethod], arguments: dict[str, Any], path: Path, weights: Mapping[str, Tensor]
) -> FaceMethod:
    """Make a method of the arguments in a checkpoint, without its weights.

    Raises:
        DataError: If the method does not take them.
    """
    try:
        with BoundedMemory(sum(value.numel() for value in weights.values())):
            return kind(**arguments)
    except (ConfigurationError, DataError) as error:
        raise DataError(f"{path} holds a {kind.__name__} that cannot be made: {error}") from error
    except (
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
        MemoryError,
        IndexError,
        KeyError,
        ZeroDivisionError,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path} holds arguments that {kind.__name__} does not take ({reason}): use another one."
        ) from error


def take_weights(method: FaceMethod, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give a method the weights of a checkpoint.

    Raises:
        DataError: If they are not those of this method.
    """
    try:
        method.load_state_dict(dict(weights))
    except BROKEN as error:
        raise DataError(unfit(path, error)) from error


def unfit(path: str | Path | None, error: BaseException) -> str:
    """One sentence on weights that do not fit a method, from torch's report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__)[:300]
    return f"The checkpoint {path} does not fit the configured model: {reason}"


def methods() -> list[type[FaceMethod]]:
    """All methods that are imported, without abstract ones."""
    return [kind for kind in imported_subclasses(FaceMethod) if not inspect.isabstract(kind)]


def saved_class(checkpoint: Mapping[str, Any]) -> str:
    """Import path of the method that a checkpoint names; "" where it names none."""
    name = checkpoint["hyper_parameters"].get("_class_path", "")
    return name if isinstance(name, str) and re.fullmatch(r"[\w.]{1,300}", name) else ""


def checkpoint_method(
    checkpoint: Mapping[str, Any], path: Path, method: type[FaceMethod] | None = None
) -> type[FaceMethod]:
    """The class of the method in a checkpoint, looked up among the imported ones.

    Args:
        checkpoint: From :func:`read_checkpoint`.
        path: Where it is from, for messages.
        method: The class that the user names; None takes the checkpoint's.

    Raises:
        ConfigurationError: If the user names another class than the checkpoint.
        DataError: If the checkpoint names no imported method.
    """
    saved = saved_class(checkpoint)
    short = saved.rsplit(".", 1)[-1]
    if method is not None:
        if short and short != method.__name__:
            raise ConfigurationError(
                f"{path} holds a {short}, but the model is {method.__name__}: "
                "use a checkpoint of that method, or leave the model out."
            )
        return method
    if not saved:
        raise DataError(f"{path} does not say which method it holds: name it with --model.")
    package = saved.rpartition(".")[0]
    for kind in methods():
        # A class may have been saved by the path of the package that re-exports it; ours may have moved since.
        ours = kind.__module__.split(".")[0] == "lightning_faces" and package.split(".")[0] == "lightning_faces"
        if kind.__name__ == short and (ours or f"{kind.__module__}.".startswith(f"{package}.")):
            return kind
    if package.split(".")[0] == "lightning_faces":
        known = ", ".join(kind.__name__ for kind in methods() if kind.__module__.startswith("lightning_faces."))
        raise DataError(f"{path} holds the method {short}, which this version does not have: it has {known}.")
    raise DataError(
        f"{path} holds a {saved}, which is no method of this platform: a checkpoint imports nothing, so name the class "
        f"yourself with --model {saved}, if you trust that module."
    )


def method_arguments(
    checkpoint: Mapping[str, Any], path: Path, kind: type[FaceMethod], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments of a method in a checkpoint, each checked against the method's signature.

    Args:
        checkpoint: From :func:`read_checkpoint`.
        path: Where it is from, for messages.
        kind: The class of the method.
        options: Arguments that the user names, which count instead.

    Raises:
        DataError: If the checkpoint has an argument that the method does not take, or a value that is no plain data.
    """
    options = dict(options or {})
    saved = {str(key): value for key, value in checkpoint["hyper_parameters"].items() if not str(key).startswith("_")}
    parameters = signature(kind)
    reader = ArgumentReader(path, kind)
    arguments: dict[str, Any] = {}
    for name, value in saved.items():
        if name not in parameters:
            raise DataError(
                f"{path} was saved with the option {name[:60]!r}, which {kind.__name__} does not have: use the "
                "version of the program that saved it, or train again."
            )
        if name in options or name in STARTING:
            continue
        annotation, _ = parameters[name]
        if is_factory(annotation):
            continue
        arguments[name] = FETCHING[name] if name in FETCHING else reader.read(value, annotation, name)
    for name, (annotation, default) in parameters.items():
        if name not in arguments and name not in options and default is inspect.Parameter.empty:
            if not is_factory(annotation):
                raise DataError(
                    f"{path} does not have the option {name!r}, which {kind.__name__} needs: name it as well."
                )
            arguments[name] = _not_built
    return {**arguments, **options}


def _not_built(*arguments: Any) -> Any:
    raise ConfigurationError("An optimizer is not taken from a checkpoint: name it with --model.optimizer.")
