"""Sees runaways: a model that repeats its rows or stays silent will not stop by itself before the row limit."""

from __future__ import annotations

import numpy as np

from .speech import FRAME_RATE, SAMPLES_PER_FRAME

LOOK_EVERY = 16  # rows; all that is said of an utterance is said of its rows up to a multiple of it
LOOP_ROWS = 3 * LOOK_EVERY  # rows, 2 s, that repeat exactly, in all codebooks: sampling never does that in speech
LOOP_PERIODS = range(1, 9)  # lengths of repeated patterns, rows; none is longer than LOOK_EVERY
STUCK_ROWS = 4 * FRAME_RATE  # rows with one and the same code in codebook 0, as greedy decoding ends up in
SILENCE = 10 ** (-55 / 20)  # RMS of a frame; the quietest whispering is 15 dB louder
OFF = np.iinfo(np.int32).max
_RECENT = np.arange(-2 * LOOK_EVERY, 0)
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)  # a row's two words to one: unequal rows stay so


class Guards:
    """One line per slot; looking at many utterances costs the same few numpy calls as looking at one."""

    def __init__(self, codes: np.ndarray):
        """codes: [slots, rows, 8] int16, where the rows are kept that `look` will speak of."""
        slots = len(codes)
        self._words = codes.view(np.uint64)  # [slots, rows, 2]: a row is two words
        self._repeats = np.zeros((slots, len(LOOP_PERIODS)), np.int32)  # rows that equalled the row a period earlier
        # Columns of one matrix, so that a beginning is one assignment.
        self._state = np.zeros((slots, 5), np.int64)
        self._stuck, self._quiet = self._state[:, :2].T  # rows, frames
        self._repeat_limit, self._stuck_limit, self._quiet_limit = self._state[:, 2:].T

    def begin(self, slot: int, allowance: float | None) -> None:
        """A new utterance. allowance: seconds of unbroken silence that its text may ask for; None: nothing is cut."""
        self._repeats[slot] = 0
        repeat = stuck = quiet = OFF
        if allowance is not None:
            quiet = round(allowance * FRAME_RATE)
            repeat, stuck = LOOP_ROWS, max(STUCK_ROWS, quiet + FRAME_RATE)
        self._state[slot] = (0, 0, repeat, stuck, quiet)

    def look(self, slots: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The next LOOK_EVERY rows of each slot, up to rows[i], a multiple of it; [n] bool, whether that is a loop."""
        known = (rows >= 2 * LOOK_EVERY)[:, None]
        recent = self._words[slots[:, None], rows[:, None] + _RECENT]  # [n, 2 * LOOK_EVERY, 2]
        mixed = recent[:, :, 0] * _MIX[0] + recent[:, :, 1] * _MIX[1]
        last, codes = mixed[:, LOOK_EVERY:], recent[:, LOOK_EVERY - 1 :, 0] & 0xFFFF  # of codebook 0, and one before
        same = np.empty((len(slots), len(LOOP_PERIODS)), bool)
        for number, period in enumerate(LOOP_PERIODS):
            same[:, number] = (last == mixed[:, LOOK_EVERY - period : -period]).all(1)
        repeats = (self._repeats[slots] + LOOK_EVERY) * (same & known)
        self._repeats[slots] = repeats
        stuck = (self._stuck[slots] + LOOK_EVERY) * ((codes == codes[:, :1]).all(-1) & known[:, 0])
        self._stuck[slots] = stuck
        return (repeats.max(-1) >= self._repeat_limit[slots]) | (stuck >= self._stuck_limit[slots])

    def add_pcm(self, slot: int, pcm: np.ndarray) -> bool:
        """pcm: float32 [960 * n + rest], the rest is left out. Whether that makes the silence too long."""
        if self._quiet_limit[slot] == OFF:
            return False
        if np.dot(pcm, pcm) > SILENCE**2 * len(pcm):  # loud on the whole: that silence ends it is soon enough
            self._quiet[slot] = 0
            return False
        frames = pcm[: len(pcm) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
        loud = np.einsum("ij,ij->i", frames, frames) >= SILENCE**2 * SAMPLES_PER_FRAME
        quiet, longest = int(self._quiet[slot]), 0
        for sounds in loud.tolist():
            quiet = 0 if sounds else quiet + 1
            longest = max(longest, quiet)
        self._quiet[slot] = quiet
        return longest > int(self._quiet_limit[slot])
