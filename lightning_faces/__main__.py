"""The command ``lightning-faces``: finds the subcommand and imports only what it needs."""

from __future__ import annotations

import difflib
import errno
import sys
from collections.abc import Sequence
from importlib import import_module

from lightning_faces import __version__
from lightning_faces.errors import LightningFacesError
from lightning_faces.files.plain_text import printable

COMMANDS = {
    "fit": ("lightning_faces.commands.train:fit", "train a method"),
    "validate": ("lightning_faces.commands.train:validate", "score a checkpoint on the validation split"),
    "test": ("lightning_faces.commands.train:test", "score a checkpoint on the test split and record the result"),
    "predict": ("lightning_faces.commands.predict:main", "find the faces of photographs and videos"),
    "leaderboard": ("lightning_faces.commands.leaderboard:main", "compare the records of all runs below a folder"),
    "sweep": ("lightning_faces.commands.sweep:main", "search hyperparameters on this machine, without an account"),
    "datasets": ("lightning_faces.commands.datasets:main", "list the data sets, what each needs and where it looks"),
    "preview": ("lightning_faces.commands.preview:main", "draw synthetic faces"),
    "report": ("lightning_faces.commands.report:main", "show a folder of predictions on one page"),
    "export": ("lightning_faces.commands.export:main", "write a checkpoint's network as ONNX"),
    "import-model": ("lightning_faces.commands.import_model:main", "convert a morphable model"),
    "scan-error": ("lightning_faces.commands.scan_error:main", "compare predicted meshes to scans, in millimetres"),
    "build-model": ("lightning_faces.commands.build_model:main", "make a face model by PCA from registered meshes"),
}
"""Command to its function, which takes the arguments after the command's name, and what it does."""

TRAINING = ("fit", "validate", "test")
REFUSED = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR,
        errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE,
    }
)  # fmt: skip
"""What the system answers where a file can't be read or written as the user wants."""


def usage() -> str:
    """The text of ``lightning-faces --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lightning-faces COMMAND [options]",
            "",
            "Train and compare methods for 3D face alignment and reconstruction.",
            "",
            *lines,
            "",
            "lightning-faces COMMAND --help lists the options of a command; lightning-faces --version the version.",
        ]
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        args: The command line without the program's name; None reads ``sys.argv``.

    Raises:
        SystemExit: With 2 for an unknown subcommand or bad input.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    command = arguments[0]
    if command == "--version":
        print(__version__)
        return
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}."
        print(f"lightning-faces: {command!r} is not a command: {hint}", file=sys.stderr)
        sys.exit(2)
    module, function = COMMANDS[command][0].split(":")
    try:
        if command in TRAINING:
            # Files that are not there are said to be so before seconds of importing.
            from lightning_faces.commands.configurations import check_arguments

            check_arguments(arguments[1:])
        code = getattr(import_module(module), function)(arguments[1:])
    except LightningFacesError as error:
        print(f"lightning-faces: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REFUSED or error.filename is None:
            raise
        print(f"lightning-faces: Cannot use {printable(str(error.filename))}: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
    if isinstance(code, int) and code:
        sys.exit(code)


if __name__ == "__main__":
    main()
