"""The command line without a training."""

from __future__ import annotations

import os

from datamodules.base import FaceDataModule
from lightning_faces.commands.parser import FacesParser
from lightning_faces.commands.run_folder import RUN_FOLDER_VARIABLE
from lightning_faces.commands.train import FacesCLI
from lightning_faces.methods.base import FaceMethod


class ParseOnly(FacesCLI):
    """Parses a command and makes the method, and nothing else.

    Args:
        args: The command line.
    """

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            FaceMethod,
            FaceDataModule,
            parser_class=FacesParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=None,
            args=args,
        )
        os.environ.pop(RUN_FOLDER_VARIABLE, None)

    def instantiate_classes(self) -> None:
        """Make the method."""
        subcommand = self.config.subcommand
        self.model = self.parser.instantiate(self.config)[subcommand].model

    def _run_subcommand(self, subcommand: str) -> None:
        pass
