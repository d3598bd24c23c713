"""What the kernels of one forward pass need to know of its rows, computed once and read by every layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(eq=False)
class Rows:
    """N rows: one of each running request (decode), or prompts one after the other (prefill).

    Row n is row `positions[n]` of the sequence whose pages stand in `table[owner[n]]`.
    """

    positions: torch.Tensor  # [N] int32
    owner: torch.Tensor  # [N] int32; 0, 1, 2, ... when decoding
    table: torch.Tensor  # [B, T] int32 page numbers, rows may be strided, padded with page 0
    rope: torch.Tensor  # [length, 2, D]: rope_table
    page_size: int
    spans: list[tuple[int, int]] | None = None  # prefill: (rows, context) of each line of the table; None: decode
    tiles: torch.Tensor | None = None  # prefill on Triton: prefill_attention.prefill_tiles of the spans
    counters: torch.Tensor | None = None  # decode on Triton: [B * K] int32 zeros, left zero by every launch
    deterministic: bool = False  # no sum may depend on what else is in the batch

    # What the reference ops read; the kernels compute it themselves.

    @cached_property
    def cos_sin(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 1, D] each."""
        cos, sin = self.rope[self.positions].split(1, 1)
        return cos, sin

    @cached_property
    def kv_slots(self) -> torch.Tensor:
        """[N] int64: page * page_size + offset, where each row's keys and values lie."""
        page, offset = self.positions // self.page_size, self.positions % self.page_size
        return self.table[self.owner, page].long() * self.page_size + offset

    @cached_property
    def span(self) -> slice | None:
        """Decode of a single lane whose pages follow each other: the rows that it has, of all pages' rows. Then nothing
        need be gathered."""
        pages = self.table[0].tolist()
        first, rows = pages[0] * self.page_size, int(self.positions[0]) + 1
        return slice(first, first + rows) if pages == [*range(pages[0], pages[0] + len(pages))] else None

    @cached_property
    def mask(self) -> torch.Tensor:
        """Decode: [B, 1, 1, T * page_size] in the rope's dtype, 0 for the rows that exist and -inf behind them."""
        rows = torch.arange(self.table.shape[1] * self.page_size, device=self.table.device)
        beyond = rows > self.positions[:, None]
        return torch.zeros(beyond.shape, dtype=self.rope.dtype, device=rows.device).masked_fill_(beyond, -torch.inf)[
            :, None, None
        ]
