"""A command of training that is read and not run: is it right, and what would it log?"""

from __future__ import annotations

from collections.abc import Sequence

from callbacks.check_monitor import validation_names
from datamodules.base import FaceDataModule
from lightning_faces.commands.checks import OPTION_ERRORS, unmade
from lightning_faces.commands.parser import FacesParser
from lightning_faces.commands.sentences import sentence
from lightning_faces.commands.train import FacesCLI
from lightning_faces.errors import ConfigurationError, LightningFacesError
from lightning_faces.methods.base import FaceMethod


class ParseOnly(FacesCLI):
    """Parses a command and makes the method, and nothing else.

    Args:
        args: The command line, the command first.
    """

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            FaceMethod,
            FaceDataModule,
            parser_class=FacesParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            args=list(args),
        )

    def before_instantiate_classes(self) -> None:
        """Leave the run folder alone."""

    def instantiate_classes(self) -> None:
        """Make the method."""
        command = self.config.subcommand
        self.model: FaceMethod = self.parser.instantiate(self.config)[command].model

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def logged_by(args: Sequence[str]) -> frozenset[str]:
    """What a training with these options logs after each validation.

    Args:
        args: ``fit`` and its options.

    Raises:
        ConfigurationError: If the options are wrong.
    """
    try:
        method = ParseOnly(args).model
    except LightningFacesError:
        raise
    except OPTION_ERRORS as error:
        raise ConfigurationError(sentence(error) or unmade(error)) from error
    return frozenset({"train/loss", *validation_names(method)})
