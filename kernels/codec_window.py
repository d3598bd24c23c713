"""What the codec's streaming kernels have in common: a pass over frames of many utterances, and each layer's window.

A pass decodes F frames. They belong to utterances that sit in seats, count after count, and line f of the table
`frames` [F, 8] int32 tells of frame f (columns below). A layer whose input has `rate` rows per frame reads x
[F * rate, C] fp32, rows in the order of the frames, and in front of each utterance's rows its tail: the last `tail`
rows of its input in the pass before.

    tails: [2, seats, tail, C] fp32    line `parity` is read; the other one is written, for the next pass

Row j of an utterance's part (j < 0: in the tail) has the time t = pos * rate - delay + j, and counts as zero unless
0 <= t < end * rate, whatever stands there: tails of a new owner need not be cleared.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .launch import constexpr, jit, tl, triton

# Columns of `frames`. A line with COUNT 0 is idle: nothing is read or written for it.
COLUMNS = 8
LINE = constexpr(COLUMNS)
SEAT = constexpr(0)  # whose tails
SLOT = constexpr(1)  # whose codes
POS = constexpr(2)  # frames of this utterance before this pass
COUNT = constexpr(3)  # frames of the utterance's part of this pass
END = constexpr(4)  # frames of the whole utterance
PARITY = constexpr(5)
INDEX = constexpr(6)  # of this frame in the part: 0 .. COUNT - 1

TAIL = 64  # rows: no tail is longer
ROWS = constexpr(TAIL)


@dataclass(eq=False)
class Window:
    """The input of a layer: x [F * rate, C] and tails [2, seats, tail, C], both fp32 and contiguous."""

    x: torch.Tensor
    tails: torch.Tensor
    frames: torch.Tensor
    rate: int
    delay: int  # rows by which x is late

    def __post_init__(self):
        F, C, tails = len(self.frames), self.x.shape[1], self.tails.shape
        assert self.frames.shape == (F, COLUMNS) and self.frames.dtype == torch.int32, self.frames.shape
        assert self.x.shape == (F * self.rate, C) and self.x.is_contiguous(), (self.x.shape, F, self.rate)
        assert tails[0] == 2 and tails[2] <= TAIL and tails[3] == C and self.tails.is_contiguous(), (tails, C)
        assert self.x.dtype == self.tails.dtype == torch.float32, (self.x.dtype, self.tails.dtype)
        assert max(self.x.numel(), self.tails.numel()) < 2**31, (self.x.shape, tails)  # offsets are int32

    @property
    def tail(self) -> int:
        return self.tails.shape[2]

    @property
    def arguments(self) -> tuple:
        """What a kernel takes of it: x, tails, frames, F, seats, rate, delay, tail."""
        return self.x, self.tails, self.frames, len(self.frames), self.tails.shape[1], self.rate, self.delay, self.tail


def fill_frames(frames: np.ndarray, parts: list[tuple[int, int, int, int, int, int]]) -> None:
    """Writes the table of a pass, [F, 8] int32. parts: (seat, slot, pos, count, end, parity) of each utterance."""
    table = np.array(parts, np.int32)
    counts = table[:, 3]
    F = counts.sum()
    frames[:F, :6] = np.repeat(table, counts, axis=0)
    frames[:F, 6] = np.arange(F) - np.repeat(np.cumsum(counts) - counts, counts)
    frames[F:] = 0


def jit_once(function: Callable) -> Any:
    """`jit` for kernels on a window: what it tells of a pass's size makes no new variant of the kernel. There are many
    sizes, and compiling takes seconds."""
    if triton is None:
        return function
    sizes = {"F", "seats", "rate", "delay", "tail", "skip_tail", "tiles_m", "dilation"}
    names = [name for name in inspect.signature(function).parameters if name in sizes]
    return triton.jit(do_not_specialize=names)(function)


@jit
def rows_of(frames_ptr, row, F, seats, rate, delay):
    """For rows of a pass: j and t as above, the t at which the utterance stops (0: idle), and the line of the tails."""
    frame = row // rate
    mask = frame < F
    line = frames_ptr + frame * LINE
    count = tl.load(line + COUNT, mask=mask, other=0)
    pos = tl.load(line + POS, mask=mask, other=0)
    j = tl.load(line + INDEX, mask=mask, other=0) * rate + row - frame * rate
    stop = tl.where(count > 0, tl.load(line + END, mask=mask, other=0) * rate, 0)
    side = tl.load(line + PARITY, mask=mask, other=0) * seats + tl.load(line + SEAT, mask=mask, other=0)
    return j, pos * rate - delay + j, stop, side


@jit
def row_pointers(x_ptr, tails_ptr, row, j, t, stop, side, tail, back, C: tl.constexpr):
    """Where the window's rows lie that are `back` before these, and which of them count."""
    inside = (t >= back) & (t - back < stop)
    in_tail = tails_ptr + (side * tail + tail + j - back) * C
    pointers = tl.where(j < back, in_tail, x_ptr + (row - back) * C)
    if C % 4 == 0:
        pointers = tl.multiple_of(pointers, 16)  # bytes, which a choice between two pointers hides from the compiler
    return pointers, inside


