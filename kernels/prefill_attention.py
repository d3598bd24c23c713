"""Causal grouped-query attention of prompts, one after the other, over their pages: a reused prefix is in these too.

    y[n, h] = sum_r softmax_r(q[n, h] . k[r] / sqrt(D)) v[r],    r <= positions[n],  k, v of key head h // G

q: [N, H, D], rows may be strided, D a power of 2, H = G K    pages: [P, S, 2, K, D], see pages.py, in q.dtype
->    y: [N, H, D] in q.dtype; products and sums in fp32.

Each prompt (a line of rows.table) is a span (rows, context): the last `rows` of its first `context` rows. A program
takes a tile, up to TILE rows of one span, with the G queries of a key head. It goes through the keys from row 0 in
steps of BLOCK: a row's sums depend neither on the tile, nor on the chunk of its prompt, nor on other prompts.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .launch import jit, on_triton, tl, triton
from .pages import attend, load_rows, read_rows
from .rows import Rows

TILE = 16  # rows; with 4 queries to a key head 64 rows of a matrix instruction


def prefill_tiles(spans: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """[tiles, 4] int32: line of the table, first row in the batch, rows, position of the first row."""
    tiles, n = [], 0
    for owner, (rows, context) in enumerate(spans):
        for first in range(0, rows, TILE):
            tiles.append((owner, n + first, min(TILE, rows - first), context - rows + first))
        n += rows
    return torch.tensor(tiles, dtype=torch.int32).to(device, non_blocking=True)


def prefill_attention(q: torch.Tensor, pages: torch.Tensor, rows: Rows) -> torch.Tensor:
    if not on_triton(q):
        return prefill_attention_ref(q, pages, rows)
    (N, H, D), (_, S, _, K, _) = q.shape, pages.shape
    G = H // K
    assert H == G * K and q.stride()[1:] == (D, 1), (q.shape, q.stride())
    assert pages.shape[2:] == (2, K, D) and pages.is_contiguous(), (pages.shape, pages.stride())
    assert rows.tiles is not None and rows.tiles.is_contiguous() and rows.table.stride(1) == 1, rows
    out = torch.empty(N, H, D, device=q.device, dtype=q.dtype)
    _kernel[(K, len(rows.tiles))](
        q, pages, rows.table, rows.tiles, out, q.stride(0), rows.table.stride(0), D**-0.5 * math.log2(math.e),
        S, K, G, D, GROUP=triton.next_power_of_2(G), TILE=TILE, BLOCK=64 // q.element_size(),
        num_warps=4, num_stages=3 if q.element_size() == 2 else 2,
    )  # fmt: skip
    return out


@jit(do_not_specialize=["stride_tb"])  # which changes with the longest prompt of a pass
def _kernel(
    q_ptr, pages_ptr, table_ptr, tiles_ptr, out_ptr, stride_qn, stride_tb, scale,
    S: tl.constexpr, K: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head, tile_ptr = tl.program_id(0), tiles_ptr + tl.program_id(1) * 4
    owner, first = tl.load(tile_ptr).to(tl.int64), tl.load(tile_ptr + 1).to(tl.int64)
    count, position = tl.load(tile_ptr + 2), tl.load(tile_ptr + 3)

    # Line m of the tile is query m % GROUP of row m // GROUP.
    m, d, r = tl.arange(0, TILE * GROUP), tl.arange(0, D), tl.arange(0, BLOCK)
    n, g = m // GROUP, m % GROUP
    real = ((n < count) & (g < G))[:, None]
    at = (head * G + g)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + (first + n)[:, None] * stride_qn + at, mask=real, other=0.0)
    peak = tl.full((TILE * GROUP,), float("-inf"), tl.float32)
    total = tl.zeros((TILE * GROUP,), tl.float32)
    acc = tl.zeros((TILE * GROUP, D), tl.float32)
    last = position + count
    table_ptr += owner * stride_tb
    page = tl.load(table_ptr + r // S, mask=r < last, other=0)  # known before its rows are wanted
    for start in range(0, last, BLOCK):
        row = start + r
        k, v = load_rows(pages_ptr, page, row, row < last, head, S, K, D)
        page = tl.load(table_ptr + (row + BLOCK) // S, mask=row + BLOCK < last, other=0)
        seen = row[None, :] <= (position + n)[:, None]
        peak, total, acc = attend(q, k, v, seen, scale, peak, total, acc)
    y = acc / total[:, None]
    tl.store(out_ptr + (first + n)[:, None] * (K * G * D) + at, y.to(out_ptr.dtype.element_ty), mask=real)


def prefill_attention_ref(q: torch.Tensor, pages: torch.Tensor, rows: Rows) -> torch.Tensor:
    assert rows.spans is not None, rows
    out, start, S = torch.empty(q.shape, dtype=q.dtype, device=q.device), 0, rows.page_size
    for (n, context), table in zip(rows.spans, rows.table, strict=True):
        k, v = read_rows(pages, table[None, : -(-context // S)])
        k, v = k[:, :, :context], v[:, :, :context]
        G = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)
        query = q[None, start : start + n].transpose(1, 2)
        if n == context:
            span = F.scaled_dot_product_attention(query, k, v, is_causal=True)
        else:
            seen = torch.ones(n, context, dtype=torch.bool, device=q.device).tril(context - n)
            span = F.scaled_dot_product_attention(query, k, v, attn_mask=seen)
        out[start : start + n] = span[0].transpose(0, 1)
        start += n
    return out
