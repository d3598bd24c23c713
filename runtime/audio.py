"""Sound in: read any file, average its channels, resample, and check a recording to be cloned.

libsndfile (through `soundfile`) knows the formats, soxr resamples; both are imported when they are first needed. Inside
octavo sound is mono float32 in [-1, 1]. The way out is in `audio_writer`; its names are offered here too, so that
`octavo.runtime.audio` is all about sound.
"""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from .audio_writer import AudioWriter, libsndfile, pcm16, play, write_audio
from .codec.config import SAMPLE_RATE as RATE
from .errors import AudioError

__all__ = [
    "AudioWriter",
    "Reference",
    "Sound",
    "pcm16",
    "play",
    "read_audio",
    "read_reference",
    "resample",
    "write_audio",
]

MIN_SECONDS, MAX_SECONDS = 1, 30  # of a reference recording
SILENCE = 1e-3  # -60 dBFS
UNKNOWN = 1 << 62  # frames: libsndfile gives the largest number there is if the header leaves the length open

Source = str | os.PathLike | bytes | BinaryIO | tuple[Any, int]


@dataclass(frozen=True, eq=False)
class Sound:
    """A decoded sound. `channels`, `peak` and `clipped` tell how it was before its channels were averaged."""

    pcm: np.ndarray  # float32 [L], mono
    rate: int  # Hz
    sha256: str  # of the file's bytes, as sha256sum prints it; given an array: of its float32 samples, shape and rate
    channels: int
    peak: float  # the largest magnitude in any channel; more than 1 is possible
    clipped: float  # the share of samples at full scale or beyond, 0..1

    @property
    def seconds(self) -> float:
        return len(self.pcm) / self.rate


@dataclass(frozen=True, eq=False)
class Reference:
    """A recording fit to be cloned: 1 to 30 s, not silent. `warnings` say what will cost likeness."""

    pcm: np.ndarray  # float32 [L] at 24 kHz in [-1, 1]
    sha256: str  # as in Sound
    warnings: tuple[str, ...]


def read_audio(source: Source, max_seconds: float | None = None) -> Sound:
    """Decode a sound and average its channels.

    source: a path, the bytes of a file, a binary file object, or (samples [L] or [L, channels], rate), where integer
    samples are scaled to [-1, 1). A sound longer than `max_seconds` is refused by its header (an MP3: after so many
    seconds), never decoded whole. Raises AudioError: missing, not a sound, damaged, empty, too long, NaN or infinity.
    """
    if isinstance(source, tuple) and len(source) == 2:
        return _from_array(*source, max_seconds)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), "The recording", max_seconds)
    if not isinstance(source, str | os.PathLike):
        if isinstance(source, io.TextIOBase) or not (hasattr(source, "read") and hasattr(source, "seekable")):
            raise AudioError(
                "A recording is a path, the bytes of a sound file, a binary file object, or (samples, rate), "
                f"not a value of type {type(source).__name__}."
            )
        return _from_file(source, str(getattr(source, "name", "The recording")), max_seconds)
    try:
        file = open(source, "rb")
    except (OSError, ValueError) as exc:  # ValueError: a path with a zero byte in it
        why = getattr(exc, "strerror", exc)
        raise AudioError(f"{os.fspath(source)} cannot be read: {why}. Check the path.") from exc
    with file:
        return _from_file(file, os.fspath(source), max_seconds)


def _from_file(file: BinaryIO, label: str, max_seconds: float | None) -> Sound:
    soundfile = libsndfile()
    if not file.seekable():
        file = io.BytesIO(file.read())
    if not file.seek(0, io.SEEK_END):
        raise AudioError(f"{label} is empty (0 bytes). Give a recording.")
    with ThreadPoolExecutor(1) as thread:  # libsndfile calls back into Python; a Ctrl-C would come up there and be lost
        samples, rate = thread.submit(_decode, soundfile, file, label, max_seconds).result()
    _check_length(len(samples), rate, max_seconds, label)
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return _sound(samples, rate, digest.hexdigest(), label)


