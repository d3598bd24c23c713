"""The KV cache of one layer, in pages: what the ops that write and read it share.

pages: [P, S, 2, K, D], contiguous: P pages of S rows, each row the keys (0) and values (1) of K heads. Row r of a
sequence lies in page table[r // S] at r % S. Page 0 is nobody's: tables are padded with it, and idle lanes write to it.
"""

from __future__ import annotations

import torch

from .launch import dot, jit, tl


def write_rows(pages: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor) -> None:
    """Stores kv: [N, 2 K, D] (keys first) at `slots`: [N] int64, the numbers page * S + offset of the rows."""
    P, S, _, K, D = pages.shape
    pages.view(P * S, 2 * K, D).index_copy_(0, slots, kv)


def read_rows(pages: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of all rows of table: [B, T], each [B, K, T * S, D]."""
    (B, T), (_, S, _, K, D) = table.shape, pages.shape
    kv = pages.index_select(0, table.reshape(-1)).view(B, T * S, 2, K, D)
    return kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)


@jit
def load_rows(pages_ptr, page, row, exists, head, S: tl.constexpr, K: tl.constexpr, D: tl.constexpr):
    """Keys and values of one head in the rows `row` of a sequence, which lie in `page`: [rows, D] each.

    Zeros where no row `exists`: what lies there is anything, and a weight of 0 does not undo a NaN.
    """
    d = tl.arange(0, D)
    at = pages_ptr + (page.to(tl.int64) * S + row % S) * (2 * K * D) + head * D
    k = tl.load(at[:, None] + d[None, :], mask=exists[:, None], other=0.0)
    v = tl.load(at[:, None] + (K * D + d)[None, :], mask=exists[:, None], other=0.0)
    return k, v


@jit
def attend(q, k, v, seen, scale, peak, total, acc):
    """One block of softmax(q k^T) v, for queries that have seen other blocks: the next `peak`, `total` and `acc`.

    q: [M, D]; k, v: [rows, D]; seen: [M, rows], at least one in the first block. scale is D^-0.5 * log2(e), so that
    exp2 serves. peak: [M] greatest score so far, total: [M] sum of 2^(score - peak), acc: [M, D] the same sum of v.
    """
    scores = dot(q, tl.trans(k), tl.zeros((q.shape[0], k.shape[0]), tl.float32), "tf32x3") * scale
    scores = tl.where(seen, scores, float("-inf"))
    above = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - above[:, None])
    shrink = tl.exp2(peak - above)
    acc = dot(weights.to(v.dtype), v, acc * shrink[:, None], "tf32x3")
    return above, total * shrink + tl.sum(weights, 1), acc
