"""Names and sentences of strangers as text: nothing in them is a formula, markup, or a command to a terminal."""

from __future__ import annotations

import re

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# An underscore within a word, and a colon that begins no address, mean nothing in Markdown.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&~|#!$@]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def printable(text: str) -> str:
    r"""Text for a terminal or a page: control, direction and invisible characters are spelt out.

    Example:
        >>> print(printable("a\x1b[31mb"))
        a\x1b[31mb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def csv_cell(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: a quotation mark goes before one; numbers stay numbers.

    Example:
        >>> csv_cell("=HYPERLINK(1)"), csv_cell(-0.5)
        ("'=HYPERLINK(1)", -0.5)
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def markdown_text(text: str) -> str:
    r"""Text whose rendering in Markdown is itself, in a table too.

    Example:
        >>> print(markdown_text("a|b [x](https://y) nme_0_30"))
        a\|b \[x\](https\://y) nme_0_30
    """
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))
