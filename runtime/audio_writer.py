"""Sound out: a file written piece by piece that gets its name only once complete; a WAV stream; the loudspeaker."""

import os
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import ModuleType, TracebackType
from typing import Any, BinaryIO, Self, cast

import numpy as np

from .errors import AudioError
from .files import AtomicFile, write_errors

if sys.platform != "win32":
    import fcntl

FORMATS = {  # suffix -> libsndfile's container and encoding; None: written here, since it must also go into a pipe
    "wav": None,
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}
BLOCK = 8192  # samples per call of libsndfile: one long call overflows the stack in its Vorbis encoder
UNKNOWN = 0xFFFFFFFF  # the length in the header of a WAV stream that cannot know it

Target = str | os.PathLike | BinaryIO


class AudioWriter:
    """Writes mono sound piece by piece: 16 bits in wav and flac; mp3; Vorbis in .ogg; Opus in .opus.

    path: a file, "-" for standard output, or a binary file object (left open). A file appears under its name at
    `close`; `abort`, or any exception in between, leaves nothing behind. A stream is WAV; a file object that can seek
    takes any `format`. The header of a WAV stream is right at once if `frames` (samples to come) is given, or in the
    end if the stream can seek; else it carries the greatest length there is, as is usual in pipes.
    As a context manager, leaving normally closes and any exception aborts. Raises AudioError, at once where it can:
    unknown suffix, folder missing or not writable, a rate the format lacks, disk full, NaN.
    """

    def __init__(self, path: Target, rate: int = 24_000, format: str | None = None, frames: int | None = None) -> None:
        coding = FORMATS[_format(path, format)]
        if not 8_000 <= rate <= 192_000:
            raise AudioError(f"Sound is not written at {rate} Hz. Give 8000 to 192000.")
        self.rate = rate
        self.frames = 0  # samples written so far
        self._encoder: _Wav | _Sndfile | None = None  # None: closed
        self._file: AtomicFile | None = None
        if path == "-":
            self._label, self._stream = "Standard output", cast(BinaryIO, sys.stdout.buffer)
        elif isinstance(path, str | os.PathLike):
            self._file = AtomicFile(path, AudioError)
            self._label, self._stream = os.fspath(path), self._file.file
        else:
            self._label, self._stream = "The stream", path
        with self._undone_on_error():
            self._encoder = _Sndfile(self._stream, rate, *coding) if coding else _Wav(self._stream, rate, frames)

    @property
    def seconds(self) -> float:
        """The length of what has been written so far."""
        return self.frames / self.rate

    def write(self, pcm: np.ndarray) -> None:
        """Append float samples [n] in [-1, 1]; what exceeds is clamped."""
        with self._undone_on_error():
            if self._encoder is None:
                raise AudioError(f"{self._label} is already closed. Open a new writer.")
            if pcm.ndim != 1 or pcm.dtype.kind != "f":
                raise AudioError(
                    f"Sound is written as floats [L] in [-1, 1], not {pcm.dtype} {list(pcm.shape)}. Convert it."
                )
            if not np.isfinite(pcm).all():
                raise AudioError(
                    f"{self._label} is not written: its sound contains NaN or infinity. Generate it again."
                )
            self._encoder.write(pcm)
            self.frames += len(pcm)

    def close(self) -> None:
        """Finish the file and give it its name. Closing again does nothing."""
        if self._encoder is None:
            return
        with self._undone_on_error():
            self._encoder.close()
            self._stream.flush()
            if self._file is not None:
                self._file.commit()
        self._encoder = None

    def abort(self) -> None:
        """Remove what was written so far (a stream cannot take back what it has sent)."""
        encoder, self._encoder = self._encoder, None
        try:
            if encoder is not None:
                with suppress(Exception):  # closing frees its memory; errors no longer matter
                    encoder.close()
        finally:
            if self._file is not None:
                self._file.abort()

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        try:
            with write_errors(self._label, AudioError):
                yield
        except BaseException:  # Ctrl-C included
            self.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def write_audio(path: Target, pcm: np.ndarray, rate: int = 24_000, format: str | None = None) -> None:
    """Write mono float samples [L] at once; targets, formats and errors as in `AudioWriter`."""
    with AudioWriter(path, rate, format, frames=len(pcm)) as writer:
        writer.write(pcm)


def pcm16(pcm: np.ndarray) -> np.ndarray:
    """float [L] -> int16 [L] (little-endian): times 2^15, rounded to the nearest, clamped; 1.0 becomes 32767."""
    return np.clip(np.rint(pcm * np.float32(32768)), -32768, 32767).astype("<i2")


def play(pcm: np.ndarray, rate: int = 24_000) -> None:
    """Play mono float samples [L] and return when they have been heard. Needs the extra `octavo[audio]`."""
    try:
        import sounddevice
    except ImportError as exc:
        raise AudioError("Playing needs the package sounddevice: pip install 'octavo[audio]'.") from exc
    except OSError as exc:  # the package is there, the library below it is not
        raise AudioError("Playing needs the PortAudio library (Debian: apt install libportaudio2).") from exc
    try:
        sounddevice.play(np.clip(pcm, -1, 1), rate)
        sounddevice.wait()
    except sounddevice.PortAudioError as exc:
        raise AudioError(f"No sound card plays this ({exc}). Write a file instead.") from exc


