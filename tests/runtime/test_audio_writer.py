"""Writing sound: what is written is what is read, and nothing half-written is ever left."""

import errno
import io
import os
import signal
import subprocess
import sys
import threading
import time
import types
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.runtime import files
from octavo.runtime.audio import read_audio
from octavo.runtime.audio_writer import FORMATS, AudioWriter, pcm16, play, write_audio
from octavo.runtime.errors import AudioError


def tone(seconds: float = 1.0, rate: int = 24_000) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * 300 * t) * np.sin(np.pi * t / seconds)).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("suffix, loss", [("wav", 2e-5), ("flac", 2e-5), ("mp3", 0.05), ("ogg", 0.05), ("opus", 0.08)])
def test_round_trip(tmp_path: Path, suffix: str, loss: float, rate: int) -> None:
    path, pcm = tmp_path / f"a.{suffix.upper()}", tone(rate=rate)
    write_audio(path, pcm, rate)
    sound = read_audio(path)
    assert (sound.rate, len(sound.pcm)) == (rate, len(pcm))
    assert np.abs(sound.pcm - pcm).max() < loss
    assert os.listdir(tmp_path) == [path.name]
    info = soundfile.info(str(path))
    assert (info.format, info.subtype) == (FORMATS[suffix] or ("WAV", "PCM_16"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30_000), max_size=6), st.sampled_from(["wav", "flac", "mp3", "ogg", "opus"]))
def test_pieces_equal_the_whole(sizes: list[int], format: str) -> None:
    pcm = np.random.default_rng(0).normal(0, 0.2, sum(sizes)).astype(np.float32)
    pieces, whole = io.BytesIO(), io.BytesIO()
    with AudioWriter(pieces, format=format) as writer:
        for piece in np.split(pcm, np.cumsum(sizes)[:-1]) if sizes else []:
            writer.write(piece)
        assert writer.frames == len(pcm) and writer.seconds == len(pcm) / 24_000
    write_audio(whole, pcm, format=format)
    if len(pcm):
        first = 2048 if format == "ogg" else 0  # Vorbis extrapolates backwards from what the first call brings
        got, want = read_audio(pieces.getvalue()).pcm, read_audio(whole.getvalue()).pcm
        assert len(got) == len(want) == len(pcm)
        np.testing.assert_array_equal(got[first:], want[first:])
    if format in ("wav", "flac"):
        assert pieces.getvalue() == whole.getvalue()


def test_long_vorbis_does_not_crash(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.ogg", np.zeros(24_000 * 120, np.float32))
    assert soundfile.info(str(tmp_path / "a.ogg")).frames == 24_000 * 120


@given(st.integers(-32768, 32767))
def test_sixteen_bits_survive(value: int) -> None:
    assert pcm16(np.array([value / 32768], np.float32)) == value


def test_rounding_and_clamping() -> None:
    got = pcm16(np.array([0, 1, -1, 1.5, -7, 0.6 / 32768, -0.6 / 32768, 0.4 / 32768], np.float32))
    assert got.dtype == np.int16 and got.tolist() == [0, 32767, -32768, 32767, -32768, 1, -1, 0]


@pytest.mark.parametrize("format", FORMATS)
def test_too_loud_is_clamped_not_wrapped(tmp_path: Path, format: str) -> None:
    write_audio(tmp_path / f"a.{format}", np.sign(tone(0.5)) * np.float32(1.7))
    loud = read_audio(tmp_path / f"a.{format}").pcm
    assert loud[4_020] > 0.7 and loud[4_060] < -0.7  # in the middle of a positive and a negative half-wave
    assert np.median(np.abs(loud)) < 1.2


def test_wav_header_is_exact() -> None:
    buffer = io.BytesIO()
    write_audio(buffer, tone(0.25), 24_000)
    with wave.open(io.BytesIO(buffer.getvalue())) as file:
        assert file.getparams()[:4] == (1, 2, 24_000, 6_000)
    assert len(buffer.getvalue()) == 44 + 2 * 6_000
    assert int.from_bytes(buffer.getvalue()[4:8], "little") == 36 + 2 * 6_000


WANT = pcm16(np.linspace(-1, 1, 5000, dtype=np.float32))


def say(how: str) -> None:
    """What `octavo say -o -` does: WANT to standard output, at once or in pieces."""
    pcm = np.linspace(-1, 1, 5000, dtype=np.float32)
    if how == "whole":
        write_audio("-", pcm)
    else:
        with AudioWriter("-") as writer:
            for piece in np.split(pcm, 5):
                writer.write(piece)


def check_wav(data: bytes, length: int) -> None:
    assert data[44:] == WANT.tobytes()
    assert data[40:44] == length.to_bytes(4, "little")
    np.testing.assert_array_equal(pcm16(read_audio(data).pcm), WANT)


@pytest.mark.parametrize("how", ["whole", "pieces"])
@pytest.mark.parametrize("buffering", [-1, 0], ids=["buffered", "raw"])
def test_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, buffering: int) -> None:
    for name, mode, length in [
        ("overwritten", "wb", 10_000),
        ("appended", "ab", 10_000 if how == "whole" else 0xFFFFFFFF),  # `>>`: what is written stays as it is
    ]:
        with open(tmp_path / name, mode, buffering) as file:
            monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(buffer=file))
            say(how)
            say(how)
        data = (tmp_path / name).read_bytes()
        check_wav(data[:10_044], length)
        check_wav(data[10_044:], length)


