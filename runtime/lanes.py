"""What the device must know of each running request, one line per lane, and how it gets there.

A lane is a place in the batch. Running requests hold lanes 0..n-1 without gaps, so that a captured row for n requests
reads fixed addresses. The host writes its own copy of the lines and sends them in one piece when somebody joins or
leaves; between two such moments the device counts the rows by itself and the host counts along.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from .kv_cache import DUMMY_PAGE
from .scheduler import Sequence


class LaneView(NamedTuple):
    """Some lanes, one after the other, as the kernels see them; all tensors share the device's memory."""

    seed: torch.Tensor  # [B] int64
    row: torch.Tensor  # [B] int32, rows generated so far
    prompt: torch.Tensor  # [B] int32, rows of the prompt
    active: torch.Tensor  # [B] int32, 0 or 1
    slot: torch.Tensor  # [B] int32, where its codes are stored
    top_k: torch.Tensor  # [B] int32
    temperature: torch.Tensor  # [B] fp32, 0: greedy
    top_p: torch.Tensor  # [B] fp32
    table: torch.Tensor  # [B, T] int32, pages, padded with the dummy page
    out: torch.Tensor  # [B, C + 1] int16, the newest row, which is fed back, and whether it was the last
    left: torch.Tensor  # [B] int32, rows of the ramp-out to come
    positions: torch.Tensor  # [B] int32, of the row being computed
    owner: torch.Tensor  # [B] int32: 0, 1, 2, ...


class Lanes:
    def __init__(self, count: int, pages: int, codebooks: int, dummy_slot: int, device: torch.device):
        """pages: of the longest sequence; dummy_slot: where idle lanes store what they compute."""
        line = np.dtype(
            [("seed", "i8")]
            + [(name, "i4") for name in ("row", "prompt", "active", "slot", "top_k")]
            + [("temperature", "f4"), ("top_p", "f4"), ("odd", "i4"), ("table", "i4", (pages + pages % 2,))]
        )
        self.host = np.zeros(count, line)
        self.idle = np.zeros((), line)
        self.idle["prompt"], self.idle["slot"], self.idle["table"] = 1, dummy_slot, DUMMY_PAGE
        self.idle["top_k"], self.idle["top_p"] = 1, 1
        self.host[:] = self.idle
        self._fields = self.host[["seed", "row", "prompt", "active", "slot", "top_k", "temperature", "top_p"]]
        self._tables = self.host["table"]
        self.running = 0
        self.device = device
        self._lines = self.host.view(np.int32).reshape(count, -1)  # the same memory, as it is copied
        self._idle_line = self._lines[0].copy()
        words = torch.from_numpy(self._lines)
        self._words = words if device.type == "cpu" else words.to(device)
        # What only the device knows, a line per lane: `out` and `left`, to be moved and to be read in one piece.
        self.state = torch.zeros(count, (codebooks + 2) // 2 + 1, dtype=torch.int32, device=device)
        self.all = self._views(codebooks)
        self._front: dict[int, LaneView] = {}  # the first n lanes, for every n that was asked for
        self._stale = 0  # lines at the front that the device has not seen yet
        self._slots: np.ndarray | None = None

    def join(self, sequence: Sequence, codebook_vocab: int) -> None:
        """The next lane is `sequence`'s; nothing of its previous owner stays."""
        lane, sampling, pages = self.running, sequence.sampling, sequence.pages
        temperature = 0.0 if sampling.greedy else sampling.temperature
        top_k = min(sampling.top_k or codebook_vocab, codebook_vocab)
        self._fields[lane] = (
            sampling.seed, 0, sequence.prompt_rows, 1, sequence.slot, top_k, temperature, sampling.top_p or 1.0
        )  # fmt: skip
        self._tables[lane, : len(pages)] = pages
        self._tables[lane, len(pages) :] = DUMMY_PAGE
        self.running += 1
        self._changed(self.running)

    def leave(self, last: int, gap: int) -> None:
        """The last lane moves into `gap`, which somebody left (or is the gap itself)."""
        assert last == self.running - 1, (last, self.running)
        if gap != last:
            self._lines[gap] = self._lines[last]
            self.state[gap] = self.state[last]
        self._lines[last] = self._idle_line
        self.running = last
        self._changed(last + 1)

    def clear(self) -> None:
        """Nobody runs."""
        self.host[:], self.running = self.idle, 0
        self._changed(len(self.host))

    def upload(self) -> None:
        """Brings the device up to date, in the order of the stream."""
        if self._stale and self.device.type != "cpu":
            lines = torch.from_numpy(self._lines[: self._stale]).pin_memory()
            self._words[: self._stale].copy_(lines, non_blocking=True)
        self._stale = 0

    def advance(self) -> None:
        """The device has counted a row of every running lane; so does the host. On the CPU they are the same memory."""
        if self.device.type != "cpu":
            self.host["row"][: self.running] += 1

    @property
    def slots(self) -> np.ndarray:
        """[n] int64, of the running lanes; the same array until somebody joins or leaves."""
        if self._slots is None:
            self._slots = self.host["slot"][: self.running].astype(np.int64)
        return self._slots

    def view(self, first: int, last: int) -> LaneView:
        """The lanes `first`..`last` - 1."""
        if first:
            return self._slice(first, last)
        if last not in self._front:
            self._front[last] = self._slice(0, last)
        return self._front[last]

    def _slice(self, first: int, last: int) -> LaneView:
        part = LaneView(*(tensor[first:last] for tensor in self.all))
        return part._replace(owner=self.all.owner[: last - first])

    def _views(self, codebooks: int) -> LaneView:
        assert self.host.dtype.fields is not None
        words, count = self._words, len(self._words)
        column = {name: entry[1] // 4 for name, entry in self.host.dtype.fields.items()}
        floats, longs = words.view(torch.float32), words.view(torch.int64)

        return LaneView(
            seed=longs[:, column["seed"] // 2],
            **{name: words[:, column[name]] for name in ("row", "prompt", "active", "slot", "top_k")},
            **{name: floats[:, column[name]] for name in ("temperature", "top_p")},
            table=words[:, column["table"] :],
            out=self.state.view(torch.int16)[:, : codebooks + 1],
            left=self.state[:, -1],
            positions=torch.zeros(count, dtype=torch.int32, device=self.device),
            owner=torch.arange(count, dtype=torch.int32, device=self.device),
        )

    def _changed(self, lines: int) -> None:
        self._stale = max(self._stale, lines)
        self._slots = None
