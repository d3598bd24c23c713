"""Who prefills, who decodes, who leaves. Plain Python: no torch, no clock, no threads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .config import EngineConfig, SamplingParams
from .delay import CODEBOOKS
from .errors import CapacityError
from .kv_cache import PagePool
from .prompt import PLACEHOLDER, Prompt

STREAMS_PER_ROW = 16  # running ones, for each row that a newcomer may be kept waiting for company
_NO_PAGES = np.zeros(0, np.int32)
_NO_ROWS = np.zeros((0, CODEBOOKS), np.int64)


@dataclass(eq=False)
class Sequence:
    """One utterance on its way through the model. The caller gives the first fields, the scheduler fills the rest."""

    prompt: Prompt
    sampling: SamplingParams
    voice_key: bytes | None = None  # names the prompt's first `prompt.prefix_length` rows; None: nothing to share

    slot: int = field(default=-1, init=False)  # its seat while it is here: its codes and its sound lie there
    lane: int = field(default=-1, init=False)  # its place in the batch while it decodes: 0..running-1, without gaps
    pages: np.ndarray = field(default_factory=lambda: _NO_PAGES, init=False)
    reused_rows: int = field(default=0, init=False)  # rows at the front whose keys and values need not be computed
    copy: tuple[int, int] | None = field(default=None, init=False)  # page to copy for them before the prefill
    computed: int = field(default=0, init=False)  # prompt rows in the pages so far

    def __post_init__(self):
        self.token_ids = np.array(self.prompt.ids)  # [prompt_rows] int64
        self._reference_before = np.append(0, np.cumsum(self.token_ids == PLACEHOLDER))  # rows of codes before each row

    def reference_rows(self, first: int, last: int) -> np.ndarray:
        """The delayed rows of codes among the prompt's rows `first`..`last` - 1, [n, 8] int64."""
        rows = self.prompt.reference_rows
        return _NO_ROWS if rows is None else rows[self._reference_before[first] : self._reference_before[last]]

    @property
    def max_rows(self) -> int:
        return self.sampling.max_rows

    @property
    def prompt_rows(self) -> int:
        return len(self.prompt.ids)


class Chunk(NamedTuple):
    """Rows `first`..`last` - 1 of a prompt, to be run in one pass."""

    sequence: Sequence
    first: int
    last: int

    @property
    def completes(self) -> bool:
        return self.last == self.sequence.prompt_rows

    @property
    def page_copy(self) -> tuple[int, int] | None:
        """The page to copy (from, to) before: with the sequence's first chunk."""
        return self.sequence.copy if self.first == self.sequence.reused_rows else None


