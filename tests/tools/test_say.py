"""`octavo say` on a tiny synthetic checkpoint: what it writes and what it says."""

import io
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from octavo.runtime.engine import Engine

SHORT = ("--seed", 1, "--max-rows", 20)  # 13 frames: about half a second


def test_a_text_becomes_a_sound_file(say, tmp_path):
    outcome = say("Hello.", *SHORT, "-o", tmp_path / "out.wav")
    assert outcome.code == 0 and outcome.out == ""
    pcm, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert rate == 24_000 and len(pcm) == 13 * 960
    assert 0.02 < np.sqrt(np.mean(pcm**2)) < 0.4
    [last] = outcome.err.splitlines()  # no bar where there is no terminal
    assert last.startswith(f"{tmp_path}/out.wav: 0.52 s of sound in ")
    assert all(fact in last for fact in ("RTF ", "first audio after ", "peak memory ", "seed 1", "length: cut by"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_a_bar_on_a_terminal(say, tmp_path, monkeypatch):
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
    outcome = say("Hello.", *SHORT, "-o", tmp_path / "out.wav")
    assert outcome.code == 0 and outcome.out == ""
    assert "loading" in outcome.err and "0.0 s of sound in 00:00" in outcome.err
    assert "seed 1" in outcome.err.splitlines()[-1]


def test_same_seed_same_file_other_seed_other_file(say, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert say("Hello.", "--max-rows", 20, "--seed", seed, "-o", tmp_path / f"{name}.wav").code == 0
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b != c


def test_codes_and_subtitles(say, tmp_path, tiny_dir):
    arguments = (*SHORT, "-o", tmp_path / "o.flac", "--codes", tmp_path / "c.npy")
    assert say("Hello there.", *arguments, "--srt", tmp_path / "o.srt").code == 0
    codes = np.load(tmp_path / "c.npy")
    assert codes.shape == (13, 8) and codes.dtype == np.int16 and 0 <= codes.min() and codes.max() < 1024
    assert "00:00:00,000 --> 00:00:00,520\nHello there." in (tmp_path / "o.srt").read_text()
    with Engine.load(tiny_dir, device="cpu") as engine:
        want = engine.decode(codes)
    got, _ = soundfile.read(tmp_path / "o.flac", dtype="float32")
    np.testing.assert_allclose(got, np.clip(want, -1, 1), atol=1.01 / 32768)
    assert say("Hello there.", *arguments, "--srt", tmp_path / "o.vtt").code == 0
    assert (tmp_path / "o.vtt").read_text().startswith("WEBVTT")


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "opus"])
def test_other_formats(say, tmp_path, suffix):
    assert say("Hello.", *SHORT, "-o", tmp_path / f"o.{suffix}").code == 0
    assert soundfile.info(tmp_path / f"o.{suffix}").duration == pytest.approx(0.52, abs=0.1)


def test_text_from_a_file_and_from_standard_input(say, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbf" + "Grüß Gott.".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüß Gott.".encode())))
    assert say("Grüß Gott.", *SHORT, "-o", tmp_path / "a.wav").code == 0
    assert say("-f", tmp_path / "text.txt", *SHORT, "-o", tmp_path / "b.wav").code == 0
    assert say("-", *SHORT, "-o", tmp_path / "c.wav").code == 0
    a, b, c = ((tmp_path / f"{name}.wav").read_bytes() for name in "abc")
    assert a == b == c


def test_default_output(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert say("Hello.", *SHORT).code == 0
    assert soundfile.info("speech.wav").frames == 13 * 960


def test_wav_on_standard_output(tiny_dir, tmp_path):
    command = [sys.executable, "-m", "octavo.tools.cli", "say", "Hello.", *map(str, SHORT), "--model", str(tiny_dir)]
    done = subprocess.run([*command, "-o", "-"], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"RIFF") and len(done.stdout) == 44 + 2 * 13 * 960
    assert b"0.52 s of sound" in done.stderr
    with open("/dev/full", "wb") as full:
        refused = subprocess.run([*command, "-o", "-"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert refused.returncode == 2 and "disk is full" in refused.stderr and "Traceback" not in refused.stderr


def test_greedy_needs_no_seed(say, tmp_path):
    for seed in (1, 2):
        arguments = ("--temperature", 0, "--seed", seed, "--max-rows", 16)
        assert say("Hello.", *arguments, "-o", tmp_path / f"{seed}.wav", "--codes", tmp_path / f"{seed}.npy").code == 0
    assert np.array_equal(np.load(tmp_path / "1.npy"), np.load(tmp_path / "2.npy"))


def test_without_the_guard_max_rows_is_the_only_cap(say, tmp_path, monkeypatch):
    seen = {}
    original = Engine.stream

    def stream(self, *args, **options):
        seen.update(options)
        return original(self, *args, **options)

    monkeypatch.setattr(Engine, "stream", stream)
    assert say("Hi.", *SHORT, "-o", tmp_path / "o.wav", "--no-guard", "--split", "none", "--top-p", 0.9).code == 0
    assert seen | {"max_rows": 20, "guard": False, "split": "none", "top_p": 0.9, "top_k": 50} == seen


def test_a_recording_is_cloned(say, tmp_path, recording):
    alone = ("Hello.", *SHORT, "--codes", tmp_path / "alone.npy", "-o", tmp_path / "o.wav")
    cloned = ("Hello.", *SHORT, "--codes", tmp_path / "cloned.npy", "-o", tmp_path / "o.wav")
    assert say(*alone).code == 0
    assert say(*cloned, "--ref-audio", recording(), "--ref-text", "Bzz.").code == 0
    assert not np.array_equal(np.load(tmp_path / "alone.npy"), np.load(tmp_path / "cloned.npy"))


@pytest.mark.parametrize("options, words", [({"channels": 8}, "8 channels"), ({"rate": 4000}, "4000 Hz")])
def test_odd_recordings_are_used_with_a_warning(say, tmp_path, recording, options, words):
    outcome = say("Hello.", *SHORT, "-o", tmp_path / "o.wav", "--ref-audio", recording(**options))
    assert outcome.code == 0 and words in outcome.err


def test_an_unknown_tag_is_spoken_with_a_warning(say, tmp_path):
    outcome = say("Hello <|emotion:hapy|> there.", *SHORT, "-o", tmp_path / "o.wav")
    assert outcome.code == 0 and "<|emotion:hapy|>" in outcome.err


def test_play_without_a_file(say, tmp_path, monkeypatch):
    heard = []
    monkeypatch.setattr("octavo.runtime.audio_writer.play", lambda pcm, rate=24_000: heard.append(len(pcm)))
    monkeypatch.chdir(tmp_path)
    assert say("Hello.", *SHORT, "--play").code == 0
    assert heard[-1] == 13 * 960 and not list(tmp_path.iterdir())
