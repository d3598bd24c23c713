"""Triton, as the kernels' files import it: on any machine, so that their references work where Triton is not.

A public op looks at its first tensor: `on_triton(x)` says whether it launches its kernel or computes its reference.
Kernels run on CUDA. Without a GPU they run under Triton's interpreter (TRITON_INTERPRET=1, set before this file is
imported), inside `forced()`: slow, for tests.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch's CPU builds come without it
    triton = tl = None

_forced = False


def jit(function: Callable | None = None, **options: Any) -> Any:
    """`triton.jit`, with or without options; where there is no Triton, the bare function, which nothing calls."""
    if function is None:
        return lambda function: jit(function, **options)
    return function if triton is None else triton.jit(function, **options)


def constexpr(value: Any) -> Any:
    """A module's constant that kernels may read."""
    return value if tl is None else tl.constexpr(value)


INTERPRETED = constexpr(os.environ.get("TRITON_INTERPRET") == "1")


def on_triton(x: torch.Tensor) -> bool:
    return x.is_cuda or _forced


def multiprocessors(device: torch.device) -> int:
    """Of this GPU; an H200's where there is none, so that what is compiled without one is what would run."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


@contextlib.contextmanager
def forced() -> Iterator[None]:
    """Every op launches its kernel, whatever device its tensors are on: for the interpreter and for compile tests."""
    global _forced
    before, _forced = _forced, True
    try:
        yield
    finally:
        _forced = before


@jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in fp32. PRECISION is for fp32 operands: `tf32`, `tf32x3` or `ieee`."""
    if INTERPRETED:  # whose tl.dot multiplies the raw bits of bf16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)