@pytest.mark.parametrize("how", ["whole", "pieces"])
def test_standard_output_is_a_pipe(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reader:
        with open(write_end, "wb") as pipe:  # 10 kB fit into any pipe
            monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(buffer=pipe))
            say(how)
        check_wav(reader.read(), 10_000 if how == "whole" else 0xFFFFFFFF)


def test_a_stream_may_take_less_than_all() -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(data[:100])

    stream = Slow()
    write_audio(stream, tone())
    assert len(stream.getvalue()) == 44 + 48_000


def test_reader_of_the_pipe_has_gone() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(AudioError, match="has gone"):
        with open(write_end, "wb", buffering=0) as pipe:
            write_audio(pipe, tone())


def test_only_wav_goes_into_a_pipe() -> None:
    read_end, write_end = os.pipe()
    with open(read_end, "rb"), open(write_end, "wb") as pipe, pytest.raises(AudioError, match="pipe"):
        write_audio(pipe, tone(), format="mp3")


class Full(io.FileIO):
    """A file on a disk that is full after 1000 bytes."""

    def write(self, data: object) -> int:
        if self.tell() + len(data) > 1000:  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    path = tmp_path / f"a.{format}"
    path.write_bytes(b"old")
    monkeypatch.setattr(files, "open", lambda path, mode: io.BufferedWriter(Full(path, mode)), raising=False)
    noise = np.random.default_rng(0).normal(0, 0.2, 24_000).astype(np.float32)
    with pytest.raises(AudioError, match="disk is full"), AudioWriter(path) as writer:
        for _ in range(20):
            writer.write(noise)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("format", FORMATS)
def test_a_real_ctrl_c(tmp_path: Path, format: str) -> None:
    """The signal comes while C code encodes, which is nearly all of the time."""
    noise = np.random.default_rng(0).normal(0, 0.2, 24_000).astype(np.float32)
    for delay in (0.02, 0.03, 0.05):
        deadline = time.monotonic() + 3
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt), AudioWriter(tmp_path / f"a.{format}") as writer:
            timer.start()
            while time.monotonic() < deadline:
                writer.write(noise)
        assert os.listdir(tmp_path) == []


LIMIT = """
import resource, sys, numpy as np
from octavo.runtime.audio_writer import write_audio
from octavo.runtime.errors import AudioError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # the kernel itself refuses what goes beyond
noise = np.random.default_rng(0).normal(0, 0.2, 24_000 * 10).astype(np.float32)
for path in sys.argv[1:]:
    try:
        write_audio(path, noise)
    except AudioError as error:
        assert "larger than is allowed" in str(error), error
    else:
        sys.exit(f"{path} was written")
"""


