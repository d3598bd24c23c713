"""Tiles found by measuring: `<gpu>.json` beside this file, one for each model of GPU, written by tools/gpu_check.py.

    {kernel: {shape: {field of the kernel's tile: number}}}    e.g.  {"linear": {"1 2560x4096": {"rows": 4, ...}}}

A shape that no file knows gets its kernel's own estimate.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

_trials: dict[tuple[str, str], dict[str, int]] = {}


def lookup(kernel: str, shape: str, device: torch.device) -> dict[str, int] | None:
    if _trials and (kernel, shape) in _trials:
        return _trials[kernel, shape]
    return _table(device).get(kernel, {}).get(shape) if device.type == "cuda" else None


def file_of(gpu: str) -> Path:
    """gpu: the name CUDA gives it. "NVIDIA H200" -> nvidia_h200.json."""
    return Path(__file__).with_name(re.sub(r"\W+", "_", gpu.lower()) + ".json")


@contextlib.contextmanager
def trial(kernel: str, shape: str, tile: dict[str, int]) -> Iterator[None]:
    """This tile for this shape, whatever the file says: how a tile is measured."""
    _trials[kernel, shape] = tile
    try:
        yield
    finally:
        del _trials[kernel, shape]


@cache
def _table(device: torch.device) -> dict[str, dict[str, dict[str, int]]]:
    file = file_of(torch.cuda.get_device_name(device))
    return json.loads(file.read_text()) if file.is_file() else {}
