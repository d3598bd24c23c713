"""Grouped-query attention of one query row per lane over the rows of its pages, its own row the last.

    y[b, h] = sum_r softmax_r(q[b, h] . k[r] / sqrt(D)) v[r],    r <= positions[b],  k, v of key head h // G

q: [B, H, D], rows may be strided, D a power of 2, H = G K    pages: [P, S, 2, K, D], see pages.py, in q.dtype
->    y: [B, H, D] in q.dtype; products and sums in fp32.

The rows of a lane are split among programs, for otherwise a small batch would leave most of the GPU idle: each takes an
equal share in whole blocks. How many rows there are, only the device knows: the grid depends on the batch alone, and
programs that no rows are left for end at once. Each other one leaves its own softmax, and log2 of the sum it divided
by, in scratch memory; the last to arrive at the counter of its lane and head puts them together, in their fixed order.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .launch import jit, multiprocessors, on_triton, tl, triton
from .pages import attend, load_rows, read_rows
from .rows import Rows

MOST_SPLITS = 32
SPLITS_ANYWHERE = 8  # in a batch of any size, where sums must not depend on it


def decode_attention(q: torch.Tensor, pages: torch.Tensor, rows: Rows) -> torch.Tensor:
    if not on_triton(q):
        return decode_attention_ref(q, pages, rows)
    (B, H, D), (_, S, _, K, _) = q.shape, pages.shape
    G, group = H // K, triton.next_power_of_2(H // K)
    assert H == G * K and q.stride()[1:] == (D, 1), (q.shape, q.stride())
    assert pages.shape[2:] == (2, K, D) and pages.is_contiguous(), (pages.shape, pages.stride())
    assert rows.positions.shape == (B,) and len(rows.table) == B and rows.table.stride(1) == 1, rows
    assert rows.counters is not None and len(rows.counters) >= B * K, rows.counters
    out = torch.empty(B, H, D, device=q.device, dtype=q.dtype)
    splits = SPLITS_ANYWHERE if rows.deterministic else _splits(B * K, multiprocessors(q.device))
    parts = torch.empty(B, K, splits, G, D, device=q.device, dtype=torch.float32)
    lse = torch.empty(B, K, splits, G, device=q.device, dtype=torch.float32)
    _kernel[(K, B, splits)](
        q, pages, rows.table, rows.positions, out, parts, lse, rows.counters,
        q.stride(0), rows.table.stride(0), rows.positions.stride(0), D**-0.5 * math.log2(math.e),
        S, K, G, D, GROUP=group, BLOCK_G=max(16, group), BLOCK=64 // q.element_size(),
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def _splits(pairs: int, multiprocessors: int) -> int:
    """Programs per lane and key head: two for each multiprocessor, however long the lanes may be."""
    return min(MOST_SPLITS, triton.cdiv(2 * multiprocessors, pairs))


@jit
def _kernel(
    q_ptr, pages_ptr, table_ptr, positions_ptr, out_ptr, parts_ptr, lse_ptr, counters_ptr,
    stride_qb, stride_tb, stride_pb, scale,
    S: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head, b, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    splits = tl.num_programs(2)
    length = tl.load(positions_ptr + b * stride_pb) + 1
    share = tl.cdiv(tl.cdiv(length, splits), BLOCK) * BLOCK
    first = split * share
    if first >= length:
        return
    last = tl.minimum(first + share, length)

    g, d, r = tl.arange(0, BLOCK_G), tl.arange(0, D), tl.arange(0, BLOCK)
    real = (g < G)[:, None]  # tl.dot takes 16 queries or more; the others are zeros
    at = (head * G + g)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + b * stride_qb + at, mask=real, other=0.0)
    peak = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    acc = tl.zeros((BLOCK_G, D), tl.float32)
    table_ptr += b * stride_tb
    page = tl.load(table_ptr + (first + r) // S, mask=first + r < last, other=0)  # known before its rows are wanted
    for start in range(first, last, BLOCK):
        row, exists = start + r, start + r < last
        k, v = load_rows(pages_ptr, page, row, exists, head, S, K, D)
        page = tl.load(table_ptr + (row + BLOCK) // S, mask=row + BLOCK < last, other=0)
        peak, total, acc = attend(q, k, v, exists[None, :], scale, peak, total, acc)
    y = acc / total[:, None]

    out_ptr += b * (K * G * D)
    used = tl.cdiv(length, share)
    if used == 1:
        tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=real)
    else:
        pair = b * K + head
        part = (pair * splits + split) * G
        tl.store(parts_ptr + part * D + g[:, None] * D + d[None, :], y, mask=real)
        tl.store(lse_ptr + part + g, peak + tl.log2(total), mask=g < G)
        tl.debug_barrier()  # one thread counts for all: only when all have stored
        if tl.atomic_add(counters_ptr + pair, 1, sem="acq_rel") == used - 1:
            _combine(parts_ptr, lse_ptr, out_ptr + head * G * D, pair * splits, used, G, D, GROUP)
            tl.store(counters_ptr + pair, 0)


@jit
def _combine(parts_ptr, lse_ptr, out_ptr, first, used, G: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr):
    """y = sum_s 2^lse[s] parts[s] / sum_s 2^lse[s], over `used` parts of [G, D] from `first` on."""
    CHUNK: tl.constexpr = 8  # parts at a time: more would take registers that the loop above has no use for
    g, d = tl.arange(0, GROUP), tl.arange(0, D)
    peak = tl.full((GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP,), tl.float32)
    acc = tl.zeros((GROUP, D), tl.float32)
    for start in range(0, used, CHUNK):
        s = start + tl.arange(0, CHUNK)
        at = (first + s)[:, None] * G + g[None, :]
        used_s, real = (s < used)[:, None], (g < G)[None, :]
        lse = tl.where(used_s, tl.load(lse_ptr + at, mask=used_s & real, other=0.0), float("-inf"))
        parts = tl.load(parts_ptr + at[:, :, None] * D + d, mask=(used_s & real)[:, :, None], other=0.0)
        above = tl.maximum(peak, tl.max(lse, 0))
        weights, shrink = tl.exp2(lse - above[None, :]), tl.exp2(peak - above)
        total = total * shrink + tl.sum(weights, 0)
        acc = acc * shrink[:, None] + tl.sum(parts * weights[:, :, None], 0)
        peak = above
    y = acc / total[:, None]
    tl.store(out_ptr + g[:, None] * D + d[None, :], y.to(out_ptr.dtype.element_ty), mask=(g < G)[:, None])


def decode_attention_ref(q: torch.Tensor, pages: torch.Tensor, rows: Rows) -> torch.Tensor:
    B, H, D = q.shape
    if B == 1:  # exactly its rows, without a mask; the same bits whether its pages follow each other or not
        flat = pages.view(-1, *pages.shape[2:])
        if rows.span:
            kv = flat[rows.span]
        else:
            kv = pages.index_select(0, rows.table[0]).view(-1, *flat.shape[1:])[: int(rows.positions[0]) + 1]
        k, v = kv.permute(1, 2, 0, 3).unsqueeze(1)  # [1, K, rows, D] each
        return F.scaled_dot_product_attention(q.view(1, k.shape[1], -1, D), k, v).reshape(B, H, D)
    k, v = read_rows(pages, rows.table)
    group = q.view(B, k.shape[1], -1, D)  # the G queries of a key head are as G query rows of one head: K is read once
    return F.scaled_dot_product_attention(group, k, v, attn_mask=rows.mask).reshape(B, H, D)
