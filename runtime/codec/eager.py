"""A pass of the streaming decoder with PyTorch's own operations: where Triton does not run, and in any dtype."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .decoder import CodecDecoder, at_least_fp32
from .parts import Part


class Eager:
    """The CPU's backend; on CUDA it serves other dtypes than fp32. tails[i]: [slots, tail, Cin], layer i's."""

    capacity = 1 << 30

    def __init__(self, decoder: CodecDecoder, codes: torch.Tensor):
        self.decoder, self.codes = decoder, codes
        self.tails = zero_tails(decoder, len(codes))

    @torch.inference_mode()
    def run(self, parts: list[Part]) -> Ready:
        """Decodes at once, equal counts together."""
        alike: dict[tuple[int, bool], list[int]] = {}
        for n, part in enumerate(parts):
            alike.setdefault((part.frames, part.preview), []).append(n)
        sounds: dict[int, np.ndarray] = {}
        for numbers in alike.values():
            sounds |= zip(numbers, self._decode([parts[n] for n in numbers]), strict=True)
        return Ready([sounds[n] for n in range(len(parts))])

    def wait_for(self, event: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.codes.device).wait_event(event)  # never called on the CPU: there are no events

    def _decode(self, parts: list[Part]) -> np.ndarray:
        """Parts of one count, all previews or none -> [B, hop * count]."""
        codes = torch.stack([self._read(part) for part in parts])
        slots, pos, end = torch.tensor([(part.slot, part.pos, part.end) for part in parts], device=codes.device).T
        edge = any(part.edge for part in parts)
        if parts[0].preview:
            return step(self.decoder, zero_tails(self.decoder, len(parts)), codes, pos, end, edge).cpu().numpy()
        for part in parts:
            if part.pos == 0:  # a new owner: nothing of the old one remains
                for tails in self.tails:
                    tails[part.slot] = 0
        moved = [tails[slots] for tails in self.tails]
        sound = step(self.decoder, moved, codes, pos, end, edge)
        for tails, new in zip(self.tails, moved, strict=True):
            tails[slots] = new
        return sound.cpu().numpy()

    def _read(self, part: Part) -> torch.Tensor:
        """[codebooks, count] int64: the part's frames out of the delayed rows; zeros, never heard, from the end on."""
        Q = self.codes.shape[2]
        frames = torch.zeros(Q, part.frames, dtype=torch.int64, device=self.codes.device)
        if (real := min(part.frames, part.end - part.pos)) > 0:
            rows = self.codes[part.slot, part.pos : part.pos + real + Q - 1]
            assert len(rows) == real + Q - 1, (part, self.codes.shape)
            along, across = rows.stride()
            frames[:, :real] = rows.as_strided((Q, real), (along + across, along))  # [q, f] = rows[f + q, q]
        return frames


@dataclass
class Ready:
    """The sound of a pass that is over."""

    sounds: list[np.ndarray]

    def done(self) -> bool:
        return True

    def take(self) -> list[np.ndarray]:
        return self.sounds


def zero_tails(decoder: CodecDecoder, slots: int) -> list[torch.Tensor]:
    tails, width = [], decoder.config.latent
    for layer in decoder.layers:
        tails.append(decoder.table.new_zeros(slots, layer.tail, width))
        width = layer.width
    return tails


@torch.inference_mode()
def step(
    decoder: CodecDecoder,
    tails: list[torch.Tensor],
    codes: torch.Tensor,
    pos: torch.Tensor,
    end: torch.Tensor,
    edge: bool = True,
) -> torch.Tensor:
    """m more frames: codes [B, codebooks, m], pos and end [B] int64 -> sound [B, hop * m], late by the decoder's delay.

    The list `tails` then holds the tails behind these frames. `edge` False promises that no row is within the delay of
    its beginning or end, so that there is nothing to set to zero.
    """

    def inside(x: torch.Tensor, rate: int, delay: int) -> torch.Tensor:
        if edge:
            t = (pos * rate - delay)[:, None] + torch.arange(x.shape[1], device=x.device)
            x.masked_fill_(((t < 0) | (t >= (end * rate)[:, None]))[:, :, None], 0)
        return x

    rate, delay = 1, 0
    h = inside(decoder.lookup(codes), rate, delay)
    for i, layer in enumerate(decoder.layers):
        window = torch.cat([tails[i], h], dim=1)
        tails[i] = window[:, h.shape[1] :]
        h = layer(window)
        rate, delay = rate * layer.stride, layer.delayed(delay)
        h = inside(h, rate, delay)
    return at_least_fp32(h.squeeze(2))
