"""Utterances that are pushed through the streaming decoder, and how far two sounds are apart."""

from __future__ import annotations

import numpy as np
import torch


def utterance(T: int, seed: int) -> torch.Tensor:
    """[8, T] int64."""
    return torch.randint(0, 1024, (8, T), generator=torch.Generator().manual_seed(seed))


def store(rows: torch.Tensor, slot: int, codes: torch.Tensor) -> None:
    """Puts codes [8, T] into the slot's rows, delayed, as the sampler does. What else is there stays."""
    for q in range(8):
        rows[slot, q : q + codes.shape[1], q] = codes[q].to(torch.int16)


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """RMS of the difference in units of the RMS of `want`."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


class Utterance:
    """One that is being pushed: how many frames come next, and the sound so far. `late`: its end is told at the end."""

    def __init__(self, codes: torch.Tensor, late: bool):
        self.codes, self.late = codes, late
        self.pos, self.sound = 0, []

    def next(self, count: int) -> tuple[int, int | None]:
        """Frames to push now, and the end if it is to be told. Untold, no push reaches beyond it."""
        T = self.codes.shape[1]
        told = not self.late or self.pos == T
        count = count if told else min(count, T - self.pos)
        self.pos += count
        return count, T if told else None

    @property
    def done(self) -> bool:
        return self.pos >= self.codes.shape[1] + 10
