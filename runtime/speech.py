"""What the engine gives back: chunks while it speaks, the whole speech at the end."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from .audio import write_audio
from .codec.config import FRAME_RATE, SAMPLE_RATE

SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE


@dataclass(frozen=True, eq=False)
class Chunk:
    """Newly final sound. `pcm`: float32 [n] at 24 kHz; `start`: its first sample's place in the whole speech;
    `segment` of `segments`: which piece of the text it speaks."""

    pcm: np.ndarray
    start: int
    segment: int
    segments: int


@dataclass(frozen=True)
class Segment:
    """A piece of the text and when it is spoken: frames of 40 ms, `end_frame` excluded."""

    text: str
    start_frame: int
    end_frame: int
    finish_reason: str

    @property
    def start(self) -> float:
        """Seconds."""
        return self.start_frame / FRAME_RATE

    @property
    def end(self) -> float:
        """Seconds."""
        return self.end_frame / FRAME_RATE


@dataclass(frozen=True)
class Usage:
    """What a speech cost. Seconds are wall time from the call on; `first_audio_seconds` until the first chunk."""

    prompt_tokens: int
    reused_tokens: int  # of the prompt, whose keys and values were there already
    rows: int
    audio_seconds: float
    seconds: float
    first_audio_seconds: float

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of sound; below 1 is faster than real time."""
        return self.seconds / self.audio_seconds if self.audio_seconds else float("inf")


@dataclass(frozen=True)
class Stats:
    """How busy an engine is. `rows`: generated since it was loaded, `seconds` ago; `kept_pages`: of voices, for reuse;
    `failure`: why it has stopped, if it has."""

    requests: int
    running: int
    prefilling: int
    waiting: int
    max_batch: int
    free_pages: int
    kept_pages: int
    num_pages: int
    rows: int
    seconds: float
    failure: str | None


@dataclass(frozen=True, eq=False)
class Speech:
    """A finished speech. `pcm`: float32 [960 * T] at `sample_rate`; `codes`: int16 [T, 8], undelayed.

    finish_reason, the worst of the segments': `stop` (the model ended it), `length` (the row limit cut it), `loop` or
    `silence` (the guard cut a runaway).
    """

    pcm: np.ndarray
    sample_rate: int
    codes: np.ndarray
    segments: tuple[Segment, ...]
    finish_reason: str
    seed: int
    usage: Usage
    warnings: tuple[str, ...] = ()

    def save(self, path: str | os.PathLike) -> None:
        """Writes .wav, .flac, .mp3, .ogg or .opus, by the suffix. Raises AudioError."""
        write_audio(path, self.pcm, self.sample_rate)
