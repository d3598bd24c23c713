"""Quantized rows of the real shape on a GPU, beside bf16's in the same process: G2, G3, G5 of spec/performance.md.

A format's figures come behind a check of its products against plain ones. On the CPU a tiny model goes the same way,
for tests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from octavo.kernels.linear import linear
from octavo.runtime.config import EngineConfig
from octavo.runtime.layers.linear import Linear
from octavo.runtime.models.higgs_v3 import HiggsV3
from octavo.runtime.runner import Runner

from .gpu_kernels import per_call
from .gpu_row import CONTEXT, ROWS_TIMED, running
from .measure import Case, CheckFailed, interleave
from .random_model import cache_bytes, quantized_model, random_matrix, random_model, weight_bytes, widths_for

KINDS = ("int4", "int8", "fp8")
TIMES = {  # kind, batch -> as fast as bf16: G3, G5
    ("int4", 1): ("G3", 2.4),
    ("int4", 16): ("G5", 1.6),
    ("int4", 64): ("G5", 1.1),
    ("int4", 128): ("G5", 1.0),
    ("fp8", 16): ("G5", 1.5),
    ("fp8", 64): ("G5", 1.3),
    ("fp8", 128): ("G5", 1.2),
    ("int8", 16): ("G5", 1.0),
    ("int8", 64): ("G5", 1.0),
    ("int8", 128): ("G5", 1.0),
}
# Of the root mean square. Above 16 rows fp8's activations have 3 bits behind the point, and SwiGLU multiplies two sums.
TOLERANCE = {"int4": 0.015, "int8": 0.015, "fp8": 0.05}
COLD = 150 << 20  # bytes of weights that a round of calls reads: three times the L2 cache of an H200
Figure = dict[str, Any]


def rows_by_format(device: torch.device) -> Iterator[Figure]:
    """The whole row, replayed, bf16's and a format's by turns."""
    batches = (1, 8, 16, 32, 64, 128, 256) if device.type == "cuda" else (1, 3)
    for kind in KINDS:
        check = _checked(device, kind)
        models = {"plain": random_model(device), kind: quantized_model(device, kind)}
        runners = {name: _runner(model, max(batches)) for name, model in models.items()}
        for batch in batches:
            with ExitStack() as stack:
                cases = {
                    name: _rows(stack.enter_context(running(runner, batch, CONTEXT - ROWS_TIMED // 2)))
                    for name, runner in runners.items()
                }
                timings = interleave(cases, 3, warm_up=1, device=device)
            ms = {name: timing.median / (ROWS_TIMED // 4) for name, timing in timings.items()}
            nbytes = weight_bytes(models[kind]) + batch * cache_bytes(models[kind], CONTEXT)
            figure = {"ms": ms[kind], "baseline_ms": ms["plain"], "bytes": nbytes, "check": check}
            case = f"{kind}, batch {batch}, context {CONTEXT}"
            if (kind, batch) == ("fp8", 1):
                yield {"case": f"{case}, share of bandwidth", **figure, "goal": "G2", "asked": 0.70}
            goal, asked = TIMES.get((kind, batch), ("", None))
            figure["times"] = ms["plain"] / ms[kind]
            yield {"case": case, **figure, **({"goal": goal, "asked": asked} if asked else {})}


def products_by_format(device: torch.device) -> Iterator[Figure]:
    """Each product alone, with cold weights, beside the plain one."""
    for name, (outputs, inputs, swiglu) in _shapes(device).items():
        dtype = random_model(device).dtype
        plain = [
            torch.randn(outputs, inputs, device=device).to(dtype) for _ in range(_copies(outputs * inputs * 2, device))
        ]
        for kind in KINDS:
            first = _packed(device, outputs, inputs, kind)
            weights = [first] + [copy.deepcopy(first) for _ in range(_copies(first.nbytes, device) - 1)]
            for N in (1, 4, 16, 32, 64, 128, 512) if device.type == "cuda" else (1, 3):
                x = torch.randn(N, inputs, device=device).to(dtype)
                ms = per_call([partial(linear, x, weight, swiglu=swiglu) for weight in weights], device)
                other = per_call([partial(linear, x, weight, swiglu=swiglu) for weight in plain], device)
                nbytes = weights[0].nbytes + N * (inputs + outputs) * x.itemsize
                yield {
                    "case": f"{kind} {name} N={N}",
                    "ms": ms,
                    "bytes": nbytes,
                    "baseline_ms": other,
                    "times_plain": other / ms,
                }


BENCHMARKS: dict[str, Callable[[torch.device], Iterator[Figure]]] = {
    "row by format": rows_by_format,
    "products by format": products_by_format,
}


def _rows(row: Callable[[], None]) -> Case:
    def some() -> None:
        for _ in range(ROWS_TIMED // 4):
            row()

    return Case(some)


def _copies(nbytes: int, device: torch.device) -> int:
    """Of a weight, so that no call finds its own in the cache."""
    return max(3, -(-COLD // nbytes)) if device.type == "cuda" else 1


def _shapes(device: torch.device) -> dict[str, tuple[int, int, bool]]:
    cfg = widths_for(device)
    return {
        "qkv": (cfg.q_size + 2 * cfg.kv_size, cfg.hidden_size, False),
        "o": (cfg.hidden_size, cfg.q_size, False),
        "gate_up": (2 * cfg.intermediate_size, cfg.hidden_size, True),
        "down": (cfg.hidden_size, cfg.intermediate_size, False),
    }


def _packed(device: torch.device, outputs: int, inputs: int, kind: str) -> Any:
    layer = Linear(inputs, outputs, device, random_model(device).dtype)
    layer.load(random_matrix(outputs, inputs, kind))
    return layer.weight


def _checked(device: torch.device, kind: str) -> str:
    """Raises CheckFailed unless the format's products are those of its dequantized weights."""
    worst = 0.0
    for outputs, inputs, swiglu in _shapes(device).values():
        matrix = random_matrix(outputs, inputs, kind)
        layer = Linear(inputs, outputs, device, random_model(device).dtype)
        layer.load(matrix)
        dense = matrix.dequantize().to(device)
        for N in (1, 4, 16, 40, 300):
            x = torch.randn(N, inputs, generator=torch.Generator().manual_seed(N)).to(device, layer.dtype)
            want = linear(x.float(), dense, swiglu=swiglu)
            got = linear(x, layer.weight, swiglu=swiglu).float()
            worst = max(worst, ((got - want).norm() / want.norm()).item())
    if not worst <= TOLERANCE[kind]:
        raise CheckFailed(f"products in {kind} are off by {worst:.3g} of their size, more than {TOLERANCE[kind]}")
    return f"{worst:.3g} <= {TOLERANCE[kind]}"


def _runner(model: HiggsV3, batch: int) -> Runner:
    runner = Runner(model, EngineConfig(max_batch=batch, kv_rows=(CONTEXT + 68) * batch, max_context=512))
    runner.capture()
    return runner