def libsndfile() -> ModuleType:
    """The package `soundfile`, imported when it is needed: speaking into memory and writing WAV do without."""
    try:
        import soundfile
    except ImportError as exc:
        raise AudioError(
            "Reading sound files, and writing any but WAV, needs soundfile: pip install soundfile."
        ) from exc
    except OSError as exc:  # the package is there, the library below it is not
        raise AudioError("soundfile does not find its library libsndfile (Debian: apt install libsndfile1).") from exc
    return soundfile


def _format(path: Target, format: str | None) -> str:
    """The key of FORMATS that `format`, or else the suffix of `path`, names; a stream is wav."""
    if format is None and path != "-" and isinstance(path, str | os.PathLike):
        format = os.path.splitext(path)[1]
    name = "wav" if format is None else format.lower().lstrip(".")
    if name not in FORMATS:
        known = ", ".join(f".{suffix}" for suffix in FORMATS)
        what = f"octavo does not write {name!r}" if name else f"{path} has no suffix"
        raise AudioError(f"{what}. Use one of {known}.")
    return name


class _Wav:
    """RIFF WAV, 16-bit mono."""

    def __init__(self, stream: BinaryIO, rate: int, frames: int | None) -> None:
        self._stream, self._rate = stream, rate
        self._written = 0
        self._start = stream.tell() if frames is None and _can_rewrite(stream) else None
        self._put(self._header(frames))

    def write(self, pcm: np.ndarray) -> None:
        self._put(pcm16(pcm).tobytes())
        self._written += len(pcm)

    def close(self) -> None:
        if self._start is not None:
            self._stream.seek(self._start)
            self._put(self._header(self._written))
            self._stream.seek(0, os.SEEK_END)

    def _header(self, frames: int | None) -> bytes:
        data = UNKNOWN if frames is None else min(2 * frames, UNKNOWN)
        riff = min(36 + data, UNKNOWN)
        fmt = struct.pack("<IHHIIHH", 16, 1, 1, self._rate, 2 * self._rate, 2, 16)  # PCM, mono, 2 bytes a sample
        return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", data)

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:  # an unbuffered stream may take less than all
            rest = rest[self._stream.write(rest) :]


def _can_rewrite(stream: BinaryIO) -> bool:
    """Whether seeking back reaches what was written: not in a pipe, nor in a file the shell opened with `>>`."""
    if not stream.seekable():
        return False
    try:
        return sys.platform == "win32" or not fcntl.fcntl(stream.fileno(), fcntl.F_GETFL) & os.O_APPEND
    except OSError:  # a stream in memory has no descriptor
        return True


class _Sndfile:
    """An encoder of libsndfile, at work on a stream that can seek.

    libsndfile calls back into Python to write, and an exception there is lost. So it runs in a thread of its own, where
    no Ctrl-C arrives, and writes through `_Kept`, which remembers what went wrong.
    """

    def __init__(self, stream: BinaryIO, rate: int, container: str, encoding: str) -> None:
        if not stream.seekable():
            raise AudioError(f"{encoding.lower()} cannot be written into a pipe. Write wav, or write into a file.")
        self._soundfile = soundfile = libsndfile()
        self._thread = ThreadPoolExecutor(1)
        self._stream = _Kept(stream)
        self._sound = self._run(lambda: soundfile.SoundFile(self._stream, "w", rate, 1, encoding, format=container))

    def write(self, pcm: np.ndarray) -> None:
        pcm = np.clip(pcm, -1, 1)
        for start in range(0, len(pcm), BLOCK):
            self._run(self._sound.write, pcm[start : start + BLOCK])

    def close(self) -> None:
        self._run(self._sound.close)
        self._thread.shutdown()

    def _run(self, function: Callable, *args: Any) -> Any:
        try:
            result = self._thread.submit(function, *args).result()
        except (self._soundfile.SoundFileError, AssertionError) as exc:  # an assert: it counts fewer samples written
            if self._stream.error is None:
                why = getattr(exc, "error_string", exc)
                raise AudioError(f"The sound cannot be encoded: {why} Write wav instead.") from exc
        if self._stream.error is not None:
            raise self._stream.error
        return result


class _Kept:
    """A stream for C code, which would lose an exception (disk full): the first is kept, and nothing done after it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def write(self, data: bytes) -> int:
        return self._call(self._stream.write, data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._call(self._stream.seek, offset, whence)

    def tell(self) -> int:
        return self._call(self._stream.tell)

    def _call(self, function: Callable[..., int], *args: Any) -> int:
        if self.error is None:
            try:
                return function(*args)
            except Exception as exc:
                self.error = exc
        return 0
