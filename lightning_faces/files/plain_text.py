"""Names and sentences of strangers as text: nothing in them is a formula or a command to a terminal."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


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
