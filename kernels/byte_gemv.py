"""One row of x times a weight of one byte: y[o] = sum_i x[i] * W[o, i], with the norm before it and what follows.

A warp takes 512 columns of a row a step, 16 bytes a thread; the real model's rows are 5, 8 or 19 such steps without a
rest. Where W has many rows, each warp has rows of its own, and no warp waits for another. Where it has few, the warps
of a program share its rows: more of them are at work on a multiprocessor, and each needs its part of x alone.
"""

from __future__ import annotations

import torch

from .byte_code import Bytes, fma, sixteen, weights
from .byte_tile import SPAN, ByteTile
from .launch import jit, tl, triton
from .swiglu import silu


def byte_gemv(
    x: torch.Tensor,
    weight: Bytes,
    y: torch.Tensor,
    tile: ByteTile,
    *,
    norm: torch.Tensor | None,
    eps: float,
    residual: bool,
    swiglu: bool,
) -> None:
    """x: [1, IN]    y: [1, OUT], with `residual` added to what it holds."""
    OUT = y.shape[1]
    codes, scale, offset = weight.pointers()
    _gemv_kernel[(triton.cdiv(OUT, tile.rows),)](
        *(x, codes, scale, offset, x if norm is None else norm, y, codes.stride(0), scale.stride(0)),
        *(OUT, weight.columns, eps, weight.unit, weight.shift),
        CODE=weight.code,
        SCALES=weight.scales,
        HAS_NORM=norm is not None,
        HAS_RESIDUAL=residual,
        SWIGLU=swiglu,
        ROWS=tile.rows // (1 if tile.side_by_side else tile.warps),
        STACKED=1 if tile.side_by_side else tile.warps,
        BESIDE=tile.warps if tile.side_by_side else 1,
        STAGES=tile.stages,
        num_warps=tile.warps,
        maxnreg=128 if tile.side_by_side else None,  # told nothing, ptxas spills for 10.0 to save registers
    )


@jit
def _gemv_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, g_ptr, y_ptr, stride_wo, stride_so, OUT, IN, eps, unit, shift,
    CODE: tl.constexpr, SCALES: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr,
    ROWS: tl.constexpr, STACKED: tl.constexpr, BESIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """ROWS outputs of each of STACKED warps, or of BESIDE warps together; one of the two is 1."""
    WARPS: tl.constexpr = STACKED * BESIDE
    warp = tl.arange(0, WARPS)[None, :, None, None]
    o = tl.program_id(0) * (ROWS * STACKED) + tl.arange(0, ROWS)[:, None, None, None] * STACKED + warp % STACKED
    outputs = (
        tl.program_id(0) * (ROWS * STACKED) + tl.arange(0, ROWS)[:, None] * STACKED + tl.arange(0, STACKED)[None, :]
    )
    if HAS_RESIDUAL:  # asked for now: after the loop everybody would wait for it
        residual = tl.load(y_ptr + outputs, mask=outputs < OUT, other=0.0).to(tl.float32)
    acc = tl.zeros((ROWS, WARPS, 1, 32, 8), tl.float32)
    acc_up = tl.zeros((ROWS, WARPS, 1, 32, 8), tl.float32)
    squares = tl.zeros((1, WARPS, 1, 32), tl.float32)
    exists = o < OUT
    for start in tl.range(0, IN, BESIDE * SPAN, num_stages=STAGES):
        first = start + warp // STACKED * SPAN  # stacked warps alike: the threads must lie as they do for W
        x = sixteen(x_ptr, 0 * first, first, first < IN, IN, 32).to(tl.float32)
        if HAS_NORM:
            squares += tl.sum(x * x, 4)
            x *= sixteen(g_ptr, 0 * first, first, first < IN, IN, 32).to(tl.float32)
        w = weights(w_ptr, s_ptr, z_ptr, o, stride_wo, stride_so, first, exists, IN, shift, CODE, SCALES, 32)
        acc = _add(w, x, acc)
        if SWIGLU:
            up = OUT + o
            w = weights(w_ptr, s_ptr, z_ptr, up, stride_wo, stride_so, first, exists, IN, shift, CODE, SCALES, 32)
            acc_up = _add(w, x, acc_up)
    y = _over_threads(tl.sum(acc, 4), STACKED)
    # What is the same for all of x can wait until here.
    scale = unit
    if HAS_NORM:
        scale = unit * tl.rsqrt(_over_threads(squares, STACKED) / IN + eps)
    y *= scale
    if SCALES == "row":
        y *= tl.load(s_ptr + outputs, mask=outputs < OUT, other=0.0)
    if SWIGLU:
        up = _over_threads(tl.sum(acc_up, 4), STACKED) * scale
        if SCALES == "row":
            up *= tl.load(s_ptr + OUT + outputs, mask=outputs < OUT, other=0.0)
        y = silu(y) * up
    if HAS_RESIDUAL:
        y += residual
    tl.store(y_ptr + outputs, y.to(y_ptr.dtype.element_ty), mask=outputs < OUT)


@jit
def _add(w, x, acc):
    """acc [..., 8] + w * x [..., 16], in pairs: half the sums need half the registers."""
    w0, w1 = tl.split(tl.reshape(w, (acc.shape[0], acc.shape[1], 1, 32, 8, 2)))
    x0, x1 = tl.split(tl.reshape(x, (1, acc.shape[1], 1, 32, 8, 2)))
    return fma(w1, tl.broadcast_to(x1, acc.shape), fma(w0, tl.broadcast_to(x0, acc.shape), acc))


@jit
def _over_threads(parts, STACKED: tl.constexpr):
    """[rows, warps, 1, 32] -> [rows, STACKED]"""
    threads: tl.constexpr = parts.shape[1] * 32 // STACKED
    return tl.sum(tl.reshape(parts, (parts.shape[0], STACKED, threads)), 2)
