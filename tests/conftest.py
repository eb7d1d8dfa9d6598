"""Settings of all tests."""

from __future__ import annotations

import os

import pytest
import torch

# Before albumentations is imported: it would ask the network for its newest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Test processes share the cores; threads of one that wait for another's stall both."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_wandb_service() -> None:
    """A process that a test starts would share this one's W&B service, in which a killed run's name stays taken."""
    os.environ.pop("WANDB_SERVICE", None)
