"""More than 16 rows of x times a weight of one byte: a product on the matrix cores that decodes W in registers.

A program computes 128 outputs of up to 128 rows over a part of the columns: few rows of W (2560) make few programs, so
that several share the columns, and the sums of the parts meet in a second, small launch, with what follows the product:
scales of rows, SwiGLU, a residual. As in byte_skinny.py, code * scale + offset of groups is rounded to x.dtype.
"""

from __future__ import annotations

import torch

from .byte_code import Bytes, weights
from .byte_tile import shared_memory
from .launch import dot, jit, multiprocessors, tl, triton
from .swiglu import silu

BLOCK_O, BLOCK_K = 128, 128


def byte_wide(x: torch.Tensor, weight: Bytes, y: torch.Tensor, *, residual: bool, swiglu: bool) -> None:
    """x: [N, IN]    y: [N, OUT], with `residual` added to what it holds; rows of both may be strided."""
    (N, OUT), ROWS, IN = y.shape, weight.codes.shape[0], weight.columns
    codes, scale, offset = weight.pointers()
    block_n, stages = _block(N, x.itemsize, weight, shared_memory(x.device))
    splits, share = _splits(
        triton.cdiv(ROWS, BLOCK_O) * triton.cdiv(N, block_n), IN, block_n, multiprocessors(x.device)
    )
    parts = torch.empty(splits, N, ROWS, device=x.device)
    _gemm_kernel[(triton.cdiv(N, block_n), triton.cdiv(ROWS, BLOCK_O), splits)](
        *(x, codes, scale, offset, parts, x.stride(0), codes.stride(0), scale.stride(0)),
        *(N, ROWS, IN, weight.shift, share * BLOCK_K),
        CODE=weight.code,
        SCALES=weight.scales,
        BLOCK_N=block_n,
        BLOCK_O=BLOCK_O,
        BLOCK_K=BLOCK_K,
        num_warps=8,
        num_stages=stages,
        maxnreg=255,  # told nothing, ptxas spills for 8.0 to save registers
    )
    _meet_kernel[(N, triton.cdiv(OUT, 512))](
        *(parts, scale, y, y.stride(0), N, OUT, ROWS, splits, weight.unit),
        SCALED=not weight.group,
        HAS_RESIDUAL=residual,
        SWIGLU=swiglu,
        num_warps=4,
    )


def _block(N: int, itemsize: int, weight: Bytes, room: int) -> tuple[int, int]:
    """Rows of x in a program, and its stages: as many as fit. Besides the buffers, W takes its way to the operand's
    place through shared memory, up to 2 bytes a weight."""
    step = BLOCK_O * BLOCK_K + weight.arrays * 4 * BLOCK_O * BLOCK_K // 16
    for block_n in (128, 64, 32):
        stages = 1 + (room - 2 * BLOCK_O * BLOCK_K) // (step + block_n * BLOCK_K * itemsize)
        if (N > block_n // 2 and stages >= 3) or block_n == 32:
            break
    return block_n, max(2, min(4, stages))


def _splits(tiles: int, IN: int, block_n: int, processors: int) -> tuple[int, int]:
    """How many programs share the columns of a tile, and how many steps each takes.

    A multiprocessor holds one program. That reads its columns of W, and of x, 2 bytes each from a cache twice as fast,
    and writes sums of 4 bytes that are read again; the last round of programs is as long as the others."""
    steps = -(-IN // BLOCK_K)

    def bytes_in_turn(share: int) -> int:
        rounds = -(-tiles * -(-steps // share) // processors)
        return rounds * (share * BLOCK_K * (BLOCK_O + block_n) + 8 * BLOCK_O * block_n)

    share = min(range(min(4, steps), steps + 1), key=bytes_in_turn)
    return -(-steps // share), share


@jit(do_not_specialize=["N"])  # it changes from prompt to prompt: nobody shall wait for a compiler
def _gemm_kernel(
    x_ptr, w_ptr, s_ptr, z_ptr, p_ptr, stride_xn, stride_wo, stride_so, N, ROWS, IN, shift, SHARE,
    CODE: tl.constexpr, SCALES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """W is the first operand, because that one may come from registers."""
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)[:, None, None, None]
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    begin = tl.program_id(2) * SHARE
    end = min(IN, begin + SHARE)
    acc = tl.zeros((BLOCK_O, BLOCK_N), tl.float32)
    for start in range(begin, end, BLOCK_K):
        w = weights(
            w_ptr, s_ptr, z_ptr, o, stride_wo, stride_so, start + 0 * o, o < ROWS, IN, shift,
            CODE, SCALES, BLOCK_K // 16,
        )  # fmt: skip
        x = tl.load(x_ptr + n.to(tl.int64) * stride_xn + (start + k), mask=(n < N) & (start + k < IN), other=0.0)
        acc = dot(tl.reshape(w.to(x.dtype), (BLOCK_O, BLOCK_K)), tl.trans(x), acc, "tf32x3")
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)[:, None]
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    p_ptr += tl.program_id(2).to(tl.int64) * N * ROWS
    tl.store(p_ptr + n.to(tl.int64) * ROWS + o, acc, mask=(n < N) & (o < ROWS))


@jit(do_not_specialize=["N", "SPLITS"])
def _meet_kernel(
    p_ptr, s_ptr, y_ptr, stride_yn, N, OUT, ROWS, SPLITS, unit,
    SCALED: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr,
):  # fmt: skip
    """512 outputs of a row: the sum of their parts, and what follows the product."""
    n = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * 512 + tl.arange(0, 512)
    p_ptr += n * ROWS
    y = _sum(p_ptr + o, o < OUT, N, ROWS, SPLITS) * unit
    if SCALED:
        y *= tl.load(s_ptr + o, mask=o < OUT, other=0.0)
    if SWIGLU:
        up = _sum(p_ptr + OUT + o, o < OUT, N, ROWS, SPLITS) * unit
        if SCALED:
            up *= tl.load(s_ptr + OUT + o, mask=o < OUT, other=0.0)
        y = silu(y) * up
    y_ptrs = y_ptr + n * stride_yn + o
    if HAS_RESIDUAL:
        y += tl.load(y_ptrs, mask=o < OUT, other=0.0).to(tl.float32)
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=o < OUT)


@jit
def _sum(ptrs, mask, N, ROWS, SPLITS):
    total = tl.load(ptrs, mask=mask, other=0.0)
    for _ in range(1, SPLITS):
        ptrs += N * ROWS
        total += tl.load(ptrs, mask=mask, other=0.0)
    return total
