"""How `int4_skinny` cuts its work: (rows of x, shape of W, group) -> tile.

The matrix instructions compute 16 rows of W by 8 columns. What the columns are is free: 8 or 16 rows of x; or, of
fewer rows, several slices of each, so that no lane works on zeros: 1 row x 8 slices, 2 x 4, 4 x 2.

A warp's step is `span` = parts * slices * length columns of W. `length` columns follow each other and lie in one group.

An H200 reads 37 weights of 4 bits per multiprocessor and cycle, which leaves 3.5 instructions of a thread for each of
its weights. Unpacking takes 0.9; the matrix instruction, the sums and the pipeline bring it to 1.6 for one row of x
(slices of 64) and about 3 for 16 rows with the norm, whose part is the less the more rows of W share it.

Under way is all of W that a program will read, or as much of it as its share of the shared memory holds: 32 KB for each
of o_proj's 160 programs, which is the whole matrix at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import linear_tile
from .int4_layout import COLUMNS
from .launch import multiprocessors

SKINNY = 16  # rows of x that one pass over W serves


@dataclass(frozen=True)
class Tile:
    rows: int  # outputs of one program: rows of W, or pairs of rows with SwiGLU
    block_n: int  # rows of x
    slices: int
    parts: int  # of a step: those that do not share a scale, although they are the same slice's
    length: int
    warps: int  # which share the columns of a step
    stages: int  # steps under way, and the one that is computed

    @property
    def span(self) -> int:
        return self.parts * self.slices * self.length


def tile_of(
    N: int, outputs: int, inputs: int, group: int, swiglu: bool, norm: bool, dtype: torch.dtype, device: torch.device,
    deterministic: bool,
) -> Tile:  # fmt: skip
    """outputs: of the layer, with SwiGLU half the rows of W."""
    processors = multiprocessors(device)
    block_n = SKINNY if deterministic or N > 8 else 1 << (N - 1).bit_length()
    slices = max(1, 8 // block_n)
    run = min(COLUMNS, group & -group)  # columns from any multiple of it on that have one scale
    rows = 16 if block_n == 1 or (swiglu and (block_n < SKINNY or run < COLUMNS)) or run < 32 else 32
    if swiglu and block_n == SKINNY and run < 32:
        rows = 8
    if dtype == torch.float32:  # has no matrix instructions of its own; it is for checking
        rows = 16
    programs = -(-outputs // rows)
    warps = 8 if programs < 2 * processors and dtype != torch.float32 else 4
    length = min(run, COLUMNS if slices == 1 else 64 if slices < 8 else _slice(inputs, warps))
    parts = max(1, COLUMNS // (slices * length))
    tile = Tile(rows, block_n, slices, parts, length, warps, stages=2)
    at_once = min(4, -(-programs // processors))
    room = linear_tile._shared_memory(device) // at_once - 2048
    steps = -(-inputs // (tile.span * warps))
    buffers = max(1, min(steps, 5, room // step_bytes(tile, swiglu, norm, group, dtype.itemsize)))
    return Tile(rows, block_n, slices, parts, length, warps, 1 + buffers)


def _slice(inputs: int, warps: int) -> int:
    """Columns of a slice of one row: long ones cost fewer instructions, but the last step may be mostly empty."""
    return min((64, 32), key=lambda length: -(-inputs // (8 * length * warps)) * (82 + 5.2 * length))


def step_bytes(tile: Tile, swiglu: bool, norm: bool, group: int, itemsize: int) -> int:
    """Shared memory of one buffer: codes, scales, x, the norm's weight (fp32 at most)."""
    rows = tile.rows * (1 + swiglu)
    x = tile.parts * tile.length * tile.block_n * tile.slices * itemsize
    return tile.warps * (rows * (tile.span // 2 + 4 * max(1, tile.span // group)) + x + norm * tile.span * 4)
