"""One draw per codebook from its logits: temperature, top-k, top-p, inverse cumulative distribution.

1. greedy where temperature is 0: the argmax of the logits (the first on ties)
2. scaled = logits / temperature
3. top-k keeps every entry that is not below the k-th largest, so ties at the boundary survive
4. top-p, on what top-k left and renormalised, keeps the smallest set of largest entries that reaches p, with its ties
5. softmax of the kept entries; the code is the first whose cumulative probability exceeds the draw u

The draw decides alone: the same logits and u give the same code whatever else is in the batch.
"""

import torch


def sample_codes(
    logits: torch.Tensor,
    u: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    max_top_k: int | None = None,
    any_top_p: bool = True,
) -> torch.Tensor:
    """logits: [B, C, V] fp32; u: [B, C] fp32 in [0, 1); per request, [B]: temperature fp32 (0: greedy), top_k int64 in
    1..V (V: off), top_p fp32 in (0, 1] (1: off). Returns codes [B, C] int64.

    What the host knows saves work: max_top_k, an upper bound of top_k below V, and any_top_p, whether any top_p < 1.
    """
    B, C, V = logits.shape
    greedy = temperature == 0
    scaled = logits / torch.where(greedy, 1.0, temperature)[:, None, None]
    K = min(max_top_k or V, V)
    if K < V or any_top_p:
        largest = scaled.topk(K).values  # [B, C, K], descending
        rank = (top_k.clamp(max=K) - 1)[:, None, None].expand(B, C, 1)
        least = largest.gather(2, rank)
        if any_top_p:
            p = largest.masked_fill(largest < least, -torch.inf).softmax(-1)
            before = p.cumsum(-1) - p  # the probability of everything larger; 0 for the first, which so always stays
            kept = (before < top_p[:, None, None]) & (p > 0)
            least = largest.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    cumulative = scaled.softmax(-1).cumsum(-1, dtype=torch.float64)  # in fp32 a parallel scan would not be monotone
    codes = (cumulative <= u[..., None] * cumulative[..., -1:]).sum(-1)
    return torch.where(greedy[:, None], logits.argmax(-1), codes)
