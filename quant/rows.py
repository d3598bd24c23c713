"""Rows to calibrate and to judge with: the model speaks, and what it said is read back to it, row by row.

Nearly all rows that a speaking model sees are sums of codes that it drew itself, and their statistics are not those of
text (quant.md 4.6). So calibration wants its own speech, and the quality gate speech that both models can be asked for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octavo.runtime import Engine, Speech, Voice, prompt, text
from octavo.runtime.delay import CODEBOOKS, delay
from octavo.runtime.guard import SILENCE
from octavo.runtime.speech import FRAME_RATE, SAMPLES_PER_FRAME
from octavo.runtime.tags import without_tags

from .walk import Utterance

MAX_ROWS = 250  # of an utterance: 10 s, while the guard limits each by the length of its text
BATCH = 16  # utterances at once
MOST_CLONED = 10 * FRAME_RATE  # frames of an utterance that another takes as its voice, so that prompts stay short


@dataclass(frozen=True, eq=False)
class Ask:
    """What an engine is asked to say."""

    text: str
    voice: Voice | None
    seed: int
    max_rows: int


@dataclass(frozen=True, eq=False)
class Drawn(Utterance):
    """An utterance that an engine made when asked for `ask`. codes: [T, 8] int16, undelayed; finish_reason: as Speech
    says; silence: seconds without sound at its end."""

    ask: Ask
    codes: np.ndarray
    finish_reason: str
    silence: float

    @property
    def stopped(self) -> bool:
        """The model ended it, and so its last 7 rows ramp out; else the row limit or the guard did."""
        return self.finish_reason == "stop"


def speaker(path: str | os.PathLike, device: str = "auto") -> Engine:
    """The engine that draws and repeats: the same arithmetic for every checkpoint, and the same rows every time, since
    without a thread of its own it begins when all has been asked. Raises as `Engine.load` does."""
    return Engine.load(path, device, "bf16", worker=False, max_batch=BATCH)


def draw(
    engine: Engine,
    texts: Sequence[str],
    *,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    voice: Voice | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Drawn]:
    """Speaks the texts, number i from seed + i, in batches; returns them in order.

    Every other one takes the voice of the one before it, so that half of the prompts hold a reference; the rest have
    `voice`, or none. engine: `speaker`. Raises as `Engine.stream` does.
    """

    def ask(n: int, before: Drawn | None) -> Ask:
        cloned = before and _voice_of(before, engine.codec.fingerprint)
        return Ask(texts[n], cloned or voice, seed + n, max_rows)

    return _alternate(engine, len(texts), ask, progress)


def repeat(
    engine: Engine,
    utterances: Sequence[Drawn],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Drawn]:
    """Asks this engine for what another was asked for: texts, voices, seeds, limits and batches are the same."""
    codec = engine.codec.fingerprint  # a codec stored in another number format is another one to a voice

    def ask(n: int, before: Drawn | None) -> Ask:
        asked = utterances[n].ask
        return dataclasses.replace(asked, voice=asked.voice and dataclasses.replace(asked.voice, codec=codec))

    return _alternate(engine, len(utterances), ask, progress)


def _alternate(
    engine: Engine,
    count: int,
    ask: Callable[[int, Drawn | None], Ask],
    progress: Callable[[int, int], None],
) -> list[Drawn]:
    """What is asked for by `ask(n, utterance n - 1)`, even numbers first: of them it knows none before."""
    drawn: dict[int, Drawn] = {}
    for numbers in (range(0, count, 2), range(1, count, 2)):
        asks = [ask(n, drawn.get(n - 1)) for n in numbers]
        spoken = _speak(engine, asks, lambda done: progress(len(drawn) + done, count))
        drawn.update(zip(numbers, spoken, strict=True))
    return [drawn[n] for n in range(count)]


def _speak(engine: Engine, asks: Sequence[Ask], progress: Callable[[int], None]) -> list[Drawn]:
    streams, drawn = [], []
    try:
        for ask in asks:
            stream = engine.stream(ask.text, ask.voice, seed=ask.seed, max_rows=ask.max_rows, split="none")
            streams.append(stream)
        for ask, stream in zip(asks, streams, strict=True):
            drawn.append(_drawn(engine, ask, stream.result()))
            progress(len(drawn))
    finally:
        for stream in streams:
            stream.close()
    return drawn


def _drawn(engine: Engine, ask: Ask, speech: Speech) -> Drawn:
    codes, transcript = (ask.voice.codes, ask.voice.transcript) if ask.voice else (None, None)
    cleaned = text.clean(ask.text).text
    laid_out = prompt.build(engine.tokenizer, cleaned, codes, transcript)
    # Rows as the delay pattern wants them. Of speech that was cut only the rows before the ramp-out are known.
    rows = delay(speech.codes)
    rows = rows if speech.finish_reason == "stop" else rows[: len(speech.codes)]
    reference = np.zeros((0, CODEBOOKS), np.int64) if laid_out.reference_rows is None else laid_out.reference_rows
    return Drawn(
        ids=torch.tensor(laid_out.ids),
        reference=torch.from_numpy(reference),
        rows=torch.from_numpy(rows),
        text=cleaned,
        ask=ask,
        codes=speech.codes,
        finish_reason=speech.finish_reason,
        silence=_silence_at_end(speech.pcm),
    )


def _voice_of(drawn: Drawn, codec: str) -> Voice | None:
    """The voice of an utterance for another; a runaway is no example to follow."""
    if drawn.finish_reason in ("loop", "silence") or not len(drawn.codes):
        return None
    whole = len(drawn.codes) <= MOST_CLONED
    transcript = without_tags(drawn.text) if whole else None  # which would tell more than is heard
    return Voice(codes=drawn.codes[:MOST_CLONED], transcript=transcript, codec=codec)


def _silence_at_end(pcm: np.ndarray) -> float:
    """Seconds. pcm: float32 [960 * T]."""
    frames = pcm.reshape(-1, SAMPLES_PER_FRAME)
    loud = np.flatnonzero(np.einsum("ij,ij->i", frames, frames) >= SILENCE**2 * SAMPLES_PER_FRAME)
    return (len(frames) - (int(loud[-1]) + 1 if len(loud) else 0)) / FRAME_RATE
