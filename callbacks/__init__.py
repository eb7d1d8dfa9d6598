"""Callbacks and loggers, one file each; they work with any Trainer, logger and method of the platform."""

from callbacks.check_monitor import CheckMonitor
from callbacks.checkpoint_io import AtomicCheckpointIO
from callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from callbacks.dense_pictures import DenseSheet
from callbacks.evaluation_record import EvaluationRecord
from callbacks.finite_loss import FiniteLoss
from callbacks.graceful_stop import GracefulStop
from callbacks.metrics_csv import MetricsCSV
from callbacks.pictures import ContactSheet
from callbacks.progress import ProgressLines
from callbacks.seed_steps import SeedSteps
from callbacks.statistics import TrainingStatistics
from callbacks.wandb_tracker import WandbTracker
from callbacks.weight_average import WeightAverage

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "CheckMonitor",
    "ContactSheet",
    "DenseSheet",
    "EvaluationRecord",
    "FiniteLoss",
    "GracefulStop",
    "LastCheckpoint",
    "MetricsCSV",
    "ProgressLines",
    "SeedSteps",
    "TrainingStatistics",
    "WandbTracker",
    "WeightAverage",
]
