"""The decoder for sound that is still being made: each layer keeps the tail of its own input, no frame runs twice.

A layer's output runs late by a fixed delay, so that it never has to guess what comes next; for the published codec the
whole delay is 9,458 samples, less than 10 frames. Many utterances (slots) that began and end at different times share
one pass. What lies outside an utterance counts as zero in every layer: there the whole-utterance decode has its zero
padding, not the layers' biases.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import torch

from octavo.kernels.launch import on_triton
from octavo.runtime.errors import RequestError

from .decoder import CodecDecoder
from .eager import Eager
from .kernels import CAPACITY, Kernels
from .parts import UNKNOWN, Backend, Part, Pass


class CodecStream:
    """Slots whose frames are pushed and that give back samples as soon as these are final. For one thread at a time.

    It reads the frames where the sampler stores its delayed rows: codes [slots, rows, codebooks] int16 on the decoder's
    device, frame f of a slot being codes[slot, f + q, q] for codebook q. A value that is no code counts as 0. Rows may
    be stored over (by a slot's next owner) once what was pushed of them has been collected.

    Frame f's samples are complete when frame f + `lookahead` is pushed; 10 for the published codec.
    """

    def __init__(self, decoder: CodecDecoder, codes: torch.Tensor, graphs: bool = True, capacity: int = CAPACITY):
        """On CUDA: graphs: passes are captured, here and now, and replayed. capacity: frames of one pass at most."""
        assert codes.dim() == 3 and codes.shape[2] == decoder.config.codebooks, codes.shape
        self.decoder, self.max_slots = decoder, len(codes)
        self.delay = stream_delay(decoder)
        self._hop = decoder.config.hop
        self.lookahead = -(-self.delay // self._hop)
        self._backend: Backend
        if on_triton(decoder.table) and decoder.table.dtype == torch.float32:
            self._backend = Kernels(decoder, codes, graphs, capacity)
        else:
            self._backend = Eager(decoder, codes)
        self._owner, self._pos = [0] * self.max_slots, [0] * self.max_slots
        self._parity, self._end = [0] * self.max_slots, [UNKNOWN] * self.max_slots
        self._previews: list[Part] = []
        self._running: deque[tuple[list[Part], Pass]] = deque()

    def begin(self, slot: int) -> None:
        """A new owner, at frame 0 and with its end unknown. Sound of the old one that was not collected is dropped."""
        self._check([slot])
        self._owner[slot] += 1
        self._pos[slot], self._end[slot] = 0, UNKNOWN

    def push(self, slots: list[int], counts: list[int], ends: list[int | None]) -> None:
        """The next counts[i] frames of slots[i], all at once; slots that are not named stay as they are.

        ends[i] is slot i's length in frames as soon as it is known, else None. Frames from there on are dummies, which
        are not read and never heard; `lookahead` of them bring out the rest. Raises RequestError when an end comes too
        late, after frames beyond it were pushed, or changes.
        """
        self._check(slots)
        for slot, end in zip(slots, ends, strict=True):
            if end is not None and end != self._end[slot]:
                if self._end[slot] != UNKNOWN or end < self._pos[slot]:
                    raise RequestError(f"Slot {slot} is at frame {self._pos[slot]} and cannot end at {end}.")
                self._end[slot] = end
        parts, self._previews = self._previews, []
        for slot, count in zip(slots, counts, strict=True):
            while count > 0:
                taken = min(count, self._backend.capacity)
                parts.append(self._part(slot, self._pos[slot], taken, self._end[slot]))
                self._pos[slot] += taken
                self._parity[slot] ^= 1
                count -= taken
        self._run(parts)

    def preview(self, slot: int, frames: int) -> None:
        """The slot's first frames as if it ended there, beside its stream, with the next push: all of their samples.

        What follows sounds different from them by what the missing frames would have changed.
        """
        self._check([slot])
        assert frames + self.lookahead <= self._backend.capacity, frames
        self._previews.append(self._part(slot, 0, frames + self.lookahead, frames, preview=True))

    def collect(self, wait: bool = True) -> list[tuple[int, bool, np.ndarray]]:
        """(slot, whether it is a preview, samples [n] float32), n > 0, of finished pushes, in the order of the pushes.

        Samples are float64 from a decoder in float64. wait: for all pushes; else only what is there.
        """
        if wait and self._previews:
            self.push([], [], [])
        found = []
        while self._running and (wait or self._running[0][1].done()):
            parts, passed = self._running.popleft()
            for part, sound in zip(parts, passed.take(), strict=True):
                samples = sound[part.samples]
                if len(samples) and part.owner == self._owner[part.slot]:
                    found.append((part.slot, part.preview, samples))
        return found

    def wait_for(self, event: torch.cuda.Event) -> None:
        """On CUDA the next push begins when `event` has happened: its rows are stored then."""
        self._backend.wait_for(event)

    def synchronize(self) -> None:
        """Waits until the device has done what was pushed; its sound is dropped."""
        while self._running:
            self._running.popleft()[1].take()

    def _run(self, parts: list[Part]) -> None:
        """In passes that take what the backend can hold. A slot appears once in a pass: its state must move on."""
        while parts:
            batch, later, seen, room = [], [], set(), self._backend.capacity
            for part in parts:
                if part.frames <= room and part.slot not in seen:
                    batch.append(part)
                    room -= part.frames
                else:
                    later.append(part)
                if not part.preview:
                    seen.add(part.slot)  # also when there is no room: its parts stay in order
            self._running.append((batch, self._backend.run(batch)))
            parts = later

    def _part(self, slot: int, pos: int, count: int, end: int, preview: bool = False) -> Part:
        hop = self._hop
        begin = pos * hop - self.delay  # the time of the first sample that comes out
        samples = slice(max(0, -begin), max(0, min(count * hop, end * hop - begin)))
        edge = pos < self.lookahead or pos + count > end
        return Part(slot, self._owner[slot], pos, count, end, self._parity[slot], edge, samples, preview)

    def _check(self, slots: list[int]) -> None:
        if len(set(slots)) != len(slots) or not all(0 <= slot < self.max_slots for slot in slots):
            raise RequestError(f"Slots {slots} are not different numbers below {self.max_slots}.")


def stream_delay(decoder: CodecDecoder) -> int:
    """Samples by which a stream runs late: 9,458 for the published strides."""
    delay = 0
    for layer in decoder.layers:
        delay = layer.delayed(delay)
    return delay
