"""All checks and benchmarks that need a GPU, in eight minutes: `python -m octavo.tools.gpu_check --out DIR`.

    --only kernels|row|codec|quant|engine    one part alone
    --seconds N                        all together (default: 480)

In a checkout, without installing octavo:

    make build/view && PYTHONPATH=build/view python3 -m octavo.tools.gpu_check --out DIR

Each part is two or three steps: its tests with the marker `gpu`, the search for tiles (kernels), its benchmarks at the
shapes of the real model with random weights. A step is a process with a deadline: what it had found when it was stopped
counts, and what it had not reached is named. Time that a step leaves goes to the later ones. DIR holds, after every
step, gpu_check.json, the same as a table in gpu_check.txt, and what the steps printed in gpu_check.log.

Exit code: 0, 1 if a check failed, 2 without a GPU.

A benchmark is added in bench/gpu_PART.py (see gpu_bench.py), a test by the marker `gpu`, a part in `steps`.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import gpu_lines
from .gpu_table import text

ROOT = Path(__file__).resolve().parents[1]
PARTS = {  # which test files are whose: the first that matches has them
    "quant": ("kernels/test_int*", "kernels/test_fp8*", "quant/*", "runtime/test_stored*"),
    "kernels": ("kernels/*",),
    "row": ("runtime/test_model*", "runtime/test_runner*", "runtime/test_graph*"),
    "codec": ("runtime/codec/*",),
    "engine": ("*",),
}
START_AND_END = 10  # seconds that a step may need for its imports, and for what it is in the middle of
FINE = (0, 5)  # exit codes of a step; 5: pytest had no test to run


@dataclass(frozen=True)
class Step:
    part: str
    what: str
    share: float  # of the time, against the other steps that are left
    command: Sequence[str]  # `{seconds}` in it: after how many it should come to an end by itself


def steps(out: Path) -> list[Step]:
    python = [sys.executable, "-m"]
    bench = [*python, "octavo.tools.gpu_bench"]
    shares = {"kernels": (5, 3), "row": (1, 3), "codec": (1, 2), "quant": (3, 4), "engine": (1, 4)}
    found, files_of = [], _test_files()
    for part, (tests, benchmarks) in shares.items():
        files = files_of[part]
        found.append(Step(part, "tests", tests, [*python, "pytest", *_pytest_options(), *files]))
        if part == "kernels":
            found.append(Step(part, "tiles", 4, [*python, "octavo.tools.gpu_tiles", "{seconds}", str(out)]))
        found.append(Step(part, "benchmarks", benchmarks, [*bench, part, "--seconds", "{seconds}"]))
    return found


def _test_files() -> dict[str, list[str]]:
    mine: dict[str, list[str]] = {part: [] for part in PARTS}
    folder = ROOT / "tests"
    for file in sorted(folder.rglob("test_*.py")):
        name = file.relative_to(folder).as_posix()
        part = next(part for part, patterns in PARTS.items() if any(fnmatch.fnmatch(name, p) for p in patterns))
        mine[part].append(str(file))
    return mine


def _pytest_options() -> list[str]:
    options = ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-m", "gpu", "-p", "octavo.tools.gpu_tests"]
    options += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if importlib.util.find_spec("xdist"):  # most of the time goes into compiling
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    return options


def run(steps: Sequence[Step], seconds: float, out: Path) -> dict[str, Any]:
    """Runs them within `seconds`; leaves the report in `out` after each, and returns it."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    report: dict[str, Any] = {"machine": machine(), "seconds": seconds, "steps": []}
    log = out / "gpu_check.log"
    log.write_bytes(b"")
    for number, step in enumerate(steps):
        left = max(0.0, end - time.monotonic())
        report["steps"].append(_run(step, left * step.share / sum(other.share for other in steps[number:]), log))
        (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (out / "gpu_check.txt").write_text(text(report), encoding="utf-8")
    return report


def _run(step: Step, seconds: float, log: Path) -> dict[str, Any]:
    """One step; all its processes are ended when its time is over, or when this one is ended."""
    command = [part.replace("{seconds}", f"{max(0.0, seconds - START_AND_END):.0f}") for part in step.command]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)}\n".encode())
        output.flush()
        lines = Path(folder) / "lines"
        environment = {**os.environ, gpu_lines.FILE: str(lines)}
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        told = gpu_lines.read(lines)
    checks = told["checks"]
    for name in told["planned"]:
        why = "was running when the step ended" if name in told["started"] else "the step ended before it began"
        checks.setdefault(name, {"name": name, "outcome": "not run", "why": why})
    ended = "stopped at its deadline" if code is None else "in time"
    explained = code == 1 and any(check["outcome"] == "failed" for check in checks.values())
    if code not in (None, *FINE) and not explained:
        why = f"exit code {code}: {log.read_text(encoding='utf-8', errors='replace').rstrip().splitlines()[-1]}"
        checks[step.what] = {"name": step.what, "outcome": "failed", "why": why}
    return {
        "part": step.part,
        "what": step.what,
        "ended": ended,
        "seconds": round(time.monotonic() - start, 1),
        "deadline": round(seconds, 1),
        "gpu_after": gpu_state(),
        **told["facts"],
        "checks": list(checks.values()),
        "figures": told["figures"],
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on, its clocks as they were found."""
    packages = ("octavo", "torch", "triton", "transformers", "numpy")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **{package: _version(package) for package in packages},
        "cores": os.cpu_count(),
        **gpu_state("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.mem", "power.limit"),
        **gpu_state(),
    }


def gpu_state(*fields: str) -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing where it is not."""
    fields = fields or ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu", "memory.used")
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in done.stdout.split(",")), strict=False))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def failed(report: Mapping[str, Any]) -> bool:
    return any(check["outcome"] == "failed" for step in report["steps"] for check in step["checks"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octavo.tools.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=480)
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu_check needs an NVIDIA GPU, and PyTorch sees none on this machine.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, so that the step is ended too
    chosen = [step for step in steps(args.out) if args.only in (None, step.part)]
    report = run(chosen, args.seconds, args.out)
    print(text(report))
    return 1 if failed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
