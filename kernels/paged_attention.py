"""Causal grouped-query attention over a KV cache in pages.

pages: [P, S, 2, K, D]: P pages of S rows, each row the keys (0) and values (1) of K heads. Row r of a sequence lies in
page table[r // S] at r % S. Page 0 is nobody's: tables are padded with it. Queries have H = G * K heads; head h reads
key head h // G. Scores are scaled by D^-0.5.
"""

import torch
import torch.nn.functional as F


def write_rows(pages: torch.Tensor, slots: torch.Tensor, kv: torch.Tensor) -> None:
    """Stores kv: [N, 2 K, D] (keys first) at `slots`: [N] int64, the numbers page * S + offset of the rows."""
    P, S, _, K, D = pages.shape
    pages.view(P * S, 2 * K, D).index_copy_(0, slots, kv)


def decode_attention(
    q: torch.Tensor, pages: torch.Tensor, table: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """One query row per sequence, over all rows of its pages.

    q: [B, H, D]; table: [B, T] int64; mask: [B, 1, 1, T * S] in q.dtype, 0 for rows that exist and -inf for the rest
    (None: all exist, up to `T * S`). Returns [B, H, D].
    """
    B, H, D = q.shape
    k, v = _gather(pages, table)
    group = q.view(B, k.shape[1], -1, D)  # the G queries of a key head are as G query rows of one head: K is read once
    return F.scaled_dot_product_attention(group, k, v, attn_mask=mask).reshape(B, H, D)


def prefill_attention(q: torch.Tensor, pages: torch.Tensor, spans: list[tuple[int, int, torch.Tensor]]) -> torch.Tensor:
    """Prompts of unequal length: each span is (rows, context, table), the sequence's last `rows` of `context` rows.

    q: [N, H, D], the spans' rows one after the other; table: [T] int64. Row i of a span sees the first
    context - rows + i + 1 rows of its sequence, a reused prefix included. Returns [N, H, D].
    """
    out, start = torch.empty_like(q), 0
    for rows, context, table in spans:
        k, v = _gather(pages, table[None])
        k, v = k[:, :, :context], v[:, :, :context]
        G = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)
        query = q[None, start : start + rows].transpose(1, 2)
        if rows == context:
            span = F.scaled_dot_product_attention(query, k, v, is_causal=True)
        else:
            seen = torch.ones(rows, context, dtype=torch.bool, device=q.device).tril(context - rows)
            span = F.scaled_dot_product_attention(query, k, v, attn_mask=seen)
        out[start : start + rows] = span[0].transpose(0, 1)
        start += rows
    return out


def _gather(pages: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of the tables' rows, each [B, K, T * S, D]."""
    (B, T), (_, S, _, K, D) = table.shape, pages.shape
    kv = pages.index_select(0, table.reshape(-1)).view(B, T * S, 2, K, D)
    return kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
