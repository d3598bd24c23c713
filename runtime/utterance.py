"""One piece of text on its way from rows of codes to sound."""

from __future__ import annotations

import numpy as np
import torch

from .delay import BOC, CODEBOOKS, undelay
from .guard import Guard
from .scheduler import Sequence

MAX_FRAMES = 25  # of one push


class Utterance:
    """Collects rows, hands the codec frames in growing pushes, collects the sound.

    The first push makes the first chunk as early as it can be exact: 18 rows for 46 ms. Then one frame, and each push
    takes one and a half times as many as the one before, so that playback goes on without a gap when rows come 1.5
    times faster than they are played.
    """

    def __init__(self, sequence: Sequence, lookahead: int, guard: Guard | None):
        """lookahead: frames that the codec needs behind a frame to finish it."""
        self.sequence, self.lookahead, self.guard = sequence, lookahead, guard
        self.finish_reason: str | None = None  # set when no row will follow
        self.flushed = False  # all its sound is there
        self.sound: list[np.ndarray] = []  # float32 [n] each
        self._rows: list[np.ndarray] = []
        self._pushed = 0
        self._next_push = lookahead + 1

    @property
    def codes(self) -> np.ndarray:
        """The frames so far, [T, 8] int16; what is no code (BOC or EOC drawn out of turn) becomes 0."""
        if len(self._rows) < CODEBOOKS:
            return np.zeros((0, CODEBOOKS), np.int16)
        codes = undelay(np.stack(self._rows))
        return np.where(codes >= BOC, 0, codes).astype(np.int16)

    @property
    def num_frames(self) -> int:
        return max(0, len(self._rows) - CODEBOOKS + 1)

    def add_row(self, row: np.ndarray, done: bool) -> None:
        """row: [8] int64. Sets finish_reason when it was the last."""
        self._rows.append(row)
        if self.guard:
            self.guard.add_row(row)
        if done:
            self.finish_reason = "stop"
        elif len(self._rows) == self.sequence.max_rows:
            self.finish_reason = "length"
        elif self.guard and self.guard.reason:
            self.finish_reason = self.guard.reason

    def due(self) -> int:
        """How many frames the codec should take now: 0 when there is nothing worth a push."""
        if self.finish_reason:
            return 0 if self.flushed else self.num_frames - self._pushed + self.lookahead
        return self._next_push if self.num_frames - self._pushed >= self._next_push else 0

    def take(self, frames: int) -> tuple[torch.Tensor, int | None]:
        """The next `frames` frames, [8, frames] int64 with zeros behind the end, and where the end is, if known."""
        start, stop = self._pushed, min(self._pushed + frames, self.num_frames)
        codes = np.zeros((CODEBOOKS, frames), np.int64)
        if stop > start:
            codes[:, : stop - start] = undelay(np.stack(self._rows[start : stop + CODEBOOKS - 1])).T
        self._pushed = stop
        self._next_push = 1 if start == 0 else min(int(1.5 * self._next_push + 0.5), MAX_FRAMES)
        self.flushed = self.finish_reason is not None
        return torch.from_numpy(codes), self.num_frames if self.flushed else None

    def add_sound(self, pcm: np.ndarray) -> None:
        self.sound.append(pcm)
        if self.guard:
            self.guard.add_pcm(pcm)
            if self.guard.reason and not self.finish_reason:
                self.finish_reason = self.guard.reason
