"""One piece of text on its way to sound."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .delay import BOC, CODEBOOKS, undelay
from .scheduler import Sequence
from .speech import SAMPLES_PER_FRAME

CROSSFADE = 240  # samples, 10 ms: over which a provisional first chunk passes into the exact sound


class Utterance:
    """What has come of it so far. The loop fills it; the request that it belongs to reads it."""

    def __init__(self, sequence: Sequence, allowance: float | None, fast: bool = False):
        """allowance: seconds of silence after which it is cut, None: it is not watched. fast: its first frames are
        heard before the codec can know them exactly."""
        self.sequence, self.allowance, self.fast = sequence, allowance, fast
        self.finish_reason: str | None = None  # set when no row will follow
        self.delayed = np.zeros((0, CODEBOOKS), np.int16)  # all its rows [R, 8], set just before
        self.sound: list[np.ndarray] = []  # float32 [n] each
        self._provisional = np.zeros(0, np.float32)  # heard before it was exact; its last samples are still held back
        self._exact: list[np.ndarray] = []  # kept back until it reaches beyond what was provisional
        self._samples = 0  # exact ones

    @property
    def rows(self) -> int:
        return len(self.delayed)

    @property
    def num_frames(self) -> int:
        return max(0, self.rows - CODEBOOKS + 1)

    @cached_property
    def codes(self) -> np.ndarray:
        """Of a finished utterance, the frames [T, 8] int16; what is no code (BOC or EOC drawn out of turn) is 0."""
        if self.num_frames == 0:
            return self.delayed[:0]
        codes = undelay(self.delayed)
        return np.where(codes >= BOC, 0, codes).astype(np.int16)

    @property
    def flushed(self) -> bool:
        """All its sound is there."""
        return self.finish_reason is not None and self._samples == self.num_frames * SAMPLES_PER_FRAME

    def add_preview(self, pcm: np.ndarray) -> None:
        """The first frames as they sound without what follows; heard but for the samples that will be blended."""
        self.sound.append(self._beyond(pcm)[:-CROSSFADE])
        self._provisional = pcm

    def add_sound(self, pcm: np.ndarray) -> None:
        """The next exact samples. Where a preview was heard they replace only what comes after it."""
        self._samples += len(pcm)
        held = len(self._provisional)
        if not held:
            self.sound.append(pcm)
            return
        self._exact.append(pcm)
        exact = np.concatenate(self._exact)
        if len(exact) >= held:
            self.sound.append(self._beyond(exact))
            self._provisional, self._exact = pcm[:0], []

    def _beyond(self, pcm: np.ndarray) -> np.ndarray:
        """What of these samples, which begin with the utterance, was not heard yet, blended with what was held back."""
        held = len(self._provisional)
        if not held:
            return pcm
        rest = pcm[held - CROSSFADE :].copy()
        share = np.linspace(0, 1, CROSSFADE, dtype=np.float32)
        rest[:CROSSFADE] += (1 - share) * (self._provisional[-CROSSFADE:] - rest[:CROSSFADE])
        return rest
