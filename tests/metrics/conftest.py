from __future__ import annotations

import torch

torch.set_num_threads(1)  # the metrics' tensors are small: threads only wait for each other
