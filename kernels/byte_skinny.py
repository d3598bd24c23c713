"""2 to 16 rows of x times a weight of one byte, on the matrix cores: linear.py's `_skinny_kernel`, decoding.

One scale per row of W waits until after the loop: codes are exact in 16 bits. With groups, code * scale + offset is
rounded to x.dtype, as a dense weight in that type is.
"""

from __future__ import annotations

import torch

from .byte_code import Bytes, sixteen, weights
from .byte_tile import ByteTile
from .launch import dot, jit, tl, triton
from .linear_tile import padded
from .swiglu import silu
from .warps import outputs, over_warps


def byte_skinny(
    x: torch.Tensor,
    weight: Bytes,
    y: torch.Tensor,
    tile: ByteTile,
    block_n: int,
    *,
    norm: torch.Tensor | None,
    eps: float,
    residual: bool,
    swiglu: bool,
) -> None:
    """x: [N, IN]    y: [N, OUT], with `residual` added to what it holds; rows of both may be strided."""
    N, OUT = y.shape
    codes, scale, offset = weight.pointers()
    _skinny_kernel[(triton.cdiv(N, block_n), triton.cdiv(OUT, tile.rows))](
        *(x, codes, scale, offset, x if norm is None else norm, y),
        *(x.stride(0), codes.stride(0), scale.stride(0), y.stride(0)),
        *(N, OUT, weight.columns, eps, weight.unit, weight.shift),
        CODE=weight.code,
        SCALES=weight.scales,
        HAS_NORM=norm is not None,
        HAS_RESIDUAL=residual,
        SWIGLU=swiglu,
        ROWS=tile.rows,
        BLOCK_N=block_n,
        BLOCK_O=padded(block_n, tile.rows),
        SPLIT=tile.warps,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@jit(do_not_specialize=["N"])  # one binary for every N: a row's bits must not hang on it
def _skinny_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, g_ptr, y_ptr, stride_xn, stride_wo, stride_so, stride_yn, N, OUT, IN, eps, unit, shift,
    CODE: tl.constexpr, SCALES: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """y^T = W x^T for ROWS outputs (padded to BLOCK_O) of BLOCK_N rows. Each of SPLIT warps takes 64 columns of a step:
    tiles are [groups of 8 rows, SPLIT, 8 rows, 4 threads, 16 columns]."""
    warp = tl.arange(0, SPLIT)[None, :, None, None] * 64
    r = tl.arange(0, 8)[None, None, :, None]
    o = tl.program_id(1) * ROWS + r
    end = min(OUT, (tl.program_id(1) + 1) * ROWS)
    n = tl.program_id(0) * BLOCK_N + r
    if HAS_RESIDUAL:  # asked for now: after the loop everybody would wait for it
        y_ptrs, stored = outputs(y_ptr, stride_yn, N, OUT, ROWS, BLOCK_N, BLOCK_O)
        residual = tl.load(y_ptrs, mask=stored, other=0.0).to(tl.float32)
    acc = tl.zeros((SPLIT, BLOCK_O, BLOCK_N), tl.float32)
    acc_up = tl.zeros((SPLIT, BLOCK_O, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_N // 8, SPLIT, 8, 4), tl.float32)  # one sum per thread and row
    for start in range(0, IN, SPLIT * 64):
        first = start + warp + 0 * r
        x = _rows_of_x(x_ptr, n, stride_xn, first, N, IN, BLOCK_N)
        if HAS_NORM:
            xf = x.to(tl.float32)
            squares += tl.sum(xf * xf, 4)
            # 8 rows alike: the threads must lie as they do for x
            x = (xf * sixteen(g_ptr, 0 * first, first, first < IN, IN, 4).to(tl.float32)).to(x.dtype)
        x = tl.permute(_operand(x, BLOCK_N, SPLIT), (0, 2, 1))
        w = _rows_of_w(w_ptr, s_ptr, z_ptr, o, end, stride_wo, stride_so, first, IN, shift, CODE, SCALES, BLOCK_O)
        acc = dot(_operand(w.to(x.dtype), BLOCK_O, SPLIT), x, acc, "tf32x3")
        if SWIGLU:
            up, last = OUT + o, OUT + end
            w = _rows_of_w(w_ptr, s_ptr, z_ptr, up, last, stride_wo, stride_so, first, IN, shift, CODE, SCALES, BLOCK_O)
            acc_up = dot(_operand(w.to(x.dtype), BLOCK_O, SPLIT), x, acc_up, "tf32x3")
    y = over_warps(acc, BLOCK_O, BLOCK_N, SPLIT)
    # What is the same for a whole row of x can wait until here.
    scale = unit
    if HAS_NORM:
        squares = tl.reshape(tl.permute(tl.sum(squares, 3), (1, 0, 2)), (SPLIT, 1, BLOCK_N))
        scale = unit * tl.rsqrt(over_warps(squares, 1, BLOCK_N, SPLIT) / IN + eps)
    y *= scale
    if SCALES == "row":
        rows = tl.program_id(1) * ROWS + tl.arange(0, BLOCK_O)[:, None]
        y *= tl.load(s_ptr + rows, mask=rows < OUT, other=0.0)
    if SWIGLU:
        up = over_warps(acc_up, BLOCK_O, BLOCK_N, SPLIT) * scale
        if SCALES == "row":
            up *= tl.load(s_ptr + OUT + rows, mask=rows < OUT, other=0.0)
        y = silu(y) * up
    if HAS_RESIDUAL:
        y += residual
    y_ptrs, stored = outputs(y_ptr, stride_yn, N, OUT, ROWS, BLOCK_N, BLOCK_O)
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=stored)


@jit
def _rows_of_x(x_ptr, n, stride_xn, first, N, IN, BLOCK_N: tl.constexpr):
    """[BLOCK_N / 8, SPLIT, 8, 4, 16], 8 rows a load: of more the compiler puts a thread's rows side by side into shared
    memory, where threads would then wait for each other's banks."""
    x = _eight_of_x(x_ptr, n, stride_xn, first, N, IN)
    if BLOCK_N == 16:
        x = _stack(x, _eight_of_x(x_ptr, n + 8, stride_xn, first, N, IN))
    return x


@jit
def _eight_of_x(x_ptr, n, stride_xn, first, N, IN):
    return sixteen(x_ptr, n.to(tl.int64) * stride_xn + 0 * first, first, (n < N) & (first < IN), IN, 4)


@jit
def _rows_of_w(
    w_ptr, s_ptr, z_ptr, o, end, stride_wo, stride_so, first, IN, shift,
    CODE: tl.constexpr, SCALES: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """[BLOCK_O / 8, SPLIT, 8, 4, 16]: rows o [1, 1, 8, 1] and those 8, 16 and 24 below, up to `end`."""
    w = weights(w_ptr, s_ptr, z_ptr, o, stride_wo, stride_so, first, o < end, IN, shift, CODE, SCALES, 4)
    o += 8
    v = weights(w_ptr, s_ptr, z_ptr, o, stride_wo, stride_so, first, o < end, IN, shift, CODE, SCALES, 4)
    w = _stack(w, v)
    if BLOCK_O == 32:
        o += 8
        v = weights(w_ptr, s_ptr, z_ptr, o, stride_wo, stride_so, first, o < end, IN, shift, CODE, SCALES, 4)
        o += 8
        u = weights(w_ptr, s_ptr, z_ptr, o, stride_wo, stride_so, first, o < end, IN, shift, CODE, SCALES, 4)
        w = _stack(w, _stack(v, u))
    return w


@jit
def _stack(above, below):
    """[G, ...] twice -> [2 G, ...]"""
    tile = tl.permute(tl.join(above, below), (5, 0, 1, 2, 3, 4))
    return tl.reshape(tile, (2 * above.shape[0], above.shape[1], 8, 4, 16))


@jit
def _operand(tile, ROWS: tl.constexpr, SPLIT: tl.constexpr):
    """[ROWS / 8, SPLIT, 8, 4, 16] as loaded -> [SPLIT, ROWS, 64] for the product, without moving anything.

    A product may take its columns in any order, if both operands agree. Thread q < 4 of a row has loaded columns
    16 q + 4 t + j, t < 4 and j < 4. Of operands that were loaded as bytes the compiler wants 16 t + 4 q + j there. So q
    and t change names."""
    tile = tl.reshape(tile, (ROWS // 8, SPLIT, 8, 4, 4, 4))  # group, warp, row, q, t, j
    return tl.reshape(tl.permute(tile, (1, 0, 2, 4, 3, 5)), (SPLIT, ROWS, 64))
