"""RMSNorm of each query and key head, rotary embedding, and the rows' keys and values into the KV cache.

    y[n, h] = rope(x[n, h] / sqrt(mean_d(x[n, h]^2) + eps) * weight[h], position n)     h < H + K
    y[n, h] = x[n, h]                                                                  the K heads of values

qkv: [N, H + 2 K, D], rows may be strided    weight: [H + K, D]    rows.rope: [length, 2, D], see rope.py
pages: [P, S, 2, K, D], see pages.py. All in one dtype; sums and products in fp32, one rounding.

The queries y[:, :H] replace those in qkv; keys and values go to the row's place in the pages. What then stands in
qkv[:, H:] is not defined.
"""

from __future__ import annotations

import torch

from .launch import jit, on_triton, tl, triton
from .pages import write_rows
from .rms_norm import rms_norm_ref
from .rope import rope
from .rows import Rows


def qk_rope_write(qkv: torch.Tensor, weight: torch.Tensor, eps: float, rows: Rows, pages: torch.Tensor) -> None:
    if not on_triton(qkv):
        return qk_rope_write_ref(qkv, weight, eps, rows, pages)
    (N, heads, D), (_, S, _, K, _) = qkv.shape, pages.shape
    H = heads - 2 * K
    assert qkv.stride()[1:] == (D, 1), (qkv.shape, qkv.stride())
    assert weight.shape == (H + K, D) and weight.is_contiguous(), (weight.shape, weight.stride())
    assert pages.shape[2:] == (2, K, D) and pages.is_contiguous(), (pages.shape, pages.stride())
    assert rows.rope.shape[1:] == (2, D) and rows.rope.is_contiguous(), (rows.rope.shape, rows.rope.stride())
    assert rows.positions.shape == rows.owner.shape == (N,) and rows.table.stride(1) == 1, rows
    HEADS = max(1, 512 // D)  # a warp's: in 2 bytes a value, each thread loads 16 bytes of either half
    _kernel[(N, triton.cdiv(heads, HEADS))](
        qkv, weight, rows.rope, rows.positions, rows.owner, rows.table, pages,
        qkv.stride(0), rows.positions.stride(0), rows.owner.stride(0), rows.table.stride(0), eps,
        H, K, S, D, HEADS=HEADS, num_warps=1,
    )  # fmt: skip


@jit(do_not_specialize=["stride_tb"])  # which changes with the longest prompt of a pass
def _kernel(
    qkv_ptr, w_ptr, rope_ptr, positions_ptr, owner_ptr, table_ptr, pages_ptr,
    stride_xn, stride_pn, stride_on, stride_tb, eps,
    H: tl.constexpr, K: tl.constexpr, S: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    d = tl.arange(0, D // 2)  # of both halves of a head: rope turns the pairs (d, d + D/2)
    at = h[:, None] * D + d[None, :]
    x_ptr = qkv_ptr + n * stride_xn + at
    exists, turned = (h < H + 2 * K)[:, None], (h < H + K)[:, None]
    low = tl.load(x_ptr, mask=exists, other=0.0)
    high = tl.load(x_ptr + D // 2, mask=exists, other=0.0)
    w_low = tl.load(w_ptr + at, mask=turned, other=0.0).to(tl.float32)
    w_high = tl.load(w_ptr + at + D // 2, mask=turned, other=0.0).to(tl.float32)
    position = tl.load(positions_ptr + n * stride_pn)
    owner = tl.load(owner_ptr + n * stride_on).to(tl.int64)
    page = tl.load(table_ptr + owner * stride_tb + position // S).to(tl.int64)
    cos_ptr = rope_ptr + position.to(tl.int64) * (2 * D) + d
    cos = tl.load(cos_ptr).to(tl.float32)[None, :]
    sin = tl.load(cos_ptr + D + D // 2).to(tl.float32)[None, :]  # the second half's; the first half's is negated

    a, b = low.to(tl.float32), high.to(tl.float32)
    norm = tl.rsqrt(tl.sum(a * a + b * b, 1) / D + eps)[:, None]
    a, b = a * norm * w_low, b * norm * w_high
    low = tl.where(turned, (a * cos - b * sin).to(low.dtype), low)
    high = tl.where(turned, (b * cos + a * sin).to(high.dtype), high)

    query = (h < H)[:, None]
    tl.store(x_ptr, low, mask=query)
    tl.store(x_ptr + D // 2, high, mask=query)
    # Keys, then values, as they follow the queries in qkv
    row_ptr = pages_ptr + (page * S + position % S) * (2 * K * D) + at - H * D
    tl.store(row_ptr, low, mask=exists & (h >= H)[:, None])
    tl.store(row_ptr + D // 2, high, mask=exists & (h >= H)[:, None])


def qk_rope_write_ref(qkv: torch.Tensor, weight: torch.Tensor, eps: float, rows: Rows, pages: torch.Tensor) -> None:
    heads, K = qkv.shape[1], pages.shape[3]
    qk = qkv[:, : heads - K]  # q and k are normed and turned together
    cos, sin = rows.cos_sin
    rope(rms_norm_ref(qk, weight, eps), cos, sin, out=qk)
    write_rows(pages, rows.kv_slots, qkv[:, heads - 2 * K :])
