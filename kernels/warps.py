"""What products of several warps share: the sum over the warps, and where the outputs go."""

from __future__ import annotations

from .launch import jit, tl


@jit
def outputs(y_ptr, stride_yn, N, OUT, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr):
    """Pointers [BLOCK_O, BLOCK_N] to this program's outputs, and which of them exist."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    row = tl.arange(0, BLOCK_O)[:, None]
    o = tl.program_id(1) * ROWS + row
    return y_ptr + n.to(tl.int64) * stride_yn + o, (n < N) & (row < ROWS) & (o < OUT)


@jit
def over_warps(parts, ROWS: tl.constexpr, COLS: tl.constexpr, SPLIT: tl.constexpr):
    """[SPLIT, ROWS, COLS], one part from each warp -> their sum. By halves, because `split` wants both halves in one
    thread, so that all parts cross shared memory once; tl.sum over warps would cross it, and wait, again and again."""
    parts = tl.permute(parts, (1, 2, 0))
    if SPLIT >= 8:
        a, b = tl.split(tl.reshape(parts, (ROWS, COLS, 4, 2)))
        parts = a + b
    if SPLIT >= 4:
        a, b = tl.split(tl.reshape(parts, (ROWS, COLS, 2, 2)))
        parts = a + b
    if SPLIT >= 2:
        a, b = tl.split(tl.reshape(parts, (ROWS, COLS, 1, 2)))
        parts = a + b
    return tl.reshape(parts, (ROWS, COLS))
