"""How products with weights of one byte are cut: (rows of x, shape of W) -> tile.

By the estimate, on an H200's 132 multiprocessors, bf16 rows and one scale a row: programs; how many of them one
multiprocessor holds at once; KB of W on their way to it, while the oldest step is computed and while it is waited for.
33 KB are wanted (linear.py). Half the bytes of 16-bit weights leave twice the work for each of them: decoding and the
product are 4.1 to 5.2 instructions a weight in these kernels, of the 7 that byte_code.py counts.

    W                       one row of x           8 rows               16 rows
    o_proj   2560 x 4096     640   5   40-79       128  1  50-60        128  1  50-60
    down     2560 x 9728     640   5   40-79       128  1  50-60        128  1  50-60
    qkv      6144 x 2560     384   3   48-71       192  2  48-60        192  2  36-48
    gate_up 19456 x 2560    1216   7   57-115      304  2  66-98        304  2  66-98
    head     8208 x 2560     513   4   64-96       257  2  64-80        257  2  48-64
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import linear_tile
from .launch import constexpr, multiprocessors
from .linear_tile import padded

SPAN = constexpr(512)  # columns that a warp of the GEMV takes in a step


@dataclass(frozen=True)
class ByteTile:
    rows: int  # outputs of one program: rows of W, or pairs of rows with SwiGLU
    warps: int
    stages: int  # steps under way, and the one that is computed
    side_by_side: bool  # the warps share the columns of a step, not the rows: always so for several rows of x


def byte_tile(
    depth: int, outputs: int, swiglu: bool, norm: torch.Tensor | None, x: torch.Tensor, groups: int
) -> ByteTile:
    """outputs: of the layer, with SwiGLU half the rows of W. groups: arrays of numbers per group, 0 to 2."""
    processors = multiprocessors(x.device)
    if depth == 1:
        if outputs < 32 * processors:
            return ByteTile(rows=4, warps=4, stages=3, side_by_side=True)
        # A warp's part of x costs about as much as two rows of W, with the norm as four: then it takes 8 rows, not 4.
        rows = (16 if norm is not None else 8) // (1 + swiglu)
        return ByteTile(rows, warps=2, stages=3 if outputs > 6 * rows * processors else 4, side_by_side=False)
    if x.itemsize == 4:  # fp32 has no matrix instructions of its own; it is for checking
        return ByteTile(rows=16, warps=4, stages=2, side_by_side=True)
    even = -(-outputs // processors)
    rows = min(32, max(16, (even + 3) // 4 * 4))
    warps = 8 if rows < 32 else 4
    at_once = min(2, -(-outputs // rows // processors))
    room, buffer = shared_memory(x.device) - 2048, step_bytes(depth, rows, warps, swiglu, norm, x, groups)
    # Two at least, if need be for one program at once; one where a GPU has no room for two.
    buffers = max(min(2, room // buffer), min(6, room // at_once // buffer))
    return ByteTile(rows, warps, 1 + buffers, side_by_side=True)


def shared_memory(device: torch.device) -> int:
    return linear_tile._shared_memory(device)


def step_bytes(
    depth: int, rows: int, warps: int, swiglu: bool, norm: torch.Tensor | None, x: torch.Tensor, groups: int
) -> int:
    """Shared memory of one buffer: W and its groups' words, x, and the norm's weight, which 8 rows want alike."""
    lines = padded(depth, rows) * (1 + swiglu) * (16 + 4 * groups)
    others = depth * 16 * x.itemsize + (0 if norm is None else 8 * 16 * norm.itemsize)
    return warps * 4 * (lines + others)
