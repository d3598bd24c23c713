"""Where the pieces of a long text meet: one loudness, no click. Lengths never change: samples stay 960 times frames."""

from __future__ import annotations

import math

import numpy as np

from .codec.config import SAMPLE_RATE as RATE

_LOUDNESS_FRAME = 0.020  # seconds
_GATE = 10 ** (-30 / 20)  # below the loudest frame: breath, room, pauses
_SILENCE = 10 ** (-70 / 20)  # a piece whose loudest frame is below this (dB of full scale) has no speech
_MOST_GAIN = 10 ** (4 / 20)  # further apart is meant (a whisper), not a drift
_FADE = 0.010  # seconds


def speech_rms(pcm: np.ndarray, rate: int = RATE) -> float | None:
    """RMS of the frames of 20 ms in which there is speech: those within 30 dB of the loudest; None for silence.

    pcm: float32 [L]. A rest shorter than a frame at the end is left out, unless it is all there is.
    """
    size = min(round(_LOUDNESS_FRAME * rate), len(pcm))
    if size == 0:
        return None
    frames = pcm[: len(pcm) // size * size].astype(np.float64).reshape(-1, size)
    power = np.square(frames).mean(axis=1)
    if power.max() < _SILENCE**2:
        return None
    return math.sqrt(power[power >= power.max() * _GATE**2].mean())


def level(pcm: np.ndarray, reference_rms: float | None) -> tuple[np.ndarray, float | None]:
    """Brings a piece to the loudness of the first: -> (pcm float32 [L], the RMS to hand to the next piece).

    The first piece is called with None, stays as it is and gives the reference. The gain is limited to 4 dB either way,
    and raises no sample above full scale. A silent piece stays as it is and gives no reference.
    """
    rms = speech_rms(pcm)
    if rms is None or reference_rms is None:
        return pcm, rms if reference_rms is None else reference_rms
    gain = min(max(reference_rms / rms, 1 / _MOST_GAIN), _MOST_GAIN)
    if gain > 1:
        gain = max(1.0, min(gain, 1 / float(np.abs(pcm).max())))
    return pcm * np.float32(gain), reference_rms


def fade(pcm: np.ndarray, start: bool, end: bool, rate: int = RATE) -> np.ndarray:
    """Fades in over the first and out over the last 10 ms, as asked, by a raised cosine; a copy, float32 [L].

    Faded on both sides of a seam, the sound passes through zero there. A piece shorter than its fades uses half its
    length for each.
    """
    faded = np.array(pcm, dtype=np.float32)
    length = min(round(_FADE * rate), len(faded) // 2 if start and end else len(faded))
    ramp = np.float32(0.5) - np.float32(0.5) * np.cos(np.pi * (np.arange(length) + 0.5) / max(length, 1))
    ramp = ramp.astype(np.float32)
    if start:
        faded[:length] *= ramp
    if end:
        faded[len(faded) - length :] *= ramp[::-1]
    return faded
