"""The delay pattern of the codebooks, and the scalar oracle of the state machine that generates it.

A frame is one code per codebook. The model does not speak frames but rows, in which codebook c lags c rows behind:

    rows[r, c] = BOC            if r < c
               = codes[r-c, c]  if c <= r < c + T
               = EOC            otherwise             codes [T, N] -> rows [T+N-1, N]

(model-v3.md 5.4 and 5.5.) Column 0 never holds BOC and column N-1 never holds EOC. One row is 40 ms, as a frame is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CODEBOOKS = 8
BOC, EOC = 1024, 1025  # ids inside a codebook of 1024 codes: the code before the first frame and the one after the last


def delay(codes: np.ndarray, boc: int = BOC, eoc: int = EOC) -> np.ndarray:
    """Frames to rows: codes [T, N], any integer dtype -> rows [T+N-1, N] int64. No frames give no rows."""
    frames, codebooks = codes.shape
    if frames == 0:
        return np.empty((0, codebooks), np.int64)
    rows = np.full((frames + codebooks - 1, codebooks), eoc, np.int64)
    for c in range(codebooks):
        rows[:c, c] = boc
        rows[c : c + frames, c] = codes[:, c]
    return rows


def undelay(rows: np.ndarray) -> np.ndarray:
    """Rows to frames: rows [L, N] -> codes [L-N+1, N] in the dtype of the rows; fewer than N rows hold no whole frame.

    Ids of BOC and EOC that were sampled inside an utterance are left where they are: the codec's caller decides.
    """
    length, codebooks = rows.shape
    frames = max(0, length - codebooks + 1)
    return np.stack([rows[c : c + frames, c] for c in range(codebooks)], axis=1)


@dataclass
class DelayState:
    """One request's state between two rows: the plain statement of model-v3.md 5.5 that the batched one must equal.

    The first N rows ramp in: codebooks that have not begun are forced to BOC, and an EOC is not looked at. From then on
    an EOC in codebook 0 announces the end: N-2 more rows are sampled freely (the ramp-out), the last of them sets
    `done`. An EOC in row s therefore gives s+N-1 rows, which undelay to s frames.
    """

    codebooks: int = CODEBOOKS
    delay: int = 0  # rows of the ramp-in that are behind us, at most `codebooks`
    left: int | None = None  # rows of the ramp-out still to come; None before the EOC
    done: bool = False

    def step(self, sampled: Sequence[int]) -> list[int]:
        """Takes the N codes sampled for this row; returns the row as it is kept and fed back to the model."""
        assert len(sampled) == self.codebooks and not self.done, (len(sampled), self)
        row = list(sampled)
        if self.delay < self.codebooks:
            row[self.delay + 1 :] = [BOC] * (self.codebooks - 1 - self.delay)
            self.delay += 1
        elif self.left is not None:
            self.left -= 1
            self.done = self.left <= 0
        elif row[0] == EOC:
            self.left = self.codebooks - 2
        return row
