"""Sees a runaway: a model that repeats its rows or stays silent will not stop by itself before the row limit."""

from __future__ import annotations

import numpy as np

from .speech import FRAME_RATE, SAMPLES_PER_FRAME

LOOP_ROWS = 2 * FRAME_RATE  # rows that repeat exactly, in all codebooks: sampling never does that in speech
LOOP_PERIOD = 8  # longest repeated pattern, rows
STUCK_ROWS = 4 * FRAME_RATE  # rows with one and the same code in codebook 0, as greedy decoding ends up in
SILENCE = 10 ** (-55 / 20)  # RMS of a frame; the quietest whispering is 15 dB louder


class Guard:
    """One utterance's. `silence_allowance`: seconds of unbroken silence that its text may ask for."""

    def __init__(self, silence_allowance: float):
        self.reason: str | None = None  # `loop` or `silence` once seen
        self._quiet_limit = round(silence_allowance * FRAME_RATE)
        self._quiet = 0
        self._recent: list[bytes] = []
        self._repeats = [0] * (LOOP_PERIOD + 1)  # per period: rows that equalled the row a period earlier, in a row
        self._stuck, self._code = 0, -1

    def add_row(self, row: np.ndarray) -> None:
        """row: [8] int64, as generated."""
        key = row.tobytes()
        for period in range(1, len(self._recent) + 1):
            same = self._recent[-period] == key
            self._repeats[period] = self._repeats[period] + 1 if same else 0
        self._recent = [*self._recent, key][-LOOP_PERIOD:]
        self._stuck = self._stuck + 1 if row[0] == self._code else 1
        self._code = row[0]
        if max(self._repeats) >= LOOP_ROWS or self._stuck >= max(STUCK_ROWS, self._quiet_limit + FRAME_RATE):
            self.reason = self.reason or "loop"

    def add_pcm(self, pcm: np.ndarray) -> None:
        """pcm: float32 [960 * n + rest]; the rest is left out."""
        frames = pcm[: len(pcm) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
        for quiet in np.sqrt(np.mean(np.square(frames), axis=1)) < SILENCE:
            self._quiet = self._quiet + 1 if quiet else 0
            if self._quiet > self._quiet_limit:
                self.reason = self.reason or "silence"
