"""The best tiles of kernels/linear.py on this GPU, found by measuring, as a step of gpu_check.

    python -m octavo.tools.gpu_tiles SECONDS DIR

Writes kernels/tuned/<gpu>.json (where that may be written) and the same file in DIR. Each layer of the model is
measured with 1, 8 and 16 rows. First every candidate is compiled, on all cores and without the GPU, into Triton's
cache. Then a layer's candidates follow each other on the device, replayed in a graph over as many copies of the weights
as keep them out of the L2 cache. A tile replaces the estimate if it is 2 % faster and gives the same.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path

import torch

from octavo.bench.gpu_kernels import per_call
from octavo.bench.measure import relative
from octavo.kernels import launch, tuned
from octavo.kernels.linear_tile import Tile, candidates, depth, shape_key

from . import gpu_lines
from .gpu_bench import complete, copy_bandwidth
from .kernel_cases import LAYERS, call_layer, layer
from .kernel_report import launches

ROWS = (1, 8, 16)
COPIES = 256 << 20  # bytes of weights that one measurement goes through: several times any L2 cache
COMPILING = 0.5  # of the time at most
WORTH_IT = 0.98  # of the estimate's time
SAME = 1e-2  # relative: bf16 outputs of sums in another order

Times = Mapping[Tile, float]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octavo.tools.gpu_tiles", description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("out", type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    start, device = time.monotonic(), torch.device("cuda")
    wanted = {(name, N): _candidates(name, N, device) for N in ROWS for name in LAYERS}
    gpu_lines.write(planned=[_name(*shape) for shape in wanted])
    capability = torch.cuda.get_device_capability(device)
    ready = precompile(wanted, 10 * capability[0] + capability[1], start + COMPILING * args.seconds)
    copy = copy_bandwidth(device)
    gpu_lines.write(facts={"copy_gb_s": copy / 1e9})
    file = tuned.file_of(torch.cuda.get_device_name(device))
    folders = [folder for folder in (args.out, file.parent) if os.access(folder, os.W_OK)]
    for (name, N), tiles in ready.items():
        if time.monotonic() > start + args.seconds:
            break
        gpu_lines.write(started=_name(name, N))
        times = measure(name, N, tiles, device)
        if not times:
            gpu_lines.write(name=_name(name, N), outcome="not run", why="no tile was compiled in time")
            continue
        tile = best(times, wanted[name, N][0])
        for folder in folders:
            save({_key(name, N): tile.entry()}, folder / file.name)
        OUT, IN, _ = LAYERS[name]
        figure = {"case": str(tile), "ms": times[tile], "bytes": 2 * (OUT * IN + N * (OUT + IN)), "tiles": len(times)}
        gpu_lines.write(figure=complete(_name(name, N), figure, copy))
        gpu_lines.write(name=_name(name, N), outcome="passed", why="")
    return 0


def precompile(
    wanted: Mapping[tuple[str, int], Sequence[Tile]], capability: int, until: float
) -> dict[tuple[str, int], list[Tile]]:
    """Which of them are in Triton's cache when the clock (time.monotonic) says `until`; estimates come first."""
    turns = [(turn, shape, tile) for shape, tiles in wanted.items() for turn, tile in enumerate(tiles)]
    tasks = [(shape, tile) for _, shape, tile in sorted(turns, key=lambda entry: entry[0])]
    # Not forked: this process may have talked to the GPU.
    pool = ProcessPoolExecutor(min(12, os.cpu_count() or 1, len(tasks)), multiprocessing.get_context("spawn"))
    futures = {pool.submit(_compile, *shape, tile, capability): (shape, tile) for shape, tile in tasks}
    done = wait(futures, max(0.0, until - time.monotonic())).done
    pool.shutdown(cancel_futures=True)
    ready = {futures[future] for future in done if future.exception() is None}
    return {shape: [tile for tile in tiles if (shape, tile) in ready] for shape, tiles in wanted.items()}


def _compile(name: str, N: int, tile: Tile, capability: int) -> None:
    with tuned.trial("linear", _key(name, N), tile.entry()):
        launches(call_layer, (name, N), capability)


def measure(name: str, N: int, tiles: Sequence[Tile], device: torch.device) -> dict[Tile, float]:
    """Milliseconds of one launch with each tile that the device takes and that gives what the first one gives."""
    OUT, IN, _ = LAYERS[name]
    calls = [layer(name, N, device=device.type) for _ in range(math.ceil(COPIES / (2 * OUT * IN)))]
    for call in calls:
        for tensor in (*call.args, *call.keywords.values()):
            if isinstance(tensor, torch.Tensor):
                tensor.normal_(std=0.05)
    start = calls[0].keywords.get("residual", torch.zeros((), device=device)).clone()
    times: dict[Tile, float] = {}
    want = None
    for tile in tiles:
        with tuned.trial("linear", _key(name, N), tile.entry()):
            try:
                got = _once(calls[0], start)
            except launch.triton.runtime.errors.OutOfResources:
                continue
            want = got if want is None else want
            if relative(got, want) < SAME:
                times[tile] = per_call(calls, device)
    return times


def _once(call: partial[torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """What a layer gives; with a residual, added to `start`."""
    if "residual" in call.keywords:
        call.keywords["residual"].copy_(start)
    return call().clone()


def best(times: Times, estimate: Tile) -> Tile:
    """The fastest, or the estimate where that is hardly slower."""
    fastest = min(times, key=lambda tile: times[tile])
    if estimate in times and times[fastest] > WORTH_IT * times[estimate]:
        return estimate
    return fastest


def save(found: Mapping[str, Mapping[str, int]], file: Path) -> None:
    """Into the file; what it has of other shapes and kernels stays."""
    table = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    table["linear"] = {**table.get("linear", {}), **found}
    file.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _candidates(name: str, N: int, device: torch.device) -> list[Tile]:
    OUT, _, around = LAYERS[name]
    swiglu = "swiglu" in around
    return candidates(depth(N), OUT // (1 + swiglu), swiglu, "norm" in around, device)


def _key(name: str, N: int) -> str:
    OUT, IN, around = LAYERS[name]
    swiglu = "swiglu" in around
    return shape_key(depth(N), OUT // (1 + swiglu), IN, swiglu)


def _name(name: str, N: int) -> str:
    return f"{name} N={N}"


if __name__ == "__main__":
    sys.exit(main())