def _decode(soundfile: ModuleType, file: BinaryIO, label: str, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """float32 [L, channels], of which there is a sample more than `max_seconds` at most, and the rate."""
    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            if sound.frames >= UNKNOWN:
                raise AudioError(f"{label} does not tell its length. Save it as a file again, not through a pipe.")
            if sound.format != "MP3":  # whose length may be a guess: it is read up to the limit, and then seen
                _check_length(sound.frames, sound.samplerate, max_seconds, label)
            most = -1 if max_seconds is None else int(max_seconds * sound.samplerate) + 1
            # In one call: soundfile seeks after each, and an MP3 decoder that was sent about makes clicks.
            return sound.read(most, dtype="float32", always_2d=True), sound.samplerate
    except (soundfile.SoundFileError, TypeError, MemoryError) as exc:  # TypeError: headerless, by the suffix .raw
        raise AudioError(
            f"{label} is not a sound file, or is damaged ({getattr(exc, 'error_string', exc)}). "
            "Give wav, flac, mp3, ogg or opus, and convert other formats first."
        ) from exc


def _from_array(samples: Any, rate: int, max_seconds: float | None) -> Sound:
    label = "The recording"
    try:
        array = np.asarray(samples)
    except (TypeError, ValueError) as exc:  # rows of unequal length, a tensor on a GPU
        raise AudioError(f"{label} is no array ({exc}). Give samples as [L] or [L, channels].") from exc
    pcm = array[:, None] if array.ndim == 1 else array
    if pcm.ndim != 2 or not 1 <= pcm.shape[1] <= 256:
        raise AudioError(f"{label} has shape {list(array.shape)}. Give samples as [L] or [L, channels].")
    if not isinstance(rate, int | np.integer) or rate < 1:
        raise AudioError(f"{label} has the sample rate {rate!r}. Give a positive whole number of Hz.")
    _check_length(len(pcm), int(rate), max_seconds, label)
    pcm = _as_float(pcm)
    return _sound(pcm, int(rate), hashlib.sha256(pcm.tobytes() + str([*pcm.shape, rate]).encode()).hexdigest(), label)


def _sound(samples: np.ndarray, rate: int, sha256: str, label: str) -> Sound:
    """float32 [L, channels] -> the Sound, after a look at what averaging would hide."""
    if not len(samples):
        raise AudioError(f"{label} holds no samples. Give a recording.")
    if not np.isfinite(samples).all():
        raise AudioError(f"{label} contains NaN or infinite samples. Export it again as 16-bit wav or flac.")
    level = np.abs(samples)
    clipped = float((level >= 0.999).mean())
    return Sound(samples.mean(axis=1), rate, sha256, samples.shape[1], float(level.max()), clipped)


def _as_float(samples: np.ndarray) -> np.ndarray:
    """float32 in the shape of `samples`; integers of b bits are divided by 2^(b-1), unsigned ones centred on 0."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused as such
            return samples.astype(np.float32)
    if samples.dtype.kind not in "iu":
        raise AudioError(f"Samples of type {samples.dtype} are not sound. Give floats in [-1, 1], or integers.")
    half = 2.0 ** (8 * samples.dtype.itemsize - 1)
    return (samples / half - (samples.dtype.kind == "u")).astype(np.float32)


def _check_length(frames: int, rate: int, max_seconds: float | None, label: str) -> None:
    if max_seconds is not None and frames > max_seconds * rate:
        raise AudioError(f"{label} is longer than {max_seconds:g} s. Cut it to the best {max_seconds:g} s or less.")


def resample(pcm: np.ndarray, rate: int, to: int) -> np.ndarray:
    """float32 [L] at `rate` Hz -> float32 [about L * to / rate] at `to` Hz, by soxr at very high quality."""
    if rate == to:
        return pcm
    try:
        import soxr
    except ImportError as exc:
        raise AudioError(f"Resampling from {rate} to {to} Hz needs the package soxr: pip install soxr.") from exc
    return soxr.resample(pcm, rate, to, quality="VHQ")


def read_reference(source: Source) -> Reference:
    """Read a recording to clone (sources as in `read_audio`) and bring it to mono 24 kHz.

    Loudness is not normalised; only what exceeds full scale is scaled down to it. Raises AudioError as `read_audio`
    does, and for a recording outside 1 to 30 s, silent (nothing above -60 dBFS), or not scaled to [-1, 1].
    """
    sound = read_audio(source, MAX_SECONDS)
    if sound.seconds < MIN_SECONDS:
        raise AudioError(
            f"The reference lasts {sound.seconds:.2g} s. Give {MIN_SECONDS} to {MAX_SECONDS} s of a voice."
        )
    if sound.peak > 100:
        raise AudioError(f"The reference reaches {sound.peak:.0f}. Scale float samples to [-1, 1].")
    pcm = resample(sound.pcm, sound.rate, RATE)
    if np.abs(pcm - pcm.mean()).max() < SILENCE:  # around the mean: a constant offset is no sound
        cancelled = sound.channels > 1 and sound.peak >= SILENCE
        advice = "Its channels cancel each other: give one of them." if cancelled else "Give a recording of a voice."
        raise AudioError(f"The reference is silent (nothing above -60 dBFS). {advice}")
    warnings = []
    if sound.channels > 2:
        warnings.append(f"The reference has {sound.channels} channels, now averaged. One clean channel is better.")
    if sound.rate < 16_000:
        warnings.append(f"The reference is sampled at {sound.rate} Hz: nothing above {sound.rate // 2} Hz to clone.")
    if sound.clipped > 1e-3:
        warnings.append(f"{sound.clipped:.1%} of the reference is at full scale. Clipping is cloned: record quieter.")
    return Reference(pcm / max(1.0, float(np.abs(pcm).max())), sound.sha256, tuple(warnings))
