"""The product of many rows with 4-bit weights: W unpacked to 16 bits, in registers or in memory.

    w[o, i] = (number[o, i] * scale[o, g] + offset[o, g]) * unit        rounded to x.dtype
    y[n, o] = sum_i x[n, i] w[o, i]

Here W is rounded, as any 16-bit weight is: to scale sums instead (int4_skinny.py) would cost more than it saves when
there are many of them, and would have the matrix cores wait for it.
"""

from __future__ import annotations

import torch

from . import linear_tile
from .int4_layout import COLUMNS, NIBBLES, group_of, numbers, offsets, scales
from .launch import INTERPRETED, dot, jit, multiprocessors, tl, triton

BLOCK_O = 128


def gemm(
    x: torch.Tensor, words: torch.Tensor, pairs: torch.Tensor, unit: float, levels: torch.Tensor | None, group: int,
    residual: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """y^T = W x^T, x: [N, IN] fp16 or bf16. W is the operand that the matrix cores take from registers.

    Where W has fewer tiles than the GPU has multiprocessors, each tile's columns are shared out to several programs,
    whose fp32 sums a second kernel adds.
    """
    N, OUT, blocks = len(x), len(words), words.shape[1] // 16
    block_n = min(128, max(32, triton.next_power_of_2(N)))
    tiles = triton.cdiv(N, block_n) * triton.cdiv(OUT, BLOCK_O)
    share = triton.cdiv(blocks, max(1, min(blocks // 4, multiprocessors(x.device) // tiles)))
    shares = triton.cdiv(blocks, share)
    y = torch.empty(N, OUT, device=x.device, dtype=x.dtype) if residual is None else residual
    out = y if shares == 1 else torch.empty(shares, N, OUT, device=x.device, dtype=torch.float32)
    buffer = COLUMNS * (block_n * x.itemsize + BLOCK_O // 2) + BLOCK_O * 32
    room = linear_tile._shared_memory(x.device) // 2 - 2048
    _gemm_kernel[(triton.cdiv(N, block_n), triton.cdiv(OUT, BLOCK_O), shares)](
        *(x, words, pairs, x if levels is None else levels, out, x.stride(0), out.stride(-2), N, OUT, x.shape[1]),
        *(blocks, pairs.shape[1] // 4, share, NIBBLES, unit),
        HAS_RESIDUAL=residual is not None and shares == 1,
        HAS_LEVELS=levels is not None,
        GROUP=group,
        BLOCK=COLUMNS,
        BLOCK_O=BLOCK_O,
        BLOCK_N=block_n,
        STAGES=max(2, min(4, room // buffer)),
        num_warps=8,
    )
    if shares > 1:
        _add_kernel[(triton.cdiv(OUT, 1024), N)](
            *(out, y, y.stride(0), N, OUT, shares), HAS_RESIDUAL=residual is not None, BLOCK=1024, num_warps=4
        )
    return y


def dense(
    words: torch.Tensor, pairs: torch.Tensor, unit: float, levels: torch.Tensor | None, group: int, out: torch.Tensor
) -> torch.Tensor:
    """W itself into out: [OUT, IN], rows may be strided. levels: in out's dtype."""
    OUT, IN = out.shape
    _dense_kernel[(triton.cdiv(words.shape[1], 16), triton.cdiv(OUT, 64))](
        *(words, pairs, out if levels is None else levels, out, out.stride(0), OUT, IN, words.shape[1] // 16),
        *(pairs.shape[1] // 4, NIBBLES, unit),
        HAS_LEVELS=levels is not None,
        GROUP=group,
        BLOCK=COLUMNS,
        BLOCK_O=64,
        num_warps=4,
    )
    return out


@jit(do_not_specialize=["N", "SHARE", "mask"])  # both change from prompt to prompt: nobody shall wait for a compiler
def _gemm_kernel(
    x_ptr, w_ptr, s_ptr, levels_ptr, y_ptr, stride_xn, stride_yn, N, OUT, IN, BLOCKS, QUADS, SHARE, mask, unit,
    HAS_RESIDUAL: tl.constexpr, HAS_LEVELS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of y^T from SHARE blocks of columns; the share is the program's third index, and y's first."""
    row = tl.program_id(1) * BLOCK_O
    w_ptrs, s_ptrs = _rows_of_w(w_ptr, s_ptr, row, OUT, BLOCKS, QUADS, BLOCK_O)
    n = tl.minimum(tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None], N - 1)
    i = tl.arange(0, BLOCK)[None, :]
    x_ptrs = x_ptr + n.to(tl.int64) * stride_xn + i
    acc = tl.zeros((BLOCK_O, BLOCK_N), tl.float32)
    first = tl.program_id(2) * SHARE
    for block in tl.range(first, tl.minimum(first + SHARE, BLOCKS), num_stages=STAGES):
        x = tl.load(x_ptrs + block * BLOCK, mask=i < IN - block * BLOCK, other=0.0, eviction_policy="evict_last")
        w = _weights(w_ptrs, s_ptrs, levels_ptr, block, QUADS, mask, unit, x.dtype, HAS_LEVELS, GROUP, BLOCK, BLOCK_O)
        acc = dot(w, tl.trans(x), acc, "ieee")
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    o = row + tl.arange(0, BLOCK_O)[:, None]
    stored = (n < N) & (o < OUT)
    y_ptrs = y_ptr + (tl.program_id(2) * N + n).to(tl.int64) * stride_yn + o
    if HAS_RESIDUAL:
        acc += tl.load(y_ptrs, mask=stored, other=0.0).to(tl.float32)
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=stored)


@jit(do_not_specialize=["N", "PARTS"])
def _add_kernel(
    parts_ptr, y_ptr, stride_yn, N, OUT, PARTS, HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """y = the sum of PARTS matrices [N, OUT], with HAS_RESIDUAL added to what y holds."""
    n = tl.program_id(1).to(tl.int64)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y_ptrs = y_ptr + n * stride_yn + o
    y = tl.zeros((BLOCK,), tl.float32)
    for part in range(PARTS):
        y += tl.load(parts_ptr + (part * N + n) * OUT + o, mask=o < OUT, other=0.0)
    if HAS_RESIDUAL:
        y += tl.load(y_ptrs, mask=o < OUT, other=0.0).to(tl.float32)
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=o < OUT)


@jit(do_not_specialize=["mask"])
def _dense_kernel(
    w_ptr, s_ptr, levels_ptr, y_ptr, stride_yo, OUT, IN, BLOCKS, QUADS, mask, unit,
    HAS_LEVELS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    row, block = tl.program_id(1) * BLOCK_O, tl.program_id(0)
    w_ptrs, s_ptrs = _rows_of_w(w_ptr, s_ptr, row, OUT, BLOCKS, QUADS, BLOCK_O)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    w = _weights(w_ptrs, s_ptrs, levels_ptr, block, QUADS, mask, unit, dtype, HAS_LEVELS, GROUP, BLOCK, BLOCK_O)
    o, i = row + tl.arange(0, BLOCK_O)[:, None], block * BLOCK + tl.arange(0, BLOCK)[None, :]
    tl.store(y_ptr + o.to(tl.int64) * stride_yo + i, w, mask=(o < OUT) & (i < IN))


@jit
def _rows_of_w(w_ptr, s_ptr, row, OUT, BLOCKS, QUADS, BLOCK_O: tl.constexpr):
    """Pointers to the codes of BLOCK_O rows' first block, [BLOCK_O, 16], and to their scales, [BLOCK_O, 1].

    The codes' rows stand so that a warp gets 16, and each of its threads two of them, 8 apart: as the matrix
    instructions want them. (One dimension for all rows: of several, versions of Triton take different ones first.)"""
    at = tl.arange(0, BLOCK_O)[:, None]
    o = row + at // 8 % (BLOCK_O // 16) * 16 + at // (BLOCK_O // 2) * 8 + at % 8
    w_ptrs = w_ptr + tl.minimum(o, OUT - 1).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, 16)[None, :]
    return w_ptrs, s_ptr + tl.minimum(row + at, OUT - 1).to(tl.int64) * (QUADS * 4)


@jit
def _weights(
    w_ptrs, s_ptrs, levels_ptr, block, QUADS, mask, unit,
    dtype: tl.constexpr, HAS_LEVELS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """[BLOCK_O, 128] in dtype: a block of columns of W."""
    RUN: tl.constexpr = GROUP & -GROUP
    WIDTH: tl.constexpr = RUN if RUN < BLOCK else BLOCK
    GROUPS: tl.constexpr = BLOCK // WIDTH
    words = tl.load(w_ptrs + block * 16, eviction_policy="evict_first")
    group = group_of(block * BLOCK, GROUPS, WIDTH, GROUP)[None, :]
    pairs = tl.load(s_ptrs + group, mask=group < QUADS * 4, other=0)
    w = numbers(words, mask, levels_ptr, dtype, HAS_LEVELS)
    w = tl.reshape(w, (2, BLOCK_O // 16, 8, 4, 4, 2, 2, 2))  # half, warp, row, q w t t p
    w = tl.reshape(tl.permute(w, (1, 0, 2, 4, 6, 5, 3, 7)), (1, BLOCK_O, GROUPS, WIDTH))
    # As in int4_skinny.py: the sum of one hides the joins.
    w = tl.reshape(w, (BLOCK_O, GROUPS, WIDTH)) if INTERPRETED else tl.sum(w, 0)
    scale = tl.broadcast_to((scales(pairs) * unit)[:, :, None], (BLOCK_O, GROUPS, WIDTH))
    offset = tl.broadcast_to((offsets(pairs, dtype, HAS_LEVELS) * unit)[:, :, None], (BLOCK_O, GROUPS, WIDTH))
    return tl.reshape(tl.fma(w.to(tl.float32), scale, offset).to(dtype), (BLOCK_O, BLOCK))
