"""How `linear` cuts its work: (rows of x, shape of W) -> tile.

One step of a program reads `rows` rows of W (twice that with SwiGLU) by warps * 256 columns for one row of x, by
warps * 32 columns for several. By the estimate, on an H200's 132 multiprocessors, bf16: programs; how many of them one
multiprocessor holds at once; KB of W on their way to it, while the oldest step is computed and while it is waited for.
33 KB are wanted (linear.py).

    W                       one row of x           8 rows               16 rows
    o_proj   2560 x 4096     640   5   79-119      128  1  50-60        128  1  50-60
    down     2560 x 9728     640   5   79-119      128  1  50-60        128  1  50-60
    qkv      6144 x 2560    1536  11   90-135      192  2  60-71        192  2  60-71
    gate_up 19456 x 2560    2432   7  115-172      304  3  75-113       304  3  75-113
    head     8208 x 2560    2052  11   90-135      257  2  80-96        257  2  80-96

Where all programs run at once, each has the same number of bytes on its way and so the same share of the bandwidth:
they end together, though some multiprocessors hold one more than others.

Every program also reads x, from the L2 cache: with 16 rows of x, 16 bytes for every `rows` bytes of W. So a product of
several rows takes 32 rows of W a program, and fewer only where there would be fewer programs than multiprocessors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import tuned
from .launch import multiprocessors

SKINNY = 16  # rows of x that one pass over W serves


@dataclass(frozen=True)
class Tile:
    rows: int  # outputs of one program: rows of W, or pairs of rows with SwiGLU. N = 1: a power of two
    warps: int  # which share the columns of a step
    stages: int  # steps under way, and the one that is computed

    def __post_init__(self):
        assert 0 < self.rows <= 128 and self.warps in (1, 2, 4, 8) and 2 <= self.stages <= 10, self

    def entry(self) -> dict[str, int]:
        """As a table of tuned tiles keeps it."""
        return asdict(self)


def depth(N: int) -> int:
    """The rows of x that a program computes: 1, 8 or 16. The matrix instructions have no less than 8."""
    return 1 if N == 1 else 8 if N <= 8 else SKINNY


def tile_of(
    depth: int, outputs: int, inputs: int, swiglu: bool, norm: bool, dtype: torch.dtype, device: torch.device
) -> Tile:
    """outputs: of the layer, with SwiGLU half the rows of W."""
    found = tuned.lookup("linear", shape_key(depth, outputs, inputs, swiglu), device) if dtype.itemsize == 2 else None
    return Tile(**found) if found else estimate(depth, outputs, swiglu, norm, dtype.itemsize, device)


def shape_key(depth: int, outputs: int, inputs: int, swiglu: bool) -> str:
    """The line of a shape in the table of tuned tiles: 16-bit weights, whatever else `linear` does."""
    return f"{depth} {outputs}x{inputs}{' swiglu' if swiglu else ''}"


def estimate(depth: int, outputs: int, swiglu: bool, norm: bool, itemsize: int, device: torch.device) -> Tile:
    processors = multiprocessors(device)
    if depth > 1 and itemsize == 4:  # fp32 has no matrix instructions of its own; it is for checking
        return Tile(rows=16, warps=4, stages=2)
    if depth == 1:
        return Tile(rows=4, warps=4 if outputs < 32 * processors else 2, stages=4)
    even = -(-outputs // processors)
    rows = min(32, max(16, (even + 3) // 4 * 4))
    warps = 8 if rows < 32 else 4
    at_once = min(3, -(-outputs // rows // processors))
    room = _shared_memory(device) // at_once - 2048
    return Tile(rows, warps, stages=1 + max(2, min(6, room // step_bytes(depth, rows, warps, swiglu, norm, itemsize))))


def columns(depth: int, warps: int, itemsize: int) -> int:
    """Of one step."""
    return warps * (512 // itemsize if depth == 1 else 32)


def padded(depth: int, rows: int) -> int:
    """The product's tiles are 16 rows high or a power of two more."""
    return rows if depth == 1 else 1 << max(4, (rows - 1).bit_length())


def step_bytes(depth: int, rows: int, warps: int, swiglu: bool, norm: bool, itemsize: int) -> int:
    """Shared memory of one buffer: the tiles of W and of x, and the norm's weight, which the product wants 8 times."""
    lines = padded(depth, rows) * (1 + swiglu) + depth + norm * (1 if depth == 1 else 8)
    return lines * columns(depth, warps, itemsize) * itemsize


def candidates(depth: int, outputs: int, swiglu: bool, norm: bool, device: torch.device) -> list[Tile]:
    """Tiles worth measuring, the estimate first."""
    first = estimate(depth, outputs, swiglu, norm, 2, device)
    if depth == 1:
        more = [Tile(rows, warps, stages) for warps in (2, 4) for rows in (2, 4, 8) for stages in (3, 4, 6)]
    else:
        heights = sorted({16, first.rows, 32, 48})
        more = [Tile(rows, warps, stages) for warps in (4, 8) for rows in heights for stages in (4, 6, 8)]
    room = _shared_memory(device)
    fits = [t for t in more if (t.stages - 1) * step_bytes(depth, t.rows, t.warps, swiglu, norm, 2) < room]
    return [first, *(t for t in fits if t != first)]


def _shared_memory(device: torch.device) -> int:
    """Bytes a program may have; an H200's where there is no GPU."""
    if device.type != "cuda":
        return 232448
    properties: Any = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin
