"""What it takes to quantize a checkpoint, and what comes out: minutes, memory at the highest point, size of the file.

    python -m octavo.bench.quantize CHECKPOINT --json OUT [--only NAME ...] [--gate]

Each format is made by `octavo quantize` in a process of its own, beside CHECKPOINT, and removed again; for the real
shape, `octavo.tools.make_checkpoint --size 4b` makes one. Sizes are asked of the real shape. Without --gate nothing is
compared afterwards: the time is that of quantizing and writing. AWQ rounds plainly here; its search wants a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .command import text
from .measure import Case, Result, interleave, machine, save

THREADS = os.cpu_count() or 1  # of quantizing
MINUTES = 10  # that K-quants may take on two cores
REAL = 4_000_000_000  # parameters: the real shape has more, and sizes are asked of nothing smaller
GATE_FAILED = 3  # exit code


@dataclass(frozen=True)
class Format:
    options: str
    most_gb: float | None = None
    minutes: float | None = None


FORMATS = {
    "Q8_0": Format("--format gguf --type q8_0", 4.8),
    "Q6_K": Format("--format gguf --type q6_k", minutes=MINUTES),
    "Q5_K": Format("--format gguf --type q5_k", minutes=MINUTES),
    "Q4_K_M": Format("--format gguf --type q4_k_m", 3.1, MINUTES),
    "Q4_K, even": Format("--format gguf --type q4_k_even", 3.1, MINUTES),
    "AWQ, plain rounding": Format("--format awq --calib none", 2.75),
    "int8": Format("--format int8", 4.8),
    "fp8": Format("--format fp8", 4.8),
    "NF4": Format("--format nf4", 2.75),
}


def quantizing(source: Path, name: str, gate: bool) -> list[Result]:
    """One format. Raises RuntimeError when the command fails."""
    wanted = FORMATS[name]
    with TemporaryDirectory(dir=source.parent) as folder:
        out = Path(folder) / ("made.gguf" if "gguf" in wanted.options else "made")
        peaks: list[int] = []
        arguments = [str(source), str(out), *wanted.options.split(), *([] if gate else ["--no-gate"])]
        timing = interleave({"octavo": Case(lambda: peaks.append(_run(arguments)))}, 1, warm_up=0, threads=THREADS)
        (made,) = Path(folder).iterdir()
        files = [made] if made.is_file() else list(made.iterdir())
        nbytes = sum(file.stat().st_size for file in files)
    real = sum(file.stat().st_size for file in source.glob("*.safetensors")) / 2 > REAL
    size = wanted.most_gb if real else None
    case = f"{name}{', with its gate' if gate else ''}, {THREADS} threads"
    seconds, peak = timing["octavo"].median / 1e3, peaks[0]
    return [
        Result("size" if size else "", "file size", name, nbytes / 1e9, "GB", size, True),
        Result("quantizing" if real and wanted.minutes else "", "quantizing", case, seconds / 60, "min",
               wanted.minutes if real else None, True, timings=timing),
        Result("", "peak memory of quantizing", case, peak / 1e9, "GB"),
    ]  # fmt: skip


def _run(arguments: list[str]) -> int:
    """Bytes of memory at the highest point: the mapped source counts where it is resident."""
    child = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "octavo.tools.cli", "quantize", *arguments], dict(os.environ)
    )
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, GATE_FAILED):
        raise RuntimeError(f"octavo quantize {' '.join(arguments)} ended with exit code {code}.")
    return usage.ru_maxrss * 1024


def main(argv: list[str] | None = None) -> int:
    description = (__doc__ or "").split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python -m octavo.bench.quantize", description=description)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--json", type=Path, required=True, metavar="OUT", help="where the figures go")
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="NAME")
    parser.add_argument("--gate", action="store_true", help="the gate's time counts as well")
    args = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    facts, results = machine(datetime.date.today().isoformat()), []
    for name in args.only:
        results += quantizing(args.checkpoint.resolve(), name, args.gate)
        print(text(results[-3:]), flush=True)
        save(args.json, facts, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
