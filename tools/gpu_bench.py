"""The benchmarks of one part of gpu_check, as a process of its own: an illegal access ends this part only.

    python -m octavo.tools.gpu_bench PART --seconds N

bench/gpu_PART.py has BENCHMARKS: name -> a function of the device that yields figures. A figure is a dictionary:
`case`; `ms` of one call and the least `bytes` it must read and write, where that is what it measures; `goal` and
`asked`, if it has one of spec/performance.md; and whatever else it has to say. Here it is given `of_copy`, the fraction
of the copy bandwidth measured in the same process, and `met`: whether `value`, or else `times` (as fast), or else
`of_copy`, is at least `asked`; with `at_most`, not more.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from .gpu_lines import write

Benchmark = Callable[[torch.device], Iterable[Mapping[str, Any]]]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octavo.tools.gpu_bench", description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--seconds", type=float, required=True, help="after these no further benchmark begins")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(argv)
    until = time.monotonic() + args.seconds
    name = f"octavo.bench.gpu_{args.part}"
    try:
        benchmarks = importlib.import_module(name).BENCHMARKS
    except ModuleNotFoundError as error:
        write(name=name, outcome="not run", why=str(error))
        return 0
    run(benchmarks, torch.device(args.device), until)
    return 0


def run(benchmarks: Mapping[str, Benchmark], device: torch.device, until: float) -> None:
    """One after the other until the clock (time.monotonic) says `until`; one that raises does not stop the next."""
    write(planned=list(benchmarks))
    copy = copy_bandwidth(device)
    write(facts={"copy_gb_s": copy / 1e9})
    for name, benchmark in benchmarks.items():
        if time.monotonic() >= until:
            break
        write(started=name)
        outcome, why, start = "passed", "", time.monotonic()
        try:
            for figure in benchmark(device):
                write(figure=complete(name, figure, copy))
        except Exception as error:  # whatever it is, the table says so, and the next one has its turn
            outcome, why = "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"
        write(name=name, outcome=outcome, seconds=round(time.monotonic() - start, 3), why=why)


def complete(name: str, figure: Mapping[str, Any], copy: float) -> dict[str, Any]:
    """With the benchmark's name, what it reaches of `copy` bytes per second, and whether that is what was asked."""
    whole = {"name": name, **figure}
    if "bytes" in whole:
        whole["of_copy"] = whole["bytes"] / (whole["ms"] * 1e-3) / copy
    value = next((whole[key] for key in ("value", "times", "of_copy") if key in whole), None)
    if "asked" in whole and value is not None:
        whole["met"] = bool(value <= whole["asked"] if whole.get("at_most") else value >= whole["asked"])
    return whole


def copy_bandwidth(device: torch.device, size: int = 2 << 30, repetitions: int = 20) -> float:
    """Bytes per second, read and written, of a copy within the device: the median of some. On the CPU a small one."""
    if device.type != "cuda":
        size = 16 << 20
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in "st")
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(repetitions):
        wait()
        start = time.perf_counter()
        target.copy_(source)
        wait()
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
