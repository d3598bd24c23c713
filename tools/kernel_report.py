"""What the compiler makes of every kernel, for GPUs that need not be here.

    python -m octavo.tools.kernel_report [--capability 80,90,100,120] [--level 1|2|3] [--only NAME] [--json FILE]

Each case of kernel_cases.py calls a public op at the real model's shape. Where the op would launch, Triton compiles
for the capability instead, with the types, the constants and the divisibility that it reads off the very arguments of
the launch. The binary then says what it needs: registers, spills (loads and stores of local memory), shared memory,
the width of its global loads, its matrix instructions. Prints the table, then what breaks a promise; exit code 1 if
anything does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import octavo.kernels
from octavo.kernels import launch, linear_tile

from .kernel_cases import CASES, Case
from .kernel_rows import SHARED, Row, broken, read, table

CAPABILITIES = (80, 90, 100, 120)


def rows(case: Case, capability: int) -> list[Row]:
    """Compiles whatever the case launches."""
    found = []
    for function, kernel, programs in launches(case.call, case.arguments, capability):
        meta, name = kernel.metadata, _name(function)
        sizes = programs, meta.num_warps, meta.num_stages
        text = _disassembled(kernel.asm["cubin"])
        found.append(Row(name, case.name, capability, *sizes, shared=meta.shared, **read(text)))
    return found


def launches(call: Callable[..., object], arguments: tuple, capability: int) -> list[tuple[Any, Any, int]]:
    """Runs `call`, on tensors of the CPU, and compiles what it launches: Triton's function, its kernel, programs."""
    found = []
    jitted = launch.triton.runtime.jit.JITFunction
    run = jitted.run

    def compile_only(function: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(function, *args, grid=grid, warmup=True, **kwargs)
        grid = grid(dict(zip(function.arg_names, args, strict=False)) | kwargs) if callable(grid) else grid
        found.append((function, kernel, math.prod(grid)))

    with _compiling_for(capability), launch.forced():
        jitted.run = compile_only
        try:
            call(*arguments)
        finally:
            jitted.run = run
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m octavo.tools.kernel_report", description=__doc__)
    parser.add_argument("--capability", type=_capabilities, default=CAPABILITIES, help="default: 80,90,100,120")
    parser.add_argument("--only", default="", metavar="NAME", help="cases whose name contains NAME")
    parser.add_argument("--level", type=int, default=3, choices=(1, 2, 3), help="of the cases; 1 is the fewest")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if launch.triton is None or os.environ.get("TRITON_INTERPRET") == "1":
        print("kernel_report needs Triton, and TRITON_INTERPRET unset.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    chosen = [case for case in CASES if args.only in case.name and case.level <= args.level]
    everything, found = report(chosen, args.capability)
    if not args.only:
        missing = kernels() - {row.kernel for row in everything}
        found += [f"{name} has no case in kernel_cases.py" for name in sorted(missing)]
    if args.json:
        content = {"triton": launch.triton.__version__, "rows": [asdict(row) for row in everything], "broken": found}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(everything))
    print(*found, sep="\n")
    return 1 if found else 0


def report(cases: Sequence[Case], capabilities: Sequence[int]) -> tuple[list[Row], list[str]]:
    """All rows, and all promises that are not kept; what does not compile is one of them."""
    everything: list[Row] = []
    found: list[str] = []
    for case in cases:
        for capability in capabilities:
            try:
                compiled = rows(case, capability)
            except Exception as error:  # of Triton's many; the other cases still get their rows
                found.append(f"{case.name} ({capability}): does not compile: {_cause(error)}")
            else:
                everything += compiled
                found += broken(case, compiled)
    return everything, found


def kernels() -> set[str]:
    """All kernels of octavo.kernels: Triton functions named _kernel or _<what>_kernel; others are called by these."""
    names = set()
    for module in pkgutil.iter_modules(octavo.kernels.__path__, "octavo.kernels."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if re.fullmatch(r"_(\w+_)?kernel", name) and isinstance(value, launch.triton.JITFunction):
                names.add(_name(value))
    return names


def _cause(error: BaseException) -> str:
    """The end of the innermost message: Triton's errors hold each other, one for each function on the way."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__}: {' ... '.join(lines[-2:])}"


def _name(function: Any) -> str:
    return f"{function.__module__.rsplit('.', 1)[-1]}.{function.__name__}"


@cache
def _disassembled(binary: bytes) -> str:
    """The resource usage and the machine code, by the cuobjdump that Triton ships."""
    tool = Path(launch.triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(tool), "-res-usage", "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def _compiling_for(capability: int) -> Iterator[None]:
    """Triton believes that it launches on such a device. It keeps what it knows of a device by the device's number."""
    config = launch.triton.runtime.driver
    target = launch.triton.backends.compiler.GPUTarget("cuda", capability, 32)
    before, shared = config._active, linear_tile._shared_memory
    linear_tile._shared_memory = lambda device: SHARED[capability] * 1024  # as it would ask the device
    config.set_active(
        SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: capability,
            get_current_stream=lambda device: 0,
        )
    )
    try:
        yield
    finally:
        config._active, linear_tile._shared_memory = before, shared


def _capabilities(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    unknown = [number for number in numbers if number not in SHARED]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown} is not among {sorted(SHARED)}")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
