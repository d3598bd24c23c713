"""What a forward pass needs to know about its rows, and the attention over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.kernels.paged_attention import decode_attention, prefill_attention


@dataclass(frozen=True)
class Rows:
    """The rows of one forward pass: N rows, of prompts one after the other or one of each running request.

    cos, sin: [N, 1, D], of each row's position; slots: [N] int64, where its keys and values go. Then either `table`
    [B, T] int64 and `mask` [B, 1, 1, T * S] or None (decode: B = N), or `spans`, (rows, context, table [T]) per prompt.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    slots: torch.Tensor
    table: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    spans: list[tuple[int, int, torch.Tensor]] | None = None

    def attend(self, q: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
        """q: [N, H, D]; pages: one layer's [P, S, 2, K, D], the rows' own keys and values already in it."""
        if self.spans is not None:
            return prefill_attention(q, pages, self.spans)
        assert self.table is not None, "neither spans nor a table"
        return decode_attention(q, pages, self.table, self.mask)
