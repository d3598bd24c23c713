"""The streaming decoder on its own CUDA stream: passes captured as graphs, frames in and sound out of pinned memory."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from octavo.kernels.codec_window import COLUMNS, fill_frames

from ..graph import capture
from .decoder import CodecDecoder
from .parts import Part
from .stages import Stages

STAGINGS = 3  # passes under way, but for rare crowds
CAPACITY = 256  # frames of a pass: 64 slots that run along, four frames each, or ten that push their longest


class Kernels:
    """CUDA's backend. Under Triton's interpreter it runs on the CPU: the same passes, without stream and graphs."""

    def __init__(self, decoder: CodecDecoder, codes: torch.Tensor, graphs: bool = True, capacity: int = CAPACITY):
        self.capacity = capacity
        self.hop, self.seats = decoder.config.hop, len(codes) + 1
        self.stages = Stages(decoder, codes, self.seats, capacity)
        self.stream = torch.cuda.Stream(codes.device) if codes.is_cuda else None
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        # Pinned memory is not to be had without waiting for the device: so much of it now that a step needs none.
        self._free = [Staging.new(capacity, self.hop, self.stream is not None) for _ in range(STAGINGS)]
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(codes.device))  # which writes weights and zeros
            if graphs:
                for size in sizes(capacity):
                    self._capture(size)

    @torch.inference_mode()
    def run(self, parts: list[Part]) -> Fetched:
        frames = sum(part.frames for part in parts)
        assert 0 < frames <= self.capacity, frames
        size = next(size for size in sizes(self.capacity) if size >= frames)
        staging = self._free.pop() if self._free else Staging.new(self.capacity, self.hop, self.stream is not None)
        # Previews share the last seat. They begin at frame 0, so its tails are never read, whoever wrote them.
        table = [
            (self.seats - 1 if part.preview else part.slot, part.slot, part.pos, part.frames, part.end, part.parity)
            for part in parts
        ]
        fill_frames(staging.frames[:size].numpy(), table)
        with self._on_stream():
            self.stages.frames[:size].copy_(staging.frames[:size], non_blocking=True)
            if size in self._graphs:
                self._graphs[size].replay()
            else:
                self.stages.run(size)
            samples = frames * self.hop
            staging.sound[:samples].copy_(self.stages.sound[:samples], non_blocking=True)
            if staging.event is not None:
                staging.event.record()
        return Fetched(staging, [part.frames * self.hop for part in parts], self._free)

    def wait_for(self, event: torch.cuda.Event) -> None:
        if self.stream is not None:
            self.stream.wait_event(event)

    def _on_stream(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    @torch.inference_mode()
    def _capture(self, size: int) -> None:
        """The table is still empty: what runs here touches no slot."""
        with self._on_stream():
            self._graphs[size] = capture(partial(self.stages.run, size))


def sizes(capacity: int) -> list[int]:
    """Frames of the passes there are: 1, 2, 4, ... and `capacity`. The lines behind a push's frames are idle."""
    return [*(1 << n for n in range((capacity - 1).bit_length())), capacity]


@dataclass
class Staging:
    """Where the host leaves a pass's frames and finds its sound: pinned, and one pass's own until that is fetched."""

    frames: torch.Tensor  # [capacity, COLUMNS] int32
    sound: torch.Tensor  # [capacity * hop] fp32
    event: torch.cuda.Event | None  # the sound is there; None: it is at once

    @classmethod
    def new(cls, capacity: int, hop: int, cuda: bool) -> Staging:
        frames = torch.zeros(capacity, COLUMNS, dtype=torch.int32, pin_memory=cuda)
        sound = torch.zeros(capacity * hop, pin_memory=cuda)
        return cls(frames, sound, torch.cuda.Event() if cuda else None)


@dataclass
class Fetched:
    """A pass under way. Taken, it gives its staging back."""

    staging: Staging
    lengths: list[int]
    free: list[Staging]

    def done(self) -> bool:
        return self.staging.event is None or self.staging.event.query()

    def take(self) -> list[np.ndarray]:
        if self.staging.event is not None:
            self.staging.event.synchronize()
        stops = [*itertools.accumulate(self.lengths)]
        sound = self.staging.sound[: stops[-1]].numpy().copy()
        self.free.append(self.staging)
        return [sound[stop - length : stop] for stop, length in zip(stops, self.lengths, strict=True)]
