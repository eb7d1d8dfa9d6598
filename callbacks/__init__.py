"""Callbacks and loggers, one file each; they work with any Trainer, logger and method of the platform."""

from callbacks.check_monitor import CheckMonitor
from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from callbacks.dense_pictures import DenseSheet
from callbacks.evaluation_record import EvaluationRecord
from callbacks.graceful_stop import GracefulStop
from callbacks.metrics_csv import MetricsCSV
from callbacks.pictures import ContactSheet
from callbacks.seed_steps import SeedSteps
from callbacks.statistics import TrainingStatistics
from callbacks.wandb_tracker import WandbTracker

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "CheckMonitor",
    "ContactSheet",
    "DenseSheet",
    "EvaluationRecord",
    "GracefulStop",
    "LastCheckpoint",
    "MetricsCSV",
    "SeedSteps",
    "TrainingStatistics",
    "WandbTracker",
]
