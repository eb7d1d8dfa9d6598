"""What prediction costs."""

from __future__ import annotations

import platform
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lightning_faces.evaluation.records import Speed

SECONDS = 1.0
MOST_CALLS = 50


def measure_speed(predict: Callable[[], object], faces: int, device: torch.device) -> Speed:
    """Time a call that predicts a batch, for about a second after one call to warm up.

    Args:
        predict: The call, without loading.
        faces: How many faces it predicts.
        device: Where it runs.

    Returns:
        Faces over the shortest time.

    Example:
        >>> measure_speed(lambda: time.sleep(0.1), 10, torch.device("cpu")).images_per_second < 100
        True
    """
    times: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with torch.no_grad():
        predict()
        while sum(times) < SECONDS and len(times) < MOST_CALLS:
            start = now()
            predict()
            times.append(now() - start)
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        name, memory = cpu_name(), peak if sys.platform == "darwin" else peak * 1024
    return Speed(faces / min(times), faces, name, torch.get_num_threads(), int(memory))


def cpu_name() -> str:
    """Name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"CPU {found[1].strip() if found else platform.machine()}"
