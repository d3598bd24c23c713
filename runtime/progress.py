"""How far the utterances are: what was launched, read and pushed, and what comes next.

Plain numpy, one line per slot. A row of many utterances costs the same few calls as a row of one; Python looks at a
single utterance only when something happens to it: a push is due, or it ends.
"""

from __future__ import annotations

import numpy as np

from .delay import CODEBOOKS
from .guard import LOOK_EVERY, Guards

MAX_FRAMES = 25  # of one push
REASONS = (None, "stop", "length", "loop", "silence")
STOP, LENGTH, LOOP, SILENCE = range(1, 5)
_NEVER = np.iinfo(np.int32).max


class Progress:
    """The first push makes the first chunk as early as it can be exact: 18 rows for 46 ms. Then `second` frames, and
    each push takes `growth` times as many as the one before, up to a second: few pushes, and none so late that
    playback, which goes on meanwhile, runs dry.
    """

    def __init__(self, slots: int, max_rows: int, lookahead: int, second: int = 1, growth: float = 1.5):
        """lookahead: frames that the codec needs behind a frame to finish it."""
        self.lookahead, self._second, self._growth = lookahead, second, growth
        self.codes = np.zeros((slots, max_rows, CODEBOOKS), np.int16)  # delayed rows, as read
        self.guards = Guards(self.codes)
        self.endings = 0  # how often a term has changed
        self._reads = 0
        self.term = np.zeros(slots, np.int64)  # changes with every end: rows of an older term are nobody's
        # Columns of one matrix, so that a beginning is one assignment.
        self._state = np.zeros((slots, 7), np.int32)
        self._launched = self._state[:, 0]  # rows
        self._read = self._state[:, 1]  # rows
        self._limit = self._state[:, 2]  # rows, after which it ends
        self._cut = self._state[:, 3]  # why it ends there
        self._pushed = self._state[:, 4]  # frames
        self._next = self._state[:, 5]  # frames of the next push
        self._push_at = self._state[:, 6]  # rows launched by which it is due
        self._push_at[:] = _NEVER

    def begin(self, slot: int, max_rows: int, allowance: float | None) -> None:
        """A new utterance of at most `max_rows` rows. allowance: as `Guards.begin` takes it."""
        self.guards.begin(slot, allowance)
        first = self.lookahead + 1
        self._state[slot] = (0, 0, max_rows, LENGTH, 0, first, first + CODEBOOKS - 1)

    def launch(self, slots: np.ndarray) -> np.ndarray:
        """A row of these is under way; returns those that need no further one."""
        launched = self._launched[slots] + 1
        self._launched[slots] = launched
        return slots[launched >= self._limit[slots]]

    def read(self, slots: np.ndarray, rows: np.ndarray, done: np.ndarray) -> list[tuple[int, int]]:
        """Rows [n, 8] have been read, done [n] tells those that the model has ended. Returns who ends, and why.

        Loops are looked for now and then, but end where they would end whenever it was: so a request has the same rows
        in any company.
        """
        newest = self._read[slots]
        self.codes[slots, newest] = rows
        self._read[slots] = newest + 1
        if newest.any():  # not the first rows of newcomers
            self._reads += 1
            if self._reads % LOOK_EVERY == 0:
                rows_seen = (newest + 1) // LOOK_EVERY * LOOK_EVERY
                looped = self.guards.look(slots, rows_seen)
                for slot, seen in zip(slots[looped].tolist(), rows_seen[looped].tolist(), strict=True):
                    self._cut_at(slot, seen + LOOK_EVERY, LOOP)  # no later look could have come behind that row
        ended = (done != 0) | (newest + 1 >= self._limit[slots])
        if not ended.any():
            return []
        reasons = np.where(done != 0, STOP, self._cut[slots])
        return list(zip(slots[ended].tolist(), reasons[ended].tolist(), strict=True))

    def cut(self, slot: int, reason: int) -> bool:
        """No further row; whether those it has got are all there."""
        self._cut_at(slot, int(self._launched[slot]), reason)
        return bool(self._read[slot] >= self._limit[slot])

    def _cut_at(self, slot: int, rows: int, reason: int) -> None:
        if self._limit[slot] > rows:
            self._limit[slot], self._cut[slot] = rows, reason

    def end(self, slot: int) -> tuple[int, int]:
        """Its rows are complete: returns (frames to push for the rest of its sound, frames in all)."""
        self.term[slot] += 1
        self.endings += 1
        self._push_at[slot] = _NEVER
        frames = self.frames(slot)
        return frames - int(self._pushed[slot]) + self.lookahead, frames

    def launched(self, slot: int) -> int:
        return int(self._launched[slot])

    def rows(self, slot: int) -> int:
        return int(self._read[slot])

    def frames(self, slot: int) -> int:
        return max(0, self.rows(slot) - CODEBOOKS + 1)

    def due(self, slots: np.ndarray) -> list[int]:
        """Those of whom the codec should take the next frames now. A frame whose rows are launched is never one behind
        the end: the end is a row that has been read, or the next."""
        return slots[self._launched[slots] >= self._push_at[slots]].tolist()

    def take(self, slot: int) -> int:
        """How many frames that push takes; the next one is due later."""
        taken = int(self._next[slot])
        first = self._pushed[slot] == 0
        self._pushed[slot] += taken
        self._next[slot] = self._second if first else min(int(self._growth * taken + 0.5), MAX_FRAMES)
        self._push_at[slot] = self._pushed[slot] + self._next[slot] + CODEBOOKS - 1
        return taken

    def delayed(self, slot: int) -> np.ndarray:
        """A copy of the rows that were read, [R, 8] int16, delayed as they came."""
        return self.codes[slot, : self.rows(slot)].copy()
