"""`octavo say` with bad input: code 2, one sentence, nothing half-written; before the model loads where it can be."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from octavo.runtime.errors import RequestError
from octavo.tools.make_checkpoint import make_checkpoint

SHORT = ("--seed", 1, "--max-rows", 20)  # 13 frames: about half a second


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([""], ["empty"]),
        ([" \n\t"], ["empty"]),
        (["a" * 20_001], ["20,001", "20,000"]),
        (["broken \udcff"], ["UTF-8"]),
        (["-f", "absent.txt"], ["absent.txt cannot be read"]),
        ([], ["Give the text"]),
        (["Hello.", "-f", "absent.txt"], ["one of the two"]),
        (["<|emotion:hapy|> Hello.", "--strict"], ["<|emotion:hapy|>"]),
        (["Hello.", "-o", "out.xyz"], ["'xyz'", ".wav"]),
        (["Hello.", "-o", "out"], ["suffix"]),
        (["Hello.", "-o", "absent/out.wav"], ["absent/out.wav", "folder"]),
        (["Hello.", "-o", "."], []),
        (["Hello.", "--codes", "out.txt"], [".npy"]),
        (["Hello.", "--codes", "absent/c.npy"], ["absent/c.npy"]),
        (["Hello.", "--srt", "out.txt"], [".srt or .vtt"]),
        (["Hello.", "--srt", "absent/out.srt"], ["absent/out.srt"]),
        (["Hello.", "--temperature", "-1"], ["temperature"]),
        (["Hello.", "--temperature", "nan"], ["temperature"]),
        (["Hello.", "--top-k", "-2"], ["top_k"]),
        (["Hello.", "--top-p", "1.5"], ["top_p"]),
        (["Hello.", "--max-rows", "7"], ["max_rows"]),
        (["Hello.", "--seed", "-1"], ["seed"]),
        (["Hello.", "--voice", "nobody"], ["nobody"]),
        (["Hello.", "--voice", "absent.safetensors"], ["absent.safetensors"]),
        (["Hello.", "--voice", "a", "--ref-audio", "b.wav"], ["one of the two"]),
        (["Hello.", "--ref-text", "x"], ["--ref-audio"]),
        (["Hello.", "--ref-audio", "absent.wav"], ["absent.wav"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_requests(say, no_model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert say(*arguments).refused(*words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"seconds": 0.2}, ["0.2 s"]),
        ({"seconds": 600, "rate": 8000}, ["30 s"]),
        ({"level": 0}, ["silent"]),
        ({"level": np.nan}, ["NaN"]),
        ({"seconds": 0}, []),
    ],
    ids=str,
)
def test_bad_recordings(say, no_model, tmp_path, recording, options, words):
    reference = recording(**options)
    assert say("Hello.", "-o", tmp_path / "o.wav", "--ref-audio", reference).refused(*words)
    assert list(tmp_path.iterdir()) == [reference]


@pytest.mark.parametrize("content", [b"", b"This is no sound. " * 100, bytes(5000)], ids=["empty", "text", "zeros"])
def test_recordings_that_are_no_sound(say, no_model, tmp_path, content):
    (tmp_path / "ref.wav").write_bytes(content)
    assert say("Hello.", "-o", tmp_path / "o.wav", "--ref-audio", tmp_path / "ref.wav").refused("ref.wav")


def test_broken_utf8(say, no_model, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_bytes("Grüß Gott.".encode("latin-1"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert say("-f", tmp_path / "text.txt").refused("text.txt", "UTF-8")
    assert say("-").refused("Standard input", "UTF-8")


def test_a_folder_without_permission(say, no_model, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("root may write anywhere")
    assert say("Hello.", "-o", tmp_path / "locked" / "o.wav").refused("permission")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_takes_no_files(say, no_model):
    assert say("Hello.", "-o", "/proc/o.wav").refused("/proc/o.wav")


def test_play_without_a_sound_library(say, no_model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.chdir(tmp_path)
    assert say("Hello.", "--play").refused("octavo[audio]")


def test_without_a_model(octavo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert octavo("say", "Hello.").refused("--model", "make_checkpoint")
    assert octavo("say", "Hello.", "--model", "org/name").refused("org/name", "--download")
    assert octavo("say", "Hello.", "--model", "absent").refused("absent")
    assert not list(tmp_path.iterdir())


def test_a_voice_of_another_codec(say, octavo, tmp_path, tiny_dir, voices_folder):
    other = make_checkpoint(tmp_path / "other", seed=9)
    assert octavo("voices", "make", "eve", "--seed", 1, "--text", "Hi.", "--model", other).code == 0
    assert say("Hello.", *SHORT, "-o", tmp_path / "o.wav", "--voice", "eve").refused("eve", "another codec")
    assert not (tmp_path / "o.wav").exists()


def truncate(folder):
    os.truncate(folder / "model.safetensors", 1_000_000)


def drop_indexed_shard(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def rewrite(change):
    def how(folder):
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        (folder / "model.safetensors.index.json").unlink()

    return how


def remove(tensors):
    del tensors["body.layers.1.mlp.up_proj.weight"]


def reshape(tensors):
    tensors["body.norm.weight"] = tensors["body.norm.weight"][:-1].clone()


def add(tensors):
    tensors["body.layers.1.mlp.extra.weight"] = tensors["body.norm.weight"].clone()


def other_architecture(folder):
    content = json.loads((folder / "config.json").read_text())
    content |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "damage, words",
    [
        (truncate, ["model.safetensors is truncated"]),
        (drop_indexed_shard, ["lacks model.safetensors"]),
        (rewrite(remove), ["body.layers.1.mlp.up_proj.weight"]),
        (rewrite(reshape), ["body.norm.weight", "255"]),
        (rewrite(add), ["body.layers.1.mlp.extra.weight"]),
        (other_architecture, ["llama"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["not JSON"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), ["tokenizer.json"]),
    ],
)
def test_damaged_checkpoints(octavo, tmp_path, tiny_dir, damage, words):
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    damage(folder)
    assert octavo("say", "Hello.", "--model", folder, "-o", tmp_path / "o.wav").refused(*words)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# In the middle: what stood at the output's name stays as it was, and no partial file is left.


@contextlib.contextmanager
def largest_file(size):
    """A disk that is full after `size` bytes, as far as this process's files go."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_full_disk(say, tmp_path, suffix):
    (tmp_path / f"o.{suffix}").write_bytes(b"precious")
    with largest_file(2000):
        outcome = say("Hello.", "--seed", 1, "--max-rows", 60, "-o", tmp_path / f"o.{suffix}")
    assert outcome.refused(f"o.{suffix}")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_the_sound_is_kept_when_the_codes_cannot_be_written(say, tmp_path, monkeypatch):
    def full(path, *_):
        raise RequestError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr("octavo.runtime.files.write_atomic", full)
    outcome = say("Hello.", *SHORT, "--codes", tmp_path / "c.npy", "-o", tmp_path / "o.wav")
    assert outcome.refused("c.npy") and [path.name for path in tmp_path.iterdir()] == ["o.wav"]


def test_ctrl_c_in_the_middle(tiny_dir, tmp_path):
    (tmp_path / "o.wav").write_bytes(b"precious")
    endless = ["Hello.", "--no-guard", "--split", "none", "--max-rows", "4000", "--seed", "1"]
    command = [sys.executable, "-m", "octavo.tools.cli", "say", *endless, "--model", str(tiny_dir)]
    process = subprocess.Popen([*command, "-o", str(tmp_path / "o.wav")], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while max(path.stat().st_size for path in tmp_path.iterdir()) < 50_000:  # a second of sound lies in the hidden file
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == ""
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


def test_a_bug_in_the_middle_leaves_nothing(say, tmp_path, monkeypatch):
    monkeypatch.setattr("octavo.runtime.audio_writer.AudioWriter.write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        say("Hello.", *SHORT, "-o", tmp_path / "o.wav")
    assert not list(tmp_path.iterdir())
