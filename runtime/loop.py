"""The decode loop: everybody's next row, and what follows from it. One thread at a time; knows no threads itself.

A step launches a row, and while the device computes it does the host's work of the row before: it reads that row's
codes, ends who has ended, gives the codec what is due and hands out the sound that has come back. Nothing in a step
costs more for a request to which nothing happens.
"""

from __future__ import annotations

import copy
import math
import time
from collections import deque
from typing import Protocol

import numpy as np
import torch

from .delay import CODEBOOKS
from .errors import CapacityError
from .progress import REASONS, SILENCE, Progress
from .request import Request
from .scheduler import Chunk, Scheduler, Sequence
from .speech import FRAME_RATE
from .utterance import Utterance


class RowSource(Protocol):
    """What the loop asks of a Runner."""

    lookahead: int

    @property
    def slots(self) -> np.ndarray: ...
    @property
    def last_event(self) -> torch.cuda.Event | None: ...
    def prefill(self, chunks: list[Chunk]) -> None: ...
    def decode(self) -> None: ...
    def collect(self) -> tuple[np.ndarray, np.ndarray]: ...
    def leave(self, last: int, gap: int) -> None: ...
    def forget(self) -> None: ...


class Sounds(Protocol):
    """What the loop asks of a CodecStream."""

    lookahead: int

    def begin(self, slot: int) -> None: ...
    def push(self, slots: list[int], counts: list[int], ends: list[int | None]) -> None: ...
    def preview(self, slot: int, frames: int) -> None: ...
    def collect(self, wait: bool = True) -> list[tuple[int, bool, np.ndarray]]: ...
    def wait_for(self, event: torch.cuda.Event) -> None: ...