class Scheduler:
    """First come, first served: a request that does not fit yet waits, and nobody overtakes it.

    A step is `schedule` (the chunks of prompts to run; those that are complete get a lane and decode from then on),
    then a row of everybody in `running`, in the order of their lanes. Prompt rows per step are bounded, so that a long
    prompt delays nobody's next row by more than one bounded pass. And a pass costs those who speak about a row, however
    short its prompts are: when many speak, newcomers are kept for some rows and come together.
    """

    def __init__(self, config: EngineConfig):
        self.config = config
        self.pool = PagePool(config.num_pages, config.page_size)
        self.waiting: deque[Sequence] = deque()
        self.prefilling: list[Sequence] = []  # admitted, with parts of their prompts still to run
        self.running: list[Sequence] = []  # running[i].lane == i
        self._free_slots = list(range(config.num_slots - 1, -1, -1))
        self._held = 0  # steps that the first in the queue has been kept waiting for company

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.prefilling or self.running)

    def check(self, sequence: Sequence) -> None:
        """Raises CapacityError for what this engine could never hold, however empty it is."""
        rows, limit = sequence.prompt_rows + sequence.max_rows, self.config.max_context
        if rows > limit:
            raise CapacityError(
                f"The prompt has {sequence.prompt_rows} rows and up to {sequence.max_rows} rows of speech may follow, "
                f"but the engine holds {limit} per request (max_context). Let a long text be split, shorten it or the "
                "reference, or lower max_rows."
            )
        if self.pool.pages_for(rows) > self.pool.num_pages:
            raise CapacityError(
                f"The request needs {rows} rows of KV cache, and the engine has {self.config.kv_rows} in all. "
                "Lower max_rows, or load the engine with more kv_rows."
            )

    def add(self, sequence: Sequence) -> None:
        """Queues it. Raises what `check` raises."""
        self.check(sequence)
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """Admits who fits, oldest first, and returns the chunks of prompts to run now. Call `prefilled` after."""
        lanes = self.config.max_batch - len(self.running) - len(self.prefilling)
        enough = len(self.waiting) >= lanes or self._held >= len(self.running) // STREAMS_PER_ROW
        if self.waiting and (enough or self.prefilling):
            self._held = 0
            self._admit()
        elif self.waiting:
            self._held += 1
        chunks: list[Chunk] = []
        budget = self.config.prefill_rows
        for sequence in self.prefilling:
            last = min(sequence.prompt_rows, sequence.computed + budget)
            if self.config.deterministic and sequence.computed < sequence.prompt.prefix_length:
                # Where a chunk ends must not hang on whether the voice's part was there already.
                last = min(last, sequence.prompt.prefix_length)
            chunks.append(Chunk(sequence, sequence.computed, last))
            budget -= last - sequence.computed
            if budget == 0 or self.config.deterministic:  # one prompt at a time: the pass has the same shape again
                break
        return chunks

    def prefilled(self, chunks: list[Chunk]) -> None:
        """The chunks' keys and values are on their way: those complete have the next lanes, in order."""
        for chunk in chunks:
            sequence = chunk.sequence
            assert len(sequence.pages), "it has left"
            sequence.computed = chunk.last
            prefix = sequence.prompt.prefix_length
            if sequence.voice_key is not None and chunk.first < prefix <= chunk.last:
                self.pool.keep_prefix(sequence.voice_key, sequence.pages, prefix)
            if chunk.completes:
                self.prefilling.remove(sequence)
                sequence.lane = len(self.running)
                self.running.append(sequence)

    def finish(self, sequence: Sequence) -> tuple[int, int] | None:
        """Takes it out, wherever it is; its pages and lane are free for the next step. Its slot, if it has one, stays
        taken until `free_slot`. Doing it twice is harmless.

        If it had a lane, returns (last, gap): the last lane's owner is now in the gap, which may be the last itself.
        """
        if not len(sequence.pages):  # it was never admitted, or has left already
            if sequence.slot < 0 and sequence in self.waiting:
                self.waiting.remove(sequence)
            return None
        self.pool.release(sequence.pages)
        sequence.pages = _NO_PAGES
        if sequence.lane >= 0:
            last = self.running.pop()
            gap, sequence.lane = sequence.lane, -1
            if last is not sequence:
                self.running[gap], last.lane = last, gap
            return len(self.running), gap
        self.prefilling.remove(sequence)
        return None

    def free_slot(self, sequence: Sequence) -> None:
        """Nobody needs its codes and its sound any more."""
        if sequence.slot >= 0:
            self._free_slots.append(sequence.slot)
            sequence.slot = -1

    def _admit(self) -> None:
        pool = self.pool
        coming = {
            sequence.voice_key for sequence in self.prefilling if sequence.computed < sequence.prompt.prefix_length
        }
        while self.waiting and self._free_slots and len(self.running) + len(self.prefilling) < self.config.max_batch:
            sequence = self.waiting[0]
            key = sequence.voice_key
            if key is not None and key in coming:
                break  # its prefix is being computed: soon it will be there to share
            reserved = pool.reserve(sequence.prompt_rows + sequence.max_rows, key)
            if reserved is None:
                break
            sequence.pages, sequence.reused_rows, sequence.copy = reserved.pages, reserved.reused_rows, reserved.copy
            sequence.computed = reserved.reused_rows
            sequence.slot = self._free_slots.pop()
            self.waiting.popleft()
            self.prefilling.append(sequence)
            if key is not None and reserved.reused_rows == 0:
                coming.add(key)
