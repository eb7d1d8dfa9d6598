"""Errors a user can act on: one sentence that names the value or file and the fix."""

from __future__ import annotations


class LightningFacesError(Exception):
    """Base of all errors that the command line prints as one sentence instead of a traceback."""

    def __init__(self, message: str) -> None:
        # A loader process hands an error on as the text of its traceback, which ends with the sentence.
        if "Traceback (most recent call last)" in message:
            message = message.strip().rsplit(f"{type(self).__name__}: ", 1)[-1]
        super().__init__(message)


class ConfigurationError(LightningFacesError, ValueError):
    """An option, or a combination of options, that cannot work; the message names it and what would fit."""


class DataError(LightningFacesError, ValueError):
    """A file, or a value in a file, that cannot be used; the message names the file and what was expected."""
