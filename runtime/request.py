"""One call of the engine: its pieces of text and the order of their sound."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable
from typing import Protocol

import numpy as np

from .seams import fade, level
from .speech import SAMPLE_RATE, SAMPLES_PER_FRAME, Chunk, Segment, Speech, Usage
from .utterance import Utterance

_WORST_FIRST = ("loop", "silence", "length", "stop")
Item = Chunk | Exception | Speech | Callable[[], Speech] | None


class Sink(Protocol):
    """Where a request's sound goes: an Outbox, or the gate before one."""

    def put(self, item: Item, /) -> None: ...


class Request:
    """The engine's side, used by the loop's thread alone: puts finished sound in order into `out`, and at the end
    what makes the Speech, for the caller to call: it copies all the sound once more, for which the loop has no time.

    The first piece is heard as it is made. A later one waits until it is whole, because its level is matched to the
    first one's; it is made while the earlier ones are heard.
    """

    def __init__(
        self,
        texts: list[str],
        start: Callable[[Request, int], Utterance],
        out: Sink,
        *,
        seed: int,
        warnings: tuple[str, ...] = (),
        ahead: int,
        carry: bool,
        closed: bool = True,
        whole: bool = True,
    ):
        """start(self, i) brings piece i on its way; ahead: how many at once; carry: the others take the first piece's
        voice, so they wait for it; closed: no text will be added; whole: the caller may ask for the Speech, else
        sound that was given out is forgotten, and None is the end."""
        self.id = uuid.uuid4().hex
        self.texts, self.seed, self.warnings, self.closed = texts, seed, warnings, closed
        self.out = out
        self.utterances: list[Utterance] = []
        self._start, self._ahead, self._carry, self._whole = start, ahead, carry, whole
        self._heard = 0  # pieces given out completely
        self._taken = 0  # sounds of the current piece given out
        self._pcm: list[np.ndarray] = []
        self._samples = 0
        self._loudness: float | None = None  # RMS of the first piece's speech
        self._began, self._first_audio = time.perf_counter(), 0.0

    @property
    def finished(self) -> bool:
        return self.closed and self._heard == len(self.texts)

    def advance(self) -> None:
        """Starts pieces, gives out what can be heard; called whenever something has happened to them."""
        if len(self.utterances) < len(self.texts):
            running = sum(not utterance.flushed for utterance in self.utterances[self._heard :])
            while len(self.utterances) < len(self.texts) and running < self._ahead and not self._must_wait():
                self.utterances.append(self._start(self, len(self.utterances)))
                running += 1
        while self._heard < len(self.utterances) and self._give(self.utterances[self._heard]):
            if not self._whole:
                self.utterances[self._heard].sound.clear()
            self._heard, self._taken = self._heard + 1, 0
        if self.finished:
            self.out.put(self._ending() if self._whole else None)

    def _must_wait(self) -> bool:
        return self._carry and bool(self.utterances) and not self.utterances[0].flushed

    def _give(self, utterance: Utterance) -> bool:
        """Gives out the current piece's new sound; true when that was the last of it."""
        flushed, last = utterance.flushed, self.closed and self._heard == len(self.texts) - 1
        if self._heard == 0:
            new, self._taken = utterance.sound[self._taken :], len(utterance.sound)
            if flushed and not last and new:
                new[-1] = fade(new[-1], start=False, end=True)
                _, self._loudness = level(np.concatenate(utterance.sound), None)
            for pcm in new:
                self._put(pcm)
        elif flushed:
            pcm, self._loudness = level(np.concatenate(utterance.sound), self._loudness)
            self._put(fade(pcm, start=True, end=not last))
        return flushed

    def _put(self, pcm: np.ndarray) -> None:
        if len(pcm):
            self._first_audio = self._first_audio or time.perf_counter() - self._began
            self.out.put(Chunk(pcm, self._samples, self._heard, len(self.texts)))
            self._samples += len(pcm)
            if self._whole:
                self._pcm.append(pcm)

    def _ending(self) -> Callable[[], Speech]:
        """Makes the whole speech. It holds no request, because that holds the outbox in which this will lie."""
        seconds = time.perf_counter() - self._began
        return functools.partial(
            _speech, self.texts, self.utterances, self._pcm, self.seed, self.warnings, seconds, self._first_audio
        )


def _speech(
    texts: list[str],
    utterances: list[Utterance],
    pcm: list[np.ndarray],
    seed: int,
    warnings: tuple[str, ...],
    seconds: float,
    first_audio: float,
) -> Speech:
    segments, frame = [], 0
    for text, utterance in zip(texts, utterances, strict=True):
        assert utterance.finish_reason is not None, text
        segments.append(Segment(text, frame, frame + utterance.num_frames, utterance.finish_reason))
        frame += utterance.num_frames
    whole = np.concatenate([np.zeros(0, np.float32), *pcm])
    assert len(whole) == frame * SAMPLES_PER_FRAME, (len(whole), frame)
    usage = Usage(
        prompt_tokens=sum(utterance.sequence.prompt_rows for utterance in utterances),
        reused_tokens=sum(utterance.sequence.reused_rows for utterance in utterances),
        rows=sum(utterance.rows for utterance in utterances),
        audio_seconds=len(whole) / SAMPLE_RATE,
        seconds=seconds,
        first_audio_seconds=first_audio,
    )
    return Speech(
        pcm=whole,
        sample_rate=SAMPLE_RATE,
        codes=np.concatenate([utterance.codes for utterance in utterances]),
        segments=tuple(segments),
        finish_reason=min((segment.finish_reason for segment in segments), key=_WORST_FIRST.index),
        seed=seed,
        usage=usage,
        warnings=warnings,
    )
