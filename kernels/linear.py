"""The linear layer of decoding: y = x W^T, with what stands before and after it in the same launch.

    h[n, i] = x[n, i] * rsqrt(mean_i(x[n, :]^2) + eps) * norm[i]        with `norm`, else x
    y[n, o] = sum_i h[n, i] * W[o, i]
    y[n, o] = silu(y[n, o]) * y[n, OUT + o]                             with `swiglu`: W holds gate's rows, then up's
    residual[n, o] += y[n, o]                                           with `residual`: in place, and returned

x: [N, IN] fp32/fp16/bf16, rows may be strided    W: [OUT, IN], or [2 OUT, IN] with `swiglu`, in x.dtype, rows may be
strided    norm: [IN]    residual: [N, OUT], rows may be strided, not x itself    ->    y: [N, OUT] in x.dtype

Decoding is bound by reading W once. One row (N = 1): GEMV on the plain cores. 2 to 16 rows: a product on the matrix
cores that is as wide as W and 8 or 16 rows deep. More rows: cuBLAS, because by then one pass over W does much work.
`deterministic` takes the 16-row product whatever N is: a row's sums then do not depend on what other rows there are.

**Bytes on their way.** 4.3 TB/s for about 1 us of loaded latency are 4.3 MB, 33 KB for each of 132 multiprocessors.
Registers do not hold that: the compiler lets the first product wait for its load before it starts the next load. So
both kernels copy W asynchronously, 16 bytes a thread, into `stages - 1` buffers of shared memory. A program's share is
rows * columns of a step * 2 bytes * (stages - 2 while it computes, stages - 1 while it waits). linear_tile.py counts.
"""

from __future__ import annotations

import torch

from .cpu_linear import cpu_linear
from .launch import dot, jit, on_triton, tl, triton
from .linear_tile import SKINNY, columns, depth, padded, tile_of
from .packed import Packed
from .rms_norm import rms_norm, rms_norm_ref
from .swiglu import silu, swiglu_ref
from .swiglu import swiglu as swiglu_op
from .warps import outputs, over_warps


