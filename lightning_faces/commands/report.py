"""``lightning-faces report FOLDER``: the faces of a folder of predictions on one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lightning_faces.errors import ConfigurationError
from lightning_faces.predict.page import MOST_PHOTOGRAPHS, PAGE, write_page


def main(arguments: Sequence[str]) -> None:
    """Write the page of a folder of predictions.

    Args:
        arguments: Words after the command.

    Raises:
        LightningFacesError: If the folder cannot be used.
    """
    parser = argparse.ArgumentParser("lightning-faces report", allow_abbrev=False, description=_DESCRIPTION)
    parser.add_argument("folder", help="folder that `lightning-faces predict` wrote")
    parser.add_argument("--photographs", help="folder of the photographs, to show them beside the overlays")
    parser.add_argument("--out", help=f"page to write, an .html (default: {PAGE} in the folder)")
    parser.add_argument(
        "--most", type=int, default=MOST_PHOTOGRAPHS, help=f"photographs to show (default: {MOST_PHOTOGRAPHS})"
    )
    options = parser.parse_args(arguments)
    if options.most < 1:
        raise ConfigurationError(f"--most is {options.most}; it must be at least 1.")
    path = write_page(options.folder, options.out, options.photographs, options.most)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


_DESCRIPTION = (
    "Write one page with the photographs, overlays and faces of a folder of predictions; it needs no network, and the "
    "faces turn under the mouse."
)
