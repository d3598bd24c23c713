"""One call of the engine: its pieces of text, the order of their sound, and the caller's end of it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import CancelledError, OctavoError
from .seams import fade, level
from .speech import SAMPLE_RATE, SAMPLES_PER_FRAME, Chunk, Segment, Speech, Usage
from .utterance import Utterance

_WORST_FIRST = ("loop", "silence", "length", "stop")


@dataclass(frozen=True)
class Plan:
    """What the caller asked for: the pieces' texts, the seed of the first, and what to tell the user."""

    texts: tuple[str, ...]
    seed: int
    warnings: tuple[str, ...]


class Request:
    """The engine's side, used by its worker thread alone: puts finished sound in order into `out`.

    The first piece is heard as it is made. A later one waits until it is whole, because its level is matched to the
    first one's; it is made while the earlier ones are heard.
    """

    def __init__(self, plan: Plan, start: Callable[[int, Utterance | None], Utterance], ahead: int, carry: bool):
        """start(i, the first piece if i > 0) brings piece i on its way; `ahead`: how many at once; `carry`: the others
        take the first piece's voice, so they wait for it."""
        self.plan, self.out = plan, queue.SimpleQueue[Chunk | Speech | Exception]()
        self.utterances: list[Utterance] = []
        self._start, self._ahead, self._carry = start, ahead, carry
        self._heard = 0  # pieces given out completely
        self._taken = 0  # sounds of the current piece given out
        self._pcm: list[np.ndarray] = []
        self._samples = 0
        self._loudness: float | None = None  # RMS of the first piece's speech
        self._began, self._first_audio = time.perf_counter(), 0.0

    @property
    def finished(self) -> bool:
        return self._heard == len(self.plan.texts)

    def advance(self) -> None:
        """Starts pieces, gives out what can be heard; called after every step."""
        running = sum(not utterance.flushed for utterance in self.utterances)
        while len(self.utterances) < len(self.plan.texts) and running < self._ahead and not self._must_wait():
            first = self.utterances[0] if self.utterances else None
            self.utterances.append(self._start(len(self.utterances), first))
            running += 1
        while not self.finished and self._heard < len(self.utterances) and self._give(self.utterances[self._heard]):
            self._heard, self._taken = self._heard + 1, 0
        if self.finished:
            self.out.put(self._speech())

    def _must_wait(self) -> bool:
        return self._carry and bool(self.utterances) and not self.utterances[0].flushed

    def _give(self, utterance: Utterance) -> bool:
        """Gives out the current piece's new sound; true when that was the last of it."""
        last = self._heard == len(self.plan.texts) - 1
        if self._heard == 0:
            for number in range(self._taken, len(utterance.sound)):
                ending = utterance.flushed and number == len(utterance.sound) - 1 and not last
                self._put(fade(utterance.sound[number], start=False, end=True) if ending else utterance.sound[number])
            self._taken = len(utterance.sound)
            if utterance.flushed and not last:
                _, self._loudness = level(np.concatenate(utterance.sound), None)
        elif utterance.flushed:
            pcm, self._loudness = level(np.concatenate(utterance.sound), self._loudness)
            self._put(fade(pcm, start=True, end=not last))
        return utterance.flushed

    def _put(self, pcm: np.ndarray) -> None:
        if len(pcm):
            self._first_audio = self._first_audio or time.perf_counter() - self._began
            self.out.put(Chunk(pcm, self._samples, self._heard, len(self.plan.texts)))
            self._pcm.append(pcm)
            self._samples += len(pcm)

    def _speech(self) -> Speech:
        segments, frame = [], 0
        for text, utterance in zip(self.plan.texts, self.utterances, strict=True):
            assert utterance.finish_reason is not None, text
            segments.append(Segment(text, frame, frame + utterance.num_frames, utterance.finish_reason))
            frame += utterance.num_frames
        assert self._samples == frame * SAMPLES_PER_FRAME, (self._samples, frame)
        sequences = [utterance.sequence for utterance in self.utterances]
        usage = Usage(
            prompt_tokens=sum(sequence.prompt_rows for sequence in sequences),
            reused_tokens=sum(sequence.reused_rows for sequence in sequences),
            rows=sum(sequence.rows_done for sequence in sequences),
            audio_seconds=self._samples / SAMPLE_RATE,
            seconds=time.perf_counter() - self._began,
            first_audio_seconds=self._first_audio,
        )
        return Speech(
            pcm=np.concatenate([np.zeros(0, np.float32), *self._pcm]),
            sample_rate=SAMPLE_RATE,
            codes=np.concatenate([utterance.codes for utterance in self.utterances]),
            segments=tuple(segments),
            finish_reason=min((segment.finish_reason for segment in segments), key=_WORST_FIRST.index),
            seed=self.plan.seed,
            usage=usage,
            warnings=self.plan.warnings,
        )


class SpeechStream(Iterator[Chunk]):
    """The caller's side: an iterator of chunks as they become final, and the whole speech in `result()`.

    `cancel()` may be called from any thread; dropping or closing the stream cancels as well.
    """

    def __init__(self, request: Request, cancel: Callable[[Request], None]):
        self._request, self._cancel = request, cancel
        self._end: Speech | Exception | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about the text or the voice, known before the first chunk."""
        return self._request.plan.warnings

    @property
    def seed(self) -> int:
        return self._request.plan.seed

    def __next__(self) -> Chunk:
        if self._end is None:
            item = self._request.out.get()
            if isinstance(item, Chunk):
                return item
            self._end = item
            self._request.out.put(item)  # for whoever else waits at this stream
        if isinstance(self._end, Exception):
            raise self._end
        raise StopIteration

    def result(self) -> Speech:
        """Waits for the end and returns the whole speech. Raises what broke it, CancelledError after `cancel`."""
        for _ in self:
            pass
        assert isinstance(self._end, Speech)
        return self._end

    def cancel(self) -> None:
        """Stops the request before its next row; its slot and pages are free for others then."""
        self._cancel(self._request)

    def close(self) -> None:
        if self._end is None:
            self.cancel()

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def cancelled() -> OctavoError:
    return CancelledError("The request was cancelled before it finished.")
