"""Speed of PRNet at 256 pixels: the plain module against channels-last and compiled, and the CUDA numbers.

Compiled means with frozen weights on the CPU (batch norm folded into the convolutions), as inference allows.

python benchmarks/prnet.py [--threads N] [--rounds N]

The variants take turns, so that a busy machine slows all of them alike; the ratio is of their least times. Table 2 of
the paper has 9.8 ms from cropped image to geometry on a GTX 1080.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor

from lightning_faces.methods import PRNet

Call = Callable[[], Any]


def least_milliseconds(calls: dict[str, Call], rounds: int, wait: Callable[[], None]) -> dict[str, float]:
    """Least time of each call in milliseconds; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(3):
            call()
    for _ in range(rounds):
        for name, call in calls.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(values) for name, values in times.items()}


def cpu(rounds: int) -> None:
    """Batch of 1 on the CPU."""
    method = PRNet(output="sigmoid").eval()
    other = PRNet(output="sigmoid").eval()
    other.load_state_dict(method.state_dict())
    plain, fast = method, other.to(memory_format=torch.channels_last)
    torch._inductor.config.freezing = True
    compiled = torch.compile(fast)
    image = torch.rand(1, 3, 256, 256)
    last: Tensor = image.contiguous(memory_format=torch.channels_last)
    calls: dict[str, Call] = {
        "plain": lambda: plain(image),
        "channels-last": lambda: fast(last),
        "channels-last, compiled": lambda: compiled(last),
        "the same with landmarks, vertices and pose": lambda: method.head.read_maps(compiled(last)),
    }
    torch.testing.assert_close(compiled(last), plain(image), atol=0.03, rtol=0)
    result = least_milliseconds(calls, rounds, lambda: None)
    print(f"CPU, {torch.get_num_threads()} threads, batch 1, 256 x 256:")
    for name, value in result.items():
        print(f"  {name}: {value:.1f} ms  {result['plain'] / value:.2f}x")


def cuda(rounds: int) -> None:
    """Latency at batch 1 and throughput in bf16, image to geometry."""
    method = PRNet(output="sigmoid").eval().cuda()
    method.to(memory_format=torch.channels_last)
    compiled = torch.compile(method, mode="max-autotune")

    def faces(image: Tensor) -> Any:
        with torch.autocast("cuda", torch.bfloat16):
            maps = compiled(image)
        return method.head.read_maps(maps)

    print(f"{torch.cuda.get_device_name()}, bf16, compiled:")
    for batch in (1, 64, 256):
        image = torch.rand(batch, 3, 256, 256, device="cuda").contiguous(memory_format=torch.channels_last)

        def network(image: Tensor = image) -> Any:
            with torch.autocast("cuda", torch.bfloat16):
                return compiled(image)

        calls: dict[str, Call] = {"map": network, "face": lambda image=image: faces(image)}
        result = least_milliseconds(calls, rounds, torch.cuda.synchronize)
        for name, value in result.items():
            print(f"  batch {batch}, image to {name}: {value:.2f} ms, {1e3 * batch / value:.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        cpu(options.rounds)
        if torch.cuda.is_available():
            cuda(options.rounds)
        else:
            print("No CUDA device: the GPU numbers were not measured.")


if __name__ == "__main__":
    main()
