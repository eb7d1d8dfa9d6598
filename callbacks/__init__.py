"""Callbacks and loggers, one file each; they work with any Trainer, logger and method of the platform."""

from callbacks.check_monitor import CheckMonitor
from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.metrics_csv import MetricsCSV
from callbacks.pictures import ContactSheet
from callbacks.wandb_tracker import WandbTracker

__all__ = ["AtomicCheckpointIO", "CheckMonitor", "ContactSheet", "MetricsCSV", "WandbTracker"]
