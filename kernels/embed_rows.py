"""The embedding of an audio row: the sum of one table row per codebook, accumulated in fp32 and rounded once.

    y[n] = sum_c table[c * V + codes[n, c]]

codes: [N, C] int64 in 0..V-1    table: [C * V, H]    ->    y: [N, H] in table.dtype
"""

import torch
import torch.nn.functional as F


def embed_rows(codes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    _, C = codes.shape
    V = table.shape[0] // C
    ids = codes + torch.arange(0, C * V, V, device=codes.device)
    return F.embedding(ids, table).sum(1)  # torch sums bf16 in fp32
