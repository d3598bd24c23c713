"""How long a checkpoint takes to load, and how much memory beyond its weights that needs at the highest point.

Each load runs in a process of its own, after the imports, with the file in the page cache. `weights` are the bytes that
the loaded engine holds: the model's and the codec decoder's parameters. The text embedding stays in the file.

    python -m octavo.bench.loading FOLDER fp32|bf16         one load, in this process; prints what it cost as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from octavo.runtime import Engine
from octavo.runtime.checkpoint import Checkpoint

from .measure import Case, Check, Result, Timing, interleave

ASKED = 1.10  # peak over weights
# 36 layers, as the published model has, of a width that loads in a second or two.
WIDTHS = {"layers": 36, "hidden": 1024, "heads": 16, "kv_heads": 4, "head_dim": 64, "ffn": 3072}


def loading_results(folder: Path, repetitions: int, dtypes: Sequence[str] = ("fp32", "bf16")) -> list[Result]:
    """Peak memory over weights, and seconds. Raises CheckFailed where a loaded weight is not the file's."""
    results = []
    for dtype in dtypes:
        loads = [_load_apart(folder, dtype) for _ in range(repetitions)]
        weights, timing = loads[0]["weights"], Timing.of([load["seconds"] for load in loads])
        check = Check("difference of the loaded weights from the file's", max(load["error"] for load in loads), 0)
        case = f"{dtype}, {weights / 1e9:.2g} GB of weights"
        if all(load["peak"] for load in loads):
            peak = max(load["peak"] for load in loads) / weights
            results.append(Result("loading", "peak memory", case, peak, "of the weights", ASKED, True, (check,)))
        results.append(Result("", "loading", case, timing.p10 / 1e3, "s", checks=(check,), timings={"octavo": timing}))
    return results


def _load_apart(folder: Path, dtype: str) -> dict:
    command = [sys.executable, "-m", "octavo.bench.loading", str(folder), dtype]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Loading {folder} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def load_here(folder: Path, dtype: str) -> dict:
    """Loads on the CPU. Returns seconds, weights and peak (bytes; peak None where the system does not tell), error."""
    torch.set_num_threads(1)
    before = _reset_peak()
    engines = []
    # A KV cache of one page: what it takes is the user's choice, not the weights'.
    load = Case(lambda: engines.append(Engine.load(folder, "cpu", dtype, max_batch=1, max_context=16, kv_rows=16)))
    timing = interleave({"load": load}, 1, warm_up=0)["load"]
    peak = _memory("VmHWM") - before if before else None
    engine = engines[0]
    held = sum(tensor.nbytes for part in (engine.model, engine.codec.decoder) for tensor in _tensors(part))
    stored, error = Checkpoint.open(folder), 0.0
    for number, layer in enumerate(engine.model.body.layers):  # type: ignore[attr-defined]
        want = stored[f"body.layers.{number}.mlp.down_proj.weight"]
        got = layer.down_proj.weight
        got = got.to_dense() if got.is_mkldnn else got
        error = max(error, (got.float() - want.float()).abs().max().item())
    return {"seconds": timing.median / 1e3, "weights": held, "peak": peak, "error": error}


def _tensors(module) -> list:
    return [*module.parameters(), *module.buffers()]


def _reset_peak() -> int | None:
    """Makes the peak the present resident set and returns that, in bytes; None where the system has no such thing."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    except (OSError, LookupError):
        return None


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


if __name__ == "__main__":
    print(json.dumps(load_here(Path(sys.argv[1]), sys.argv[2])))