class Loop:
    def __init__(self, scheduler: Scheduler, runner: RowSource, sounds: Sounds):
        config = scheduler.config
        self.scheduler, self.runner, self.sounds = scheduler, runner, sounds
        # A device that looks ahead makes four rows, and soon twice as many each time, while 46 ms are played.
        second, growth = (4, 2.0) if runner.lookahead else (1, 1.5)
        self.progress = Progress(config.num_slots, config.max_context, sounds.lookahead, second, growth)
        self.requests: dict[Request, None] = {}  # in the order of their arrival
        self.rows = 0  # generated since the beginning
        self._owner: dict[Sequence, tuple[Utterance, Request]] = {}
        self._speaking: list[Utterance | None] = [None] * config.num_slots
        self._touched: dict[Request, None] = {}  # to whom something has happened
        self._launches: deque[tuple[np.ndarray, np.ndarray, int]] = deque()  # slots, terms, endings before, of each row
        self._flushes: list[tuple[int, int, int | None]] = []  # slot, frames to push, frames in all
        self._fast: list[Utterance] = []  # whose first chunk is wanted before it is exact
        self._row_seconds, self._clock = 0.04, 0.0

    def add(self, request: Request) -> None:
        self.requests[request] = self._touched[request] = None

    def begin(self, request: Request, utterance: Utterance) -> None:
        """Queues a piece of a request. Raises CapacityError."""
        self.scheduler.add(utterance.sequence)
        self._owner[utterance.sequence] = utterance, request

    def touch(self, request: Request) -> None:
        """Something has happened to it outside the loop."""
        if request in self.requests:
            self._touched[request] = None

    def end(self, request: Request, error: Exception | None) -> None:
        """Takes a request out, wherever its pieces are, and tells the caller why. Others do not notice."""
        if request not in self.requests:
            return
        del self.requests[request]
        self._touched.pop(request, None)
        for utterance in request.utterances:
            self._drop(utterance)
        if error is not None:
            request.out.put(error)

    def abandon(self, error: Exception) -> None:
        """Ends everything: after an error nothing that is under way can be trusted. Asks nothing of the device, which
        may be gone."""
        self.runner.forget()
        self._launches.clear()
        self._flushes.clear()
        for sequence in list(self._owner):
            self.scheduler.finish(sequence)
        for request in list(self.requests):
            self.end(request, _another(error))

    @property
    def working(self) -> bool:
        """Whether a step would find anything to do."""
        return bool(self._touched or self._owner or self._launches)

    def step(self) -> None:
        """One row for everybody."""
        self._advance()
        if chunks := self.scheduler.schedule():
            self._prefill(chunks)
            self._collect(self.runner.lookahead)
        if self.scheduler.running:
            self.runner.decode()
            self._launched(self.runner.slots)
            now = time.perf_counter()
            self._row_seconds += 0.1 * (min(now - self._clock, 0.04) - self._row_seconds)
            self._clock = now
        self._collect(self.runner.lookahead if self.scheduler.running else 0)
        self._push()
        self._hear()
        self._advance()

    def _prefill(self, chunks: list[Chunk]) -> None:
        try:
            self.runner.prefill(chunks)
        except (torch.OutOfMemoryError, MemoryError):
            pass  # and let go of the error, whose traceback holds what did not fit
        else:
            self._prefilled(chunks)
            return
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence not in self._owner:
                continue  # it ended with another piece of its request
            if len(chunks) > 1:  # perhaps they fit one by one
                self._prefill([chunk])
                self._collect(self.runner.lookahead)
                continue
            fault = CapacityError(
                f"There was no memory left for a prompt of {sequence.prompt_rows} rows. Shorten the reference or the "
                "text, or load the engine with fewer kv_rows, a smaller max_batch or smaller prefill_rows."
            )
            self.end(self._owner[sequence][1], fault)

    def _prefilled(self, chunks: list[Chunk]) -> None:
        self.scheduler.prefilled(chunks)
        newcomers = [chunk.sequence for chunk in chunks if chunk.completes]
        for sequence in newcomers:
            utterance, _ = self._owner[sequence]
            self._speaking[sequence.slot] = utterance
            self.progress.begin(sequence.slot, sequence.max_rows, utterance.allowance)
            self.sounds.begin(sequence.slot)
            if utterance.fast:
                self._fast.append(utterance)
        if newcomers:
            self._launched(np.array([sequence.slot for sequence in newcomers]))

    def _launched(self, slots: np.ndarray) -> None:
        """A row of these is under way. Who has got the last one leaves at once; it is read later."""
        self.rows += len(slots)
        self._launches.append((slots, self.progress.term[slots], self.progress.endings))
        for slot in self.progress.launch(slots).tolist():
            self._leave(self._at(slot).sequence)

    def _collect(self, under_way: int) -> None:
        """Reads rows until only so many are under way."""
        while len(self._launches) > under_way:
            rows, done = self.runner.collect()
            slots, terms, endings = self._launches.popleft()
            if endings != self.progress.endings:  # who was cancelled or ended while this row was under way has none
                mine = self.progress.term[slots] == terms
                slots, rows, done = slots[mine], rows[mine], done[mine]
            for slot, reason in self.progress.read(slots, rows, done):
                self._finish(slot, reason)

    def _finish(self, slot: int, reason: int) -> None:
        """All rows of this utterance are there; its sound follows."""
        utterance = self._at(slot)
        self._leave(utterance.sequence)
        frames_left, frames = self.progress.end(slot)
        utterance.delayed = self.progress.delayed(slot)
        utterance.finish_reason = REASONS[reason]
        self._flushes.append((slot, frames_left, frames))

    def _push(self) -> None:
        """Gives the codec the frames that are due."""
        pushes: list[tuple[int, int, int | None]]
        pushes = [(slot, self.progress.take(slot), None) for slot in self.progress.due(self.runner.slots)]
        pushes += self._flushes
        previews = self._preview() if self._fast else False
        if pushes or previews:
            self._flushes.clear()
            if event := self.runner.last_event:
                self.sounds.wait_for(event)
            slots, counts, ends = zip(*pushes, strict=True) if pushes else ((), (), ())
            self.sounds.push(list(slots), list(counts), list(ends))

    def _preview(self) -> bool:
        """First frames, decoded as if nothing followed: one by one, as many as are played until the exact sound
        comes. That reaches frame f with row f + lookahead + 8, a preview with row f + 8."""
        row = min(self._row_seconds, 0.9 / FRAME_RATE)
        wanted = min(self.sounds.lookahead, math.ceil(self.sounds.lookahead * row / (1 / FRAME_RATE - row)))
        found = False
        for utterance in list(self._fast):
            slot = utterance.sequence.slot
            frames = self.progress.launched(slot) - CODEBOOKS + 1
            if utterance.finish_reason or frames > wanted:
                self._fast.remove(utterance)
            elif frames > 0:
                self.sounds.preview(slot, frames)
                found = True
        return found

    def _hear(self) -> None:
        """Hands out the sound that has come back from the codec; waits for it if there is nothing else to do."""
        for slot, preview, pcm in self.sounds.collect(wait=not self.scheduler.busy):
            utterance = self._speaking[slot]
            if utterance is None:  # cancelled
                continue
            self._touched[self._owner[utterance.sequence][1]] = None
            if preview:
                utterance.add_preview(pcm)
                continue
            utterance.add_sound(pcm)
            if utterance.flushed:
                self._drop(utterance)
            elif self.progress.guards.add_pcm(slot, pcm) and utterance.finish_reason is None:
                complete = self.progress.cut(slot, SILENCE)
                self._leave(utterance.sequence)
                if complete:
                    self._finish(slot, SILENCE)

    def _advance(self) -> None:
        """Those to whom something has happened start pieces and give out sound."""
        while self._touched:
            request, _ = self._touched.popitem()
            try:
                request.advance()
            except Exception as error:  # whatever is wrong with this request, the others go on
                self.end(request, error)
            else:
                if request.finished:
                    self.end(request, None)

    def _leave(self, sequence: Sequence) -> None:
        """No further row for it: lane and pages are free."""
        moved = self.scheduler.finish(sequence)
        if moved is not None:
            self.runner.leave(*moved)

    def _drop(self, utterance: Utterance) -> None:
        """Nothing of it is needed any more."""
        sequence = utterance.sequence
        if self._owner.pop(sequence, None) is None:
            return
        if utterance in self._fast:
            self._fast.remove(utterance)
        self._leave(sequence)
        slot = sequence.slot
        if slot >= 0:
            if self._speaking[slot] is utterance:
                self._speaking[slot] = None
                self.progress.end(slot)
                self._flushes = [flush for flush in self._flushes if flush[0] != slot]
            self.scheduler.free_slot(sequence)

    def _at(self, slot: int) -> Utterance:
        utterance = self._speaking[slot]
        assert utterance is not None, slot
        return utterance


def _another(error: Exception) -> Exception:
    """The same error for one more thread to raise; the same object, where it cannot be copied."""
    try:
        return copy.copy(error)
    except Exception:
        return error