@jit
def save_tail(x_ptr, tails_ptr, frames_ptr, frame, c, seats, rate, tail, C: tl.constexpr):
    """Channels c of the next pass's tail, if `frame` is the first of a part: the last rows of the part's window."""
    line = frames_ptr + frame * LINE
    count = tl.load(line + COUNT)
    if (count > 0) & (tl.load(line + INDEX) == 0):
        seat, parity = tl.load(line + SEAT), tl.load(line + PARITY)
        w = tl.arange(0, ROWS)
        j = count * rate - tail + w
        old, new = (parity * seats + seat) * tail, ((1 - parity) * seats + seat) * tail
        pointers = tl.where(j < 0, tails_ptr + (old + tail + j) * C, x_ptr + (frame * rate + j) * C)
        if C % 4 == 0:
            pointers = tl.multiple_of(pointers, 16)
        mask = (w < tail)[:, None] & (c < C)[None, :]
        rows = tl.load(pointers[:, None] + c[None, :], mask=mask, other=0.0)
        tl.store(tails_ptr + ((new + w) * C)[:, None] + c[None, :], rows, mask=mask)


def window_ref(window: Window, back: int) -> torch.Tensor:
    """[F * rate, C]: the rows `back` before those of x, zeros where nothing counts."""
    j, t, stop, side = _rows_ref(window)
    found = window.x[(torch.arange(len(window.x), device=j.device) - back).clamp(0)]
    if window.tail:
        old = window.tails.flatten(0, 1)[side, (window.tail + j - back).clamp(0, window.tail - 1)]
        found = torch.where((j < back)[:, None], old, found)
    return torch.where(((t >= back) & (t - back < stop))[:, None], found, 0)


def save_tail_ref(window: Window) -> None:
    for f, (seat, _, _, count, _, parity, index, _) in enumerate(window.frames.tolist()):
        if count and index == 0 and window.tail:
            rows = window.x[f * window.rate : (f + count) * window.rate]
            window.tails[1 - parity, seat] = torch.cat([window.tails[parity, seat], rows])[-window.tail :]


def live_ref(window: Window) -> torch.Tensor:
    """[F * rate] bool: rows of frames that are not idle."""
    return (window.frames[:, 3] > 0).repeat_interleave(window.rate)


def _rows_ref(window: Window) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    seat, _, pos, count, end, parity, index, _ = window.frames.repeat_interleave(window.rate, 0).long().unbind(1)
    j = index * window.rate + torch.arange(len(window.x), device=index.device) % window.rate
    stop = torch.where(count > 0, end * window.rate, 0)
    return j, pos * window.rate - window.delay + j, stop, parity * window.tails.shape[1] + seat
