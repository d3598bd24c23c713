"""A quantized matrix as every format here can be read: integer codes, and a scale and an offset for each group.

    W[n, k] = level(codes[n, k]) * scale[n, k // group] + offset[n, k // group]

`level` is the code itself, or for 4 bits an entry of `levels`. This is what formats are converted to when they are
loaded, and what kernels lay out for their device: a new file format is a reader, not a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class Grouped:
    """codes: [N, K], uint8 in 0..15 (4 bits), int8, or float8_e4m3fn; scale, offset: [N, G] fp32, K = G * group;
    levels: [16] fp32, of 4-bit codes alone. No offset is an offset of zero."""

    codes: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None
    levels: torch.Tensor | None = None

    def __post_init__(self):
        (N, K), (n, G) = self.codes.shape, self.scale.shape
        assert n == N and G and K % G == 0, (self.codes.shape, self.scale.shape)
        assert self.offset is None or self.offset.shape == self.scale.shape, (self.offset.shape, self.scale.shape)
        assert self.codes.dtype in (torch.uint8, torch.int8, torch.float8_e4m3fn), self.codes.dtype
        assert self.levels is None or (self.levels.shape == (16,) and self.bits == 4), self.levels

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    @property
    def bits(self) -> int:
        return 4 if self.codes.dtype == torch.uint8 else 8

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """W: [N, K], computed in fp32 and rounded once."""
        (N, K), G = self.codes.shape, self.scale.shape[1]
        values = self.codes.float() if self.levels is None else self.levels[self.codes.int()]
        values = values.view(N, G, K // G) * self.scale[:, :, None]
        if self.offset is not None:
            values += self.offset[:, :, None]
        return values.view(N, K).to(dtype)


def stack(parts: Sequence[torch.Tensor | Grouped]) -> torch.Tensor | Grouped:
    """The parts one below the other, as one product wants them: q over k over v. Exact.

    Parts of several formats take the smallest that holds them all: 8 bits if one has 8, the finest group of all. A
    part that is not quantized, or fp8 beside something else, makes all of it fp32.
    """
    if len(parts) == 1:
        return parts[0]
    grouped = [part for part in parts if isinstance(part, Grouped)]
    floats = {part.codes.dtype == torch.float8_e4m3fn for part in grouped}
    tables = {None if part.levels is None else tuple(part.levels.tolist()) for part in grouped}
    if len(grouped) < len(parts) or len(floats) > 1 or len(tables) > 1:
        if not grouped:
            return torch.cat(list(parts))  # type: ignore[arg-type]
        return torch.cat([part.dequantize() if isinstance(part, Grouped) else part.float() for part in parts])
    finest = min(part.group for part in grouped)
    if any(part.group % finest for part in grouped):
        return torch.cat([part.dequantize() for part in grouped])
    codes = [part.codes for part in grouped]
    if len({c.dtype for c in codes}) > 1:
        codes = [c.to(torch.int8) for c in codes]
    offsets = [part.offset for part in grouped]
    offset = None
    if any(o is not None for o in offsets):
        offset = torch.cat(
            [
                _repeat(torch.zeros_like(part.scale) if part.offset is None else part.offset, part.group // finest)
                for part in grouped
            ]
        )
    scale = torch.cat([_repeat(part.scale, part.group // finest) for part in grouped])
    return Grouped(torch.cat(codes), scale, offset, grouped[0].levels)


def _repeat(values: torch.Tensor, times: int) -> torch.Tensor:
    return values if times == 1 else values.repeat_interleave(times, 1)