def linear(
    x: torch.Tensor,
    weight: torch.Tensor | Packed,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    swiglu: bool = False,
    deterministic: bool = False,
) -> torch.Tensor:
    if isinstance(weight, Packed):
        return weight.linear(x, norm=norm, eps=eps, residual=residual, swiglu=swiglu, deterministic=deterministic)
    if not on_triton(x):
        return linear_ref(x, weight, norm=norm, eps=eps, residual=residual, swiglu=swiglu, deterministic=deterministic)
    N, IN = x.shape
    OUT = weight.shape[0] // (1 + swiglu)
    assert weight.shape == (OUT * (1 + swiglu), IN), (x.shape, weight.shape)
    assert x.dtype == weight.dtype and x.stride(1) == weight.stride(1) == 1, (x.dtype, x.stride(), weight.stride())
    assert norm is None or (norm.shape == (IN,) and norm.stride(0) == 1), (norm.shape, norm.stride(), IN)
    assert residual is None or (residual.shape == (N, OUT) and residual.stride(1) == 1), (residual.shape, N, OUT)
    assert residual is None or residual is not x, "programs read all of x while others write"
    if N > SKINNY and not deterministic:
        h = x if norm is None else rms_norm(x, norm, eps)
        if residual is not None and not swiglu:
            return residual.addmm_(h, weight.t())
        y = h @ weight.t()
        y = swiglu_op(y) if swiglu else y
        return y if residual is None else residual.add_(y)
    y = torch.empty(N, OUT, device=x.device, dtype=x.dtype) if residual is None else residual
    block_n = SKINNY if deterministic else depth(N)
    tile = tile_of(block_n, OUT, IN, swiglu, norm is not None, x.dtype, x.device)
    switches = {"HAS_NORM": norm is not None, "HAS_RESIDUAL": residual is not None, "SWIGLU": swiglu}
    g = x if norm is None else norm
    if block_n == 1:
        _gemv_kernel[(triton.cdiv(OUT, tile.rows),)](
            *(x, weight, g, y, weight.stride(0), OUT, IN, eps),
            **switches,
            BLOCK_O=tile.rows,
            BLOCK_I=columns(1, tile.warps, x.itemsize),
            STAGES=tile.stages,
            num_warps=tile.warps,
        )
    else:
        _skinny_kernel[(triton.cdiv(N, block_n), triton.cdiv(OUT, tile.rows))](
            *(x, weight, g, y, x.stride(0), weight.stride(0), y.stride(0), N, OUT, IN, eps),
            **switches,
            ROWS=tile.rows,
            BLOCK_N=block_n,
            BLOCK_O=padded(block_n, tile.rows),
            SPLIT=tile.warps,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return y


@jit
def _gemv_kernel(
    x_ptr, w_ptr, g_ptr, y_ptr, stride_wo, OUT, IN, eps,
    HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """BLOCK_O outputs of the one row. The program's warps lie side by side along IN, 16 bytes a thread: a thread needs
    its part of x once for all BLOCK_O rows of W, and no thread needs another's."""
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.arange(0, BLOCK_I)
    w_ptrs = w_ptr + o.to(tl.int64)[:, None] * stride_wo + i[None, :]
    u_ptrs = w_ptr + (OUT + o).to(tl.int64)[:, None] * stride_wo + i[None, :]
    if HAS_RESIDUAL:  # asked for now: after the loop everybody would wait for it
        residual = tl.load(y_ptr + o, mask=o < OUT, other=0.0).to(tl.float32)
    # One sum per thread and row of W; they meet after the loop.
    acc = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    acc_up = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    squares = tl.zeros((BLOCK_I,), tl.float32)
    for start in tl.range(0, IN, BLOCK_I, num_stages=STAGES):
        inside = i < IN - start
        mask = (o < OUT)[:, None] & inside[None, :]
        w = tl.load(w_ptrs + start, mask=mask, other=0.0, eviction_policy="evict_first")  # nobody reads W twice
        x = tl.load(x_ptr + start + i, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        if HAS_NORM:
            squares += x * x
            x *= tl.load(g_ptr + start + i, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        acc += w.to(tl.float32) * x[None, :]
        if SWIGLU:
            up = tl.load(u_ptrs + start, mask=mask, other=0.0, eviction_policy="evict_first")
            acc_up += up.to(tl.float32) * x[None, :]
    y = tl.sum(acc, 1)
    # The norm's scale is the same for all of x, so that it can wait until here.
    scale = tl.rsqrt(tl.sum(squares) / IN + eps) if HAS_NORM else 1.0
    y *= scale
    if SWIGLU:
        y = silu(y) * (tl.sum(acc_up, 1) * scale)
    if HAS_RESIDUAL:
        y += residual
    tl.store(y_ptr + o, y.to(y_ptr.dtype.element_ty), mask=o < OUT)


@jit(do_not_specialize=["N"])  # one binary for every N: a row's bits must not hang on it
def _skinny_kernel(
    x_ptr, w_ptr, g_ptr, y_ptr, stride_xn, stride_wo, stride_yn, N, OUT, IN, eps,
    HAS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """y^T = W x^T for ROWS outputs (padded to BLOCK_O) of BLOCK_N rows. Each of SPLIT warps takes 32 columns of a step.

    Tiles are loaded as [groups of 8 rows, SPLIT, 8, 32], which puts 4 threads of 16 bytes side by side and 8 rows under
    each other in a warp: see `_operand`."""
    PRECISION: tl.constexpr = "tf32x3"  # of fp32 operands: three products of parts, as good as one in fp32
    r = tl.arange(0, 8)[None, None, :, None]
    i = tl.arange(0, SPLIT)[None, :, None, None] * 32 + tl.arange(0, 32)[None, None, None, :]
    row = tl.arange(0, BLOCK_O // 8)[:, None, None, None] * 8 + r
    o = tl.program_id(1) * ROWS + row
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N // 8)[:, None, None, None] * 8 + r
    exists = (row < ROWS) & (o < OUT)
    w_ptrs = w_ptr + o.to(tl.int64) * stride_wo + i
    u_ptrs = w_ptr + (OUT + o).to(tl.int64) * stride_wo + i
    x_ptrs = x_ptr + n.to(tl.int64) * stride_xn + i
    g_ptrs = g_ptr + i + 0 * r  # 8 rows alike: the threads must lie as they do for x

    if HAS_RESIDUAL:  # asked for now: after the loop everybody would wait for it
        y_ptrs, stored = outputs(y_ptr, stride_yn, N, OUT, ROWS, BLOCK_N, BLOCK_O)
        residual = tl.load(y_ptrs, mask=stored, other=0.0).to(tl.float32)
    acc = tl.zeros((SPLIT, BLOCK_O, BLOCK_N), tl.float32)
    acc_up = tl.zeros((SPLIT, BLOCK_O, BLOCK_N), tl.float32)
    squares = tl.zeros((BLOCK_N // 8, SPLIT, 8, 4), tl.float32)  # one sum per thread and row
    for start in range(0, IN, SPLIT * 32):
        inside = i < IN - start
        w = tl.load(w_ptrs + start, mask=inside & exists, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_ptrs + start, mask=inside & (n < N), other=0.0, eviction_policy="evict_last")
        if HAS_NORM:
            g = tl.load(g_ptrs + start, mask=inside & (r < 8), other=0.0, eviction_policy="evict_last")
            xf = x.to(tl.float32)
            squares += tl.sum(tl.reshape(xf * xf, (BLOCK_N // 8, SPLIT, 8, 4, 8)), 4)
            x = (xf * g.to(tl.float32)).to(x.dtype)
        x = tl.permute(_operand(x, BLOCK_N, SPLIT), (0, 2, 1))
        acc = dot(_operand(w, BLOCK_O, SPLIT), x, acc, PRECISION)
        if SWIGLU:
            up = tl.load(u_ptrs + start, mask=inside & exists, other=0.0, eviction_policy="evict_first")
            acc_up = dot(_operand(up, BLOCK_O, SPLIT), x, acc_up, PRECISION)
    y = over_warps(acc, BLOCK_O, BLOCK_N, SPLIT)
    # The norm's scale is the same for a whole row of x, so that it can wait until here.
    scale = 1.0
    if HAS_NORM:
        squares = tl.reshape(tl.permute(tl.sum(squares, 3), (1, 0, 2)), (SPLIT, 1, BLOCK_N))
        scale = tl.rsqrt(over_warps(squares, 1, BLOCK_N, SPLIT) / IN + eps)
    y *= scale
    if SWIGLU:
        y = silu(y) * (over_warps(acc_up, BLOCK_O, BLOCK_N, SPLIT) * scale)
    if HAS_RESIDUAL:
        y += residual
    y_ptrs, stored = outputs(y_ptr, stride_yn, N, OUT, ROWS, BLOCK_N, BLOCK_O)
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=stored)


@jit
def _operand(tile, ROWS: tl.constexpr, SPLIT: tl.constexpr):
    """[ROWS / 8, SPLIT, 8, 32] as loaded -> [SPLIT, ROWS, 32] for the product, without moving anything.

    A product may take its columns in any order, if both operands agree. Of 32 columns, thread q < 4 of a row has loaded
    8 q .. 8 q + 7. The matrix instructions (16-bit operands) want to find 8 t + 2 q and 8 t + 2 q + 1 there, t < 4. So
    q and t change names, and every thread feeds the instruction from the 16 bytes that it loaded itself."""
    tile = tl.reshape(tile, (ROWS // 8, SPLIT, 8, 4, 4, 2))  # group, warp, row, q, t, pair
    return tl.reshape(tl.permute(tile, (1, 0, 2, 4, 3, 5)), (SPLIT, ROWS, 32))


def linear_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    norm: torch.Tensor | None = None,
    eps: float = 0.0,
    residual: torch.Tensor | None = None,
    swiglu: bool = False,
    deterministic: bool = False,
) -> torch.Tensor:
    """On the CPU the real thing; `weight` as kernels/cpu_linear.py arranges it."""
    h = x if norm is None else rms_norm_ref(x, norm, eps)
    if deterministic and len(x) > 1:  # one row is a GEMV, several are a GEMM with other sums
        y = torch.cat([cpu_linear(row, weight) for row in h.split(1)])
    else:
        y = cpu_linear(h, weight)
    if swiglu:
        y = swiglu_ref(y)
    return y if residual is None else residual.add_(y)
