"""Reading sound: formats, rates, channels, and every recording that cannot be cloned."""

import hashlib
import io
import os
import struct
import threading

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.runtime.audio import read_audio, read_reference, resample, write_audio
from octavo.runtime.errors import AudioError


def tone(seconds: float = 1.5, rate: int = 24_000, hertz: float = 300.0, peak: float = 0.5) -> np.ndarray:
    """A swelling and fading tone with one overtone, float32 [seconds * rate]."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * hertz * t) + 0.3 * np.sin(4 * np.pi * hertz * t)
    return (peak / 1.3 * wave * np.sin(np.pi * t / seconds) ** 2).astype(np.float32)


def encoded(pcm: np.ndarray, rate: int, container: str = "WAV", encoding: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, rate, encoding, format=container)
    return buffer.getvalue()


def error(source: object) -> str:
    with pytest.raises(AudioError) as caught:
        read_reference(source)  # type: ignore[arg-type]
    return str(caught.value)


# Lossless formats give the samples back; the others within what they lose on a tone.
@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize(
    "container, encoding, loss",
    [
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 1e-6),
        ("FLAC", "PCM_16", 1e-4),
        ("MP3", "MPEG_LAYER_III", 0.05),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.08),
    ],
)
def test_formats(container: str, encoding: str, loss: float, rate: int) -> None:
    pcm = tone(rate=rate)
    sound = read_audio(encoded(pcm, rate, container, encoding))
    assert sound.rate == rate and sound.channels == 1 and len(sound.pcm) == len(pcm)
    assert sound.pcm.dtype == np.float32 and np.abs(sound.pcm - pcm).max() < loss
    assert sound.seconds == 1.5


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_reference_is_the_same_sound_at_any_rate(rate: int) -> None:
    got, want = read_reference(encoded(tone(rate=rate), rate, "WAV", "FLOAT")).pcm, tone()
    assert got.dtype == np.float32 and abs(len(got) - len(want)) <= 1
    length = min(len(got), len(want))
    assert np.abs(got[:length] - want[:length]).max() < 1e-4


def test_resampling_keeps_the_band_and_removes_the_rest() -> None:
    low, high = tone(rate=48_000, hertz=5_000), tone(rate=48_000, hertz=15_000)
    assert np.abs(resample(low, 48_000, 24_000) - tone(hertz=5_000)).max() < 1e-4
    assert np.abs(resample(high, 48_000, 24_000)).max() < 1e-4  # above 12 kHz: must not fold back
    assert resample(low, 24_000, 24_000) is low


@pytest.mark.parametrize("channels", [1, 2, 5, 8])
def test_channels_are_averaged(channels: int) -> None:
    pcm = tone()[:, None] * np.linspace(1, 0, channels, dtype=np.float32)
    reference = read_reference(encoded(pcm, 24_000, "WAV", "FLOAT"))
    np.testing.assert_allclose(reference.pcm, pcm.mean(axis=1), atol=1e-6)
    assert any(f"{channels} channels" in warning for warning in reference.warnings) == (channels > 2)


def test_sources_are_equal(tmp_path: object) -> None:
    data, path = (
        encoded(tone(), 24_000),
        os.path.join(str(tmp_path), "r.mp3"),
    )  # what the file holds decides, not its suffix
    with open(path, "wb") as file:
        file.write(data)
    read_end, write_end = os.pipe()
    sender = threading.Thread(target=lambda: (os.write(write_end, data), os.close(write_end)))
    sender.start()
    with open(path, "rb") as opened, open(read_end, "rb") as pipe:
        opened.seek(7)
        sounds = [read_audio(source) for source in (data, path, opened, io.BytesIO(data), pipe)]
    sender.join()
    for sound in sounds:
        assert sound.sha256 == hashlib.sha256(data).hexdigest()
        np.testing.assert_array_equal(sound.pcm, sounds[0].pcm)


def test_arrays() -> None:
    pcm = tone()
    as_int = (np.rint(pcm * 2**15)).astype(np.int16)
    for samples in (pcm, pcm.astype(np.float64), pcm[:, None], np.stack([pcm, pcm], 1), list(map(float, pcm))):
        np.testing.assert_array_equal(read_audio((samples, 24_000)).pcm, pcm)
    for samples in (as_int, as_int.astype(np.int32) << 16, (as_int.astype(np.int32) + 2**15).astype(np.uint16)):
        np.testing.assert_array_equal(read_audio((samples, 24_000)).pcm, as_int / np.float32(2**15))
    assert read_audio((pcm, 24_000)).sha256 == read_audio((pcm.copy(), 24_000)).sha256
    assert read_audio((pcm, 24_000)).sha256 != read_audio((pcm, 24_001)).sha256
    assert read_audio((pcm, 24_000)).sha256 != read_audio((pcm[1:], 24_000)).sha256


@pytest.mark.parametrize(
    "source, sentence",
    [
        (((np.zeros((2, 48_000))), 24_000), "shape"),
        ((np.zeros((2, 2, 2)), 24_000), "shape"),
        ((np.float32(1), 24_000), "shape"),
        ((tone(), 0), "sample rate"),
        ((tone(), 24_000.5), "sample rate"),
        ((np.array(["a"] * 30_000), 24_000), "not sound"),
        ((tone().astype(complex), 24_000), "not sound"),
        ((np.full(30_000, 1e300), 24_000), "NaN or infinite"),
        ((tone() * 32_768, 24_000), "Scale"),
        ((np.zeros(0, np.float32), 24_000), "no samples"),
        ((tone(30.1), 24_000), "longer than 30 s"),
        (([[0.0], [0.0, 0.0]], 24_000), "no array"),
    ],
)
def test_bad_arrays(source: object, sentence: str) -> None:
    assert sentence in error(source)


@pytest.mark.parametrize(
    "source", [None, 3, 1.5, tone(), [tone(), 24_000], (tone(),), (tone(), 24_000, 1), io.StringIO("RIFF"), object()]
)
def test_what_is_no_source_at_all(source: object) -> None:
    assert f"not a value of type {type(source).__name__}." in error(source)


def test_bytes_of_any_kind() -> None:
    data = encoded(tone(), 24_000)
    sounds = [read_audio(kind(data)) for kind in (bytes, bytearray, memoryview)]
    assert len({sound.sha256 for sound in sounds}) == 1 and np.array_equal(sounds[0].pcm, sounds[2].pcm)


@pytest.mark.parametrize(
    "junk", [b"hello", b"\0" * 5000, b"RIFF\xff\xff\xff\xffWAVE", b"ID3" + b"\0" * 50, b"OggS" * 9]
)
def test_not_a_sound(junk: bytes) -> None:
    assert "not a sound file" in error(junk)


def test_files_that_are_no_recording(tmp_path: object) -> None:
    folder = str(tmp_path)
    assert "No such file" in error(os.path.join(folder, "none.wav"))
    assert "directory" in error(folder)
    assert "cannot be read" in error("a\0b")
    assert "empty" in error(b"")
    assert "no samples" in error(encoded(np.zeros(0), 24_000))
    with open(os.path.join(folder, "headerless.raw"), "wb") as file:
        file.write(bytes(96_000))
    assert "convert" in error(file.name)


@pytest.mark.parametrize("pcm", [np.zeros(48_000), np.full(48_000, 9e-4), 0.3 + tone(peak=5e-4)], ids=["0", "<", "dc"])
def test_silence(pcm: np.ndarray) -> None:
    assert "silent" in error(encoded(pcm, 24_000, "WAV", "FLOAT"))


def test_just_audible_is_accepted() -> None:
    assert len(read_reference((tone(peak=2e-3), 24_000)).pcm)


def test_channels_that_cancel() -> None:
    assert "cancel" in error((np.stack([tone(), -tone()], 1), 24_000))


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
def test_length_limits(rate: int) -> None:
    assert "0.2 s" in error((tone(0.2, rate), rate))
    assert "lasts" in error((tone(1.5, rate)[: rate - 1], rate))
    assert abs(len(read_reference((tone(1, rate), rate)).pcm) - 24_000) <= 1
    assert abs(len(read_reference((tone(30, rate), rate)).pcm) - 720_000) <= 1
    assert "longer than 30 s" in error((tone(30.001, rate), rate))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan(value: float) -> None:
    pcm = tone()
    pcm[-1] = value
    assert "NaN" in error(encoded(pcm, 24_000, "WAV", "FLOAT"))


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
def test_ten_minutes_are_refused_by_the_header(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8_000, 1, format=container) as file:
        for _ in range(600):
            file.write(np.zeros(8_000, np.float32))
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **options: pytest.fail("it was decoded"))
    assert "longer than 30 s" in error(buffer)


def test_long_mp3_is_decoded_only_up_to_the_limit() -> None:
    data = encoded(np.tile(tone(1, 8_000), 60), 8_000, "MP3")
    assert "longer than 30 s" in error(data)
    assert read_audio(data).seconds == 60


def test_mp3_is_decoded_without_seeking() -> None:
    pcm = np.random.default_rng(0).normal(0, 0.1, 24_000 * 8).astype(np.float32)
    data = encoded(pcm, 24_000, "MP3")
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        np.testing.assert_array_equal(read_reference(data).pcm, file.read(dtype="float32"))


def test_length_of_a_piped_wav_is_what_is_there() -> None:
    data = bytearray(encoded(tone(), 24_000))
    data[4:8] = data[40:44] = b"\xff" * 4
    assert read_reference(bytes(data)).pcm.shape == (36_000,)
    assert "longer than 30 s" in error(bytes(data) * 30)


def test_flac_that_does_not_tell_its_length() -> None:
    data = bytearray(encoded(tone(), 24_000, "FLAC"))
    info = int.from_bytes(data[18:26], "big") >> 36 << 36  # STREAMINFO: its last 36 bits count the samples
    data[18:26] = info.to_bytes(8, "big")
    assert "length" in error(bytes(data))


def test_four_kilohertz_is_accepted_with_a_warning() -> None:
    reference = read_reference((tone(rate=4_000), 4_000))
    assert len(reference.pcm) == 36_000
    assert len(reference.warnings) == 1 and "nothing above 2000 Hz" in reference.warnings[0]


def test_clipping_warns_and_full_scale_is_never_exceeded() -> None:
    loud = tone(peak=2.5)
    for pcm in (np.clip(loud, -1, 1), loud):
        reference = read_reference(encoded(pcm, 24_000, "WAV", "FLOAT"))
        assert np.abs(reference.pcm).max() <= 1 and "full scale" in reference.warnings[0]
    np.testing.assert_allclose(reference.pcm, loud / np.abs(loud).max(), atol=1e-6)
    assert read_reference((tone(peak=0.9), 24_000)).warnings == ()


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["wav", "flac", "ogg", "opus"]))
def test_a_damaged_file_is_read_or_refused(data: st.DataObject, format: str) -> None:
    buffer = io.BytesIO()
    write_audio(buffer, tone(1.1), format=format)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        reference = read_reference(bytes(content))
    except AudioError as exc:
        assert str(exc).endswith(".")
    else:
        assert np.isfinite(reference.pcm).all() and 23_999 <= len(reference.pcm) <= 720_001


def test_header_with_a_mad_length() -> None:
    data = bytearray(encoded(tone(), 24_000))
    data[24:28] = struct.pack("<I", 2**31 - 1)  # a rate of 2 GHz: all is over in 17 microseconds
    assert "lasts" in error(bytes(data))