def test_the_kernel_refuses_more(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"a.{format}") for format in FORMATS]
    done = subprocess.run([sys.executable, "-c", LIMIT, *paths], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("format", FORMATS)
def test_full_disk(format: str) -> None:
    with open("/dev/full", "wb", 0) as full, pytest.raises(AudioError, match="disk is full"):
        write_audio(full, tone(), format=format)


@pytest.mark.parametrize("format", FORMATS)
def test_abort_and_errors_leave_nothing(tmp_path: Path, format: str) -> None:
    writer = AudioWriter(tmp_path / f"a.{format}")
    writer.write(tone())
    writer.abort()
    writer.close()
    writer.abort()
    with pytest.raises(AudioError, match="closed"):
        writer.write(tone())
    with pytest.raises(ZeroDivisionError), AudioWriter(tmp_path / f"b.{format}") as writer:
        writer.write(tone())
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_close_twice_and_abort_after_close(tmp_path: Path) -> None:
    writer = AudioWriter(tmp_path / "a.flac")
    writer.write(tone())
    writer.close()
    writer.close()
    writer.abort()
    assert os.listdir(tmp_path) == ["a.flac"] and read_audio(tmp_path / "a.flac").seconds == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_not_written(tmp_path: Path, bad: float) -> None:
    with pytest.raises(AudioError, match="NaN"):
        write_audio(tmp_path / "a.wav", np.array([0, bad], np.float32))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("pcm", [np.zeros((2, 9), np.float32), np.zeros(9, np.int16), np.float32(0)[None, None]])
def test_wrong_arrays(tmp_path: Path, pcm: np.ndarray) -> None:
    with pytest.raises(AudioError, match="floats"):
        write_audio(tmp_path / "a.wav", pcm)
    assert os.listdir(tmp_path) == []


def test_bad_targets(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    for name, sentence in [
        ("a.txt", "does not write 'txt'"),
        ("a", "no suffix"),
        ("folder.wav", "It is a folder"),
        ("none/a.wav", "folder does not exist"),
    ]:
        with pytest.raises(AudioError, match=sentence):
            AudioWriter(tmp_path / name)
    with pytest.raises(AudioError, match="does not write 'aac'"):
        AudioWriter("-", format="aac")
    for rate in (0, -1, 500_000):
        with pytest.raises(AudioError, match="Hz"):
            AudioWriter(tmp_path / "a.ogg", rate)
    with pytest.raises(AudioError, match="cannot be encoded.*sample rate"):
        AudioWriter(tmp_path / "a.opus", 22_050)
    assert os.listdir(tmp_path) == ["folder.wav"]


def test_format_beats_suffix(tmp_path: Path) -> None:
    write_audio(tmp_path / "a", tone(), format="flac")
    assert soundfile.info(str(tmp_path / "a")).format == "FLAC"


class SoundCard(types.ModuleType):
    """What octavo uses of sounddevice."""

    class PortAudioError(Exception):
        pass

    def __init__(self, broken: bool = False) -> None:
        super().__init__("sounddevice")
        self.broken, self.heard, self.waited = broken, np.zeros(0), False

    def play(self, pcm: np.ndarray, rate: int) -> None:
        if self.broken:
            raise self.PortAudioError("Error querying device -1")
        self.heard, self.rate = pcm, rate

    def wait(self) -> None:
        self.waited = True


def test_play(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SoundCard()
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    play(2 * tone(), 24_000)
    np.testing.assert_array_equal(card.heard, np.clip(2 * tone(), -1, 1))
    assert card.rate == 24_000 and card.waited


def test_play_without_a_sound_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", SoundCard(broken=True))
    with pytest.raises(AudioError, match="No sound card"):
        play(tone())


def test_play_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(AudioError, match=r"octavo\[audio\]"):
        play(tone())


def test_play_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(AudioError, match="PortAudio library"):
        play(tone())
