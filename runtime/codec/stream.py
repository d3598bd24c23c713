"""The decoder for sound that is still being made: each layer keeps the tail of its own input, no frame runs twice.

A layer's output runs late by a fixed delay, so that it never has to guess what comes next; for the published codec the
whole delay is 9,458 samples, less than 10 frames. Many utterances (slots) that began and end at different times share
one fixed-shape step. What lies outside an utterance is set to zero after every layer: there the whole-utterance decode
has its zero padding, not the layers' biases.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.runtime.errors import RequestError

from .decoder import CodecDecoder, at_least_fp32

UNKNOWN = 1 << 40  # frames: the end of an utterance that still goes on


@dataclass
class StreamState:
    """Rows are slots. tails[i]: [slots, tail, Cin] of layer i; pos, end: [slots] int64, frames pushed and in all."""

    tails: list[torch.Tensor]
    pos: torch.Tensor
    end: torch.Tensor

    @classmethod
    def zeros(cls, decoder: CodecDecoder, slots: int) -> StreamState:
        table, width = decoder.table, decoder.config.latent
        tails = []
        for layer in decoder.layers:
            tails.append(table.new_zeros(slots, layer.tail, width))
            width = layer.width
        pos = torch.zeros(slots, dtype=torch.int64, device=table.device)
        return cls(tails, pos, torch.full_like(pos, UNKNOWN))

    def reset(self, rows: torch.Tensor) -> None:
        """Rows (int64 indices) change their owner."""
        for tail in self.tails:
            tail[rows] = 0
        self.pos[rows] = 0
        self.end[rows] = UNKNOWN


@torch.inference_mode()
def step(
    decoder: CodecDecoder, state: StreamState, rows: torch.Tensor, codes: torch.Tensor, edge: bool = True
) -> torch.Tensor:
    """m more frames for some slots: rows [B] int64, codes [B, codebooks, m] -> sound [B, hop * m], late by `delay`.

    `state` moves on for these rows and for no others. `edge` False promises that none of them is within the delay of
    its beginning or end, so that there is nothing to set to zero.
    """
    pos, end = state.pos[rows], state.end[rows]

    def inside(x: torch.Tensor, rate: int, delay: int) -> torch.Tensor:
        if edge:
            t = (pos * rate - delay)[:, None] + torch.arange(x.shape[1], device=x.device)
            x.masked_fill_(((t < 0) | (t >= (end * rate)[:, None]))[:, :, None], 0)
        return x

    rate, delay = 1, 0
    h = inside(decoder.lookup(codes), rate, delay)
    for layer, tails in zip(decoder.layers, state.tails, strict=True):
        window = torch.cat([tails[rows], h], dim=1)
        tails[rows] = window[:, h.shape[1] :]
        h = layer(window)
        rate, delay = rate * layer.stride, (delay + layer.tail - layer.pad) * layer.stride + layer.trim[0]
        h = inside(h, rate, delay)
    state.pos[rows] = pos + codes.shape[2]
    return at_least_fp32(h.squeeze(2))


def stream_delay(decoder: CodecDecoder) -> int:
    """Samples by which `step` runs late: 9,458 for the published strides."""
    delay = 0
    for layer in decoder.layers:
        delay = (delay + layer.tail - layer.pad) * layer.stride + layer.trim[0]
    return delay


class CodecStream:
    """Slots that are pushed frames and give back samples as soon as these are final. For one thread at a time.

    Frame f's samples can be complete `lookahead` frames later; 10 for the published codec.
    """

    def __init__(self, decoder: CodecDecoder, max_slots: int):
        self.decoder, self.max_slots = decoder, max_slots
        self.delay = stream_delay(decoder)
        self.lookahead = -(-self.delay // decoder.config.hop)
        self._state = StreamState.zeros(decoder, max_slots)
        self._pos = [0] * max_slots
        self._end: list[int | None] = [None] * max_slots

    @torch.inference_mode()
    def reset(self, slots: list[int]) -> None:
        """These slots change their owner: nothing of the old one remains."""
        self._check(slots)
        self._state.reset(self._rows(slots))
        for slot in slots:
            self._pos[slot], self._end[slot] = 0, None

    @torch.inference_mode()
    def push(self, slots: list[int], codes: torch.Tensor, ends: list[int | None]) -> list[torch.Tensor]:
        """m frames for each of `slots`: codes [B, codebooks, m] int64 -> for each the newly final samples, [n], n >= 0.

        ends[i] is slot i's length in frames as soon as it is known, else None. Frames from there on are dummies, which
        are never heard; `lookahead` of them bring out the rest. A slot not named stays as it is. Raises RequestError
        when an end comes too late: after frames beyond it were pushed.
        """
        self._check(slots)
        B, m = len(slots), codes.shape[2]
        if codes.shape[:2] != (B, self.decoder.config.codebooks) or len(ends) != B:
            raise RequestError(f"{B} slots were pushed codes of shape {list(codes.shape)} and {len(ends)} ends.")
        for slot, end in zip(slots, ends, strict=True):
            if end is not None and end != self._end[slot]:
                if self._end[slot] is not None or end < self._pos[slot]:
                    raise RequestError(f"Slot {slot} is at frame {self._pos[slot]} and cannot end at {end}.")
                self._end[slot] = end
        if B == 0 or m == 0:
            return [self.decoder.table.new_zeros(0)] * B
        rows = self._rows(slots)
        self._state.end[rows] = self._rows([UNKNOWN if (end := self._end[slot]) is None else end for slot in slots])
        edge = any(self._at_edge(slot, m) for slot in slots)
        sound = step(self.decoder, self._state, rows, codes.to(rows.device), edge)
        return [self._cut(slot, samples, m) for slot, samples in zip(slots, sound, strict=True)]

    def _cut(self, slot: int, samples: torch.Tensor, m: int) -> torch.Tensor:
        hop, end = self.decoder.config.hop, self._end[slot]
        begin = self._pos[slot] * hop - self.delay  # the time of samples[0]
        self._pos[slot] += m
        stop = len(samples) if end is None else min(len(samples), end * hop - begin)
        return samples[max(0, -begin) : max(0, stop)]

    def _at_edge(self, slot: int, m: int) -> bool:
        end = self._end[slot]
        return self._pos[slot] < self.lookahead or (end is not None and self._pos[slot] + m > end)

    def _check(self, slots: list[int]) -> None:
        if len(set(slots)) != len(slots) or not all(0 <= slot < self.max_slots for slot in slots):
            raise RequestError(f"Slots {slots} are not different numbers below {self.max_slots}.")

    def _rows(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.decoder.table.device)
