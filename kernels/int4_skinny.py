"""The product of a few rows with 4-bit weights, on the matrix cores: `linear` for up to 16 rows of x.

    y[n, o] = unit * sum_g (scale[o, g] * sum_{i in g} number[o, i] h[n, i] + offset[o, g] * sum_{i in g} h[n, i])

h, SwiGLU and residual as in linear.py; number, scale and offset as in int4_layout.py, which explains why a loaded word
becomes operands in the thread that loaded it. h is rounded to x.dtype, nothing else is before y: products of 16-bit
numbers are exact, sums are fp32. Also the sums of h and of x^2 come from the matrix cores, which have time to spare:
a product with ones, and one of x with itself of which the diagonal counts.
"""

from __future__ import annotations

import torch

from .int4_layout import BLOCK, NIBBLES, group_of, numbers, offsets, scales
from .int4_tile import tile_of
from .launch import INTERPRETED, dot, jit, tl, triton
from .swiglu import silu
from .warps import outputs, over_warps


def skinny(
    x: torch.Tensor, words: torch.Tensor, pairs: torch.Tensor, unit: float, levels: torch.Tensor | None,
    has_offset: bool, group: int, *, norm: torch.Tensor | None, eps: float, residual: torch.Tensor | None,
    swiglu: bool, deterministic: bool,
) -> torch.Tensor:  # fmt: skip
    """levels: [16] in x.dtype. deterministic: always 16 rows a program, so that a row's bits hang on no other row."""
    N, IN = x.shape
    OUT = words.shape[0] // (1 + swiglu)
    tile = tile_of(N, OUT, IN, group, swiglu, norm is not None, x.dtype, x.device, deterministic)
    y = torch.empty(N, OUT, device=x.device, dtype=x.dtype) if residual is None else residual
    _skinny_kernel[(triton.cdiv(N, tile.block_n), triton.cdiv(OUT, tile.rows))](
        *(x, words, pairs, x if levels is None else levels, x if norm is None else norm, y),
        *(x.stride(0), y.stride(0), N, OUT, IN, words.shape[1] // 16, pairs.shape[1] // 4, NIBBLES, unit, eps),
        HAS_NORM=norm is not None,
        HAS_RESIDUAL=residual is not None,
        SWIGLU=swiglu,
        HAS_LEVELS=levels is not None,
        HAS_OFFSET=has_offset or (levels is None and x.dtype != torch.float32),
        GROUP=group,
        ROWS=tile.rows,
        BLOCK_N=tile.block_n,
        SLICES=tile.slices,
        PARTS=tile.parts,
        LENGTH=tile.length,
        SPLIT=tile.warps,
        STAGES=tile.stages,
        num_warps=tile.warps,
        # Left to itself, the assembler spills to save a few registers.
        maxnreg=255 if tile.block_n == 16 or levels is not None else 168,
    )
    return y


@jit(do_not_specialize=["N", "mask"])  # one binary for every N: a row's bits must not hang on it
def _skinny_kernel(
    x_ptr, w_ptr, s_ptr, levels_ptr, g_ptr, y_ptr,
    stride_xn, stride_yn, N, OUT, IN, BLOCKS, QUADS, mask, unit, eps,
    HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr,
    HAS_LEVELS: tl.constexpr, HAS_OFFSET: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, SLICES: tl.constexpr, PARTS: tl.constexpr, LENGTH: tl.constexpr,
    SPLIT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y^T = W h^T for ROWS outputs of BLOCK_N rows. Each of SPLIT warps takes SPAN columns of a step.

    A column of the product is c = slice * BLOCK_N + n. All slices of W meet all columns; what belongs together is
    picked from the products. Rows and outputs that do not exist are computed from the last one that does."""
    H: tl.constexpr = ROWS * 2 if SWIGLU else ROWS  # rows of W: gate's, then up's
    C: tl.constexpr = BLOCK_N * SLICES
    SPAN: tl.constexpr = PARTS * SLICES * LENGTH
    WIDTH: tl.constexpr = LENGTH if GROUP & (GROUP - 1) else GROUP if GROUP < SPAN else SPAN  # which shares a scale
    GROUPS: tl.constexpr = SPAN // WIDTH
    # Codes: [blocks * H / 8 * SPLIT * 8, 16]: 4 threads of 16 bytes side by side, and 8 rows under each other.
    # (One dimension for all of that: of several, versions of Triton take different ones first.)
    at = tl.arange(0, SPAN // BLOCK * SPLIT * H)[:, None]
    warp, row = at // 8 % SPLIT, at // (8 * SPLIT) % (H // 8) * 8 + at % 8
    j = (warp * (SPAN // BLOCK) + at // (SPLIT * H)) * 16 + tl.arange(0, 16)[None, :]
    w_ptrs = w_ptr + _row_of_w(row, OUT, ROWS) * (BLOCKS * 16) + j
    # Scales and offsets: [SPLIT, H, GROUPS].
    warp = tl.arange(0, SPLIT)[:, None, None]
    s_ptrs = s_ptr + _row_of_w(tl.arange(0, H)[None, :, None], OUT, ROWS) * (QUADS * 4)
    # x: [PARTS, SPLIT, C, LENGTH]; the norm's weight: [PARTS, SPLIT, SLICES, LENGTH].
    c = tl.arange(0, C)[None, None, :, None]
    i = _column(c // BLOCK_N, PARTS, SPLIT, SLICES, LENGTH)
    n = tl.minimum(tl.program_id(0) * BLOCK_N + c % BLOCK_N, N - 1)
    x_ptrs = x_ptr + n.to(tl.int64) * stride_xn + i
    k = _column(tl.arange(0, SLICES)[None, None, :, None], PARTS, SPLIT, SLICES, LENGTH)
    slice_of_w = tl.arange(0, SLICES)[None, :, None, None, None]
    slice_of_x = tl.arange(0, C)[None, None, None, None, :] // BLOCK_N

    if HAS_RESIDUAL:  # asked for now: after the loop everybody would wait for it
        y_ptrs, stored = outputs(y_ptr, stride_yn, N, OUT, ROWS, BLOCK_N, ROWS)
        residual = tl.load(y_ptrs, mask=stored, other=0.0).to(tl.float32)
    acc = tl.zeros((SPLIT, H, C), tl.float32)
    squares = tl.zeros((PARTS * SPLIT, 16, C), tl.float32)
    for start in tl.range(0, IN, SPLIT * SPAN, num_stages=STAGES):
        words = tl.load(w_ptrs + start // 8, mask=j < BLOCKS * 16 - start // 8, other=0, eviction_policy="evict_first")
        x = tl.load(x_ptrs + start, mask=i < IN - start, other=0.0, eviction_policy="evict_last")
        group = group_of(start + warp * SPAN, GROUPS, WIDTH, GROUP)
        pairs = tl.load(s_ptrs + group, mask=group < QUADS * 4, other=0)
        if HAS_NORM:
            both = tl.broadcast_to(tl.reshape(x, (PARTS, SPLIT, 1, C, LENGTH)), (PARTS, SPLIT, 16 // C, C, LENGTH))
            squares = dot(tl.reshape(both, (PARTS * SPLIT, 16, LENGTH)), _turned(x), squares, "tf32x3")
            g = tl.load(g_ptr + k + start, mask=k < IN - start, other=0.0, eviction_policy="evict_last").to(tl.float32)
            g = tl.reshape(g, (PARTS, SPLIT, SLICES, 1, LENGTH))
            g = tl.reshape(tl.broadcast_to(g, (PARTS, SPLIT, SLICES, BLOCK_N, LENGTH)), (PARTS, SPLIT, C, LENGTH))
            x = (x.to(tl.float32) * g).to(x.dtype)
        w = _operand(numbers(words, mask, levels_ptr, x.dtype, HAS_LEVELS), PARTS * SLICES, SPLIT, H, LENGTH)
        h = tl.reshape(x, (PARTS, 1, SPLIT, C, LENGTH))
        h = tl.broadcast_to(h, (PARTS, SLICES, SPLIT, C, LENGTH))
        part = dot(w, _turned(h), tl.zeros((PARTS * SLICES * SPLIT, H, C), tl.float32), "tf32x3")
        part = tl.reshape(part, (PARTS, SLICES, SPLIT, H, C))
        if SLICES > 1:  # one of the slices; as integers, where + 0 is no instruction
            part = tl.where(slice_of_w == slice_of_x, part.to(tl.int32, bitcast=True), 0)
            part = tl.sum(part, 1).to(tl.float32, bitcast=True)
        part = tl.reshape(part, (PARTS, SPLIT, H, C)) * _spread(scales(pairs), PARTS, SPLIT, H, C)
        if HAS_OFFSET:
            ones = tl.full((PARTS * SPLIT, 16, LENGTH), 1.0, x.dtype)
            sums = dot(ones, _turned(x), tl.zeros((PARTS * SPLIT, 16, C), tl.float32), "tf32x3")
            sums = tl.broadcast_to(tl.reshape(sums, (PARTS, SPLIT, 1, 16, C)), (PARTS, SPLIT, H // 16, 16, C))
            offset = _spread(offsets(pairs, x.dtype, HAS_LEVELS), PARTS, SPLIT, H, C)
            part = tl.fma(tl.reshape(sums, (PARTS, SPLIT, H, C)), offset, part)
        acc += tl.sum(part, 0)
    y = tl.sum(tl.reshape(over_warps(acc, H, C, SPLIT), (H, SLICES, BLOCK_N)), 1) * unit
    if HAS_NORM:  # whose scale is the same for a whole row of x, so that it can wait until here
        same = tl.arange(0, 16)[None, :, None] == tl.arange(0, C)[None, None, :]
        square = tl.reshape(tl.sum(tl.where(same, squares, 0.0), 1), (PARTS, SPLIT, 1, C))
        square = over_warps(tl.sum(square, 0), 1, C, SPLIT)
        y *= tl.rsqrt(tl.sum(tl.reshape(square, (1, SLICES, BLOCK_N)), 1) / IN + eps)
    if SWIGLU:
        gate, up = tl.split(tl.permute(tl.reshape(y, (2, ROWS, BLOCK_N)), (1, 2, 0)))
        y = silu(gate) * up
    if HAS_RESIDUAL:
        y += residual
    y_ptrs, stored = outputs(y_ptr, stride_yn, N, OUT, ROWS, BLOCK_N, ROWS)
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=stored)


@jit
def _row_of_w(row, OUT, ROWS: tl.constexpr):
    """Of this program's row: with SwiGLU its second ROWS rows are OUT rows further down."""
    return (tl.minimum(tl.program_id(1) * ROWS + row % ROWS, OUT - 1) + row // ROWS * OUT).to(tl.int64)


@jit
def _column(piece, PARTS: tl.constexpr, SPLIT: tl.constexpr, SLICES: tl.constexpr, LENGTH: tl.constexpr):
    """[PARTS, SPLIT, pieces, LENGTH]: which column of a step."""
    part, warp = tl.arange(0, PARTS)[:, None, None, None], tl.arange(0, SPLIT)[None, :, None, None]
    return ((warp * PARTS + part) * SLICES + piece) * LENGTH + tl.arange(0, LENGTH)[None, None, None, :]


@jit
def _turned(x):
    """[..., columns of the product, K] -> [all before, K, columns]: the product's second operand."""
    C: tl.constexpr = x.shape[len(x.shape) - 2]
    K: tl.constexpr = x.shape[len(x.shape) - 1]
    return tl.permute(tl.reshape(x, (x.numel // (C * K), C, K)), (0, 2, 1))


@jit
def _operand(w, PIECES: tl.constexpr, SPLIT: tl.constexpr, H: tl.constexpr, LENGTH: tl.constexpr):
    """[blocks * H / 8 * SPLIT * 8, 16, 2, 2, 2] from `numbers` -> [PIECES * SPLIT, H, LENGTH]; nothing moves."""
    w = tl.reshape(w, (PIECES * LENGTH // BLOCK, H // 8, SPLIT, 8, 4, 4, 2, 2, 2))  # block, high, warp, low, q w t t p
    w = tl.permute(w, (0, 5, 7, 6, 2, 1, 3, 4, 8))  # block w t t: 8 columns each; warp; row; q p
    w = tl.permute(tl.reshape(w, (PIECES, LENGTH // 8, SPLIT, H, 8)), (0, 2, 3, 1, 4))
    w = tl.reshape(w, (1, PIECES * SPLIT, H, LENGTH))
    # The sum of one keeps Triton from seeing the joins: it would expect other columns in a thread (its `kWidth` of 4).
    return tl.reshape(w, (PIECES * SPLIT, H, LENGTH)) if INTERPRETED else tl.sum(w, 0)


@jit
def _spread(v, PARTS: tl.constexpr, SPLIT: tl.constexpr, H: tl.constexpr, C: tl.constexpr):
    """[SPLIT, H, groups of a span] -> [PARTS, SPLIT, H, C]: for each product the group that its columns are of."""
    GROUPS: tl.constexpr = v.shape[2]
    P: tl.constexpr = GROUPS if GROUPS < PARTS else PARTS
    v = tl.permute(tl.reshape(v, (SPLIT, H, P, GROUPS // P)), (2, 0, 1, 3))
    v = tl.reshape(v, (P, 1, SPLIT, H, GROUPS // P, 1))
    v = tl.broadcast_to(v, (P, PARTS // P, SPLIT, H, GROUPS // P, C * P // GROUPS))
    return tl.reshape(v, (PARTS, SPLIT, H, C))
