"""Text whose rendering in Markdown is itself."""

from __future__ import annotations

import re

from lightning_faces.files.plain_text import printable

# An underscore within a word, and a colon that begins no address, mean nothing in Markdown.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&~|#!$@]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def markdown_text(text: str) -> str:
    r"""Text whose rendering in Markdown is itself, in a table too.

    Example:
        >>> print(markdown_text("a|b [x](https://y) nme_0_30"))
        a\|b \[x\](https\://y) nme_0_30
    """
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))
