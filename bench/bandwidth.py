"""How much of the memory's bandwidth a row takes at the real width: 4 layers of the published model in bf16, batch 1,
two threads. A row of one request can be no faster than its weights are read.

The share is what a row must read, divided by its time, over the bytes per second that plain reductions of a large
buffer reach in the same run, by turns with it.
"""

from __future__ import annotations

from pathlib import Path

import torch

from octavo.kernels.cpu_packed import FewAndMany
from octavo.kernels.huge_pages import use_huge_pages
from octavo.runtime.layers.linear import Linear

from .baseline import Baseline
from .measure import Case, Result, interleave
from .request import Probe, load_probe
from .step import CONTEXT, GREEDY, Course, Sides

WIDTHS = {"layers": 4, "hidden": 2560, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 9728}
ASKED = 0.9
THREADS = 2
READ = 256 << 20  # bytes of one pass over the buffer; far more than the caches hold


def bandwidth_results(folder: Path, device: torch.device, repetitions: int, read: int = READ) -> list[Result]:
    """octavo's share and that of transformers. Raises CheckFailed where their hidden states differ."""
    course = Course.random(device)
    exact = Baseline(folder, device, torch.float32)
    with exact.rounded_rope():
        want, _ = course.through(exact)
    del exact
    runner = load_probe(folder, device, torch.bfloat16)
    sides = Sides(runner, Baseline(folder, device, torch.bfloat16), course, want)
    request, check = sides.request(GREEDY)
    cases = {
        "octavo": Case(request.decode, request.rewind),
        "baseline": sides.from_cache(lambda: sides.logits().argmax(-1)[0].tolist()),
        **reductions(read),
    }
    timings = interleave(cases, repetitions, threads=THREADS)
    fastest = min((name for name in cases if name.startswith("read")), key=lambda name: timings[name].p10)
    nbytes, bandwidth = row_bytes(runner), read / timings[fastest].p10
    layers = runner.model.cfg.num_layers
    results = []
    for name, who, asked in (("octavo", "octavo", ASKED), ("baseline", "transformers", None)):
        share = nbytes / timings[name].p10 / bandwidth
        case = f"{who}, {layers} layers of the real width, bf16, batch 1, {nbytes / 1e9:.2f} GB, {THREADS} threads"
        unit = f"of {bandwidth / 1e6:.1f} GB/s"
        mine = {name: timings[name], "read": timings[fastest]}
        goal = "CPU row" if asked else ""
        results.append(Result(goal, "bandwidth of a row", case, share, unit, asked, checks=(check,), timings=mine))
    return results


def reductions(read: int) -> dict[str, Case]:
    """Ways to read that many bytes once; which one is fastest differs from machine to machine."""
    memory = torch.ones(read // 4)
    use_huge_pages(memory.data_ptr(), memory.nbytes)
    whole = memory.view(torch.int32)
    return {"read, sum": Case(memory.sum), "read, max": Case(whole.max)}


def row_bytes(runner: Probe) -> int:
    """What a row of one request must read: each weight in the layout that one row takes, and its context's keys and
    values."""
    held = [module.weight for module in runner.model.modules() if isinstance(module, Linear)]
    weights = [weight.few if isinstance(weight, FewAndMany) else weight for weight in held]
    L, _, _, two, K, D = runner.pages.shape
    cache = CONTEXT * L * two * K * D * runner.pages.itemsize
    return sum(weight.nbytes for weight in weights) + cache
