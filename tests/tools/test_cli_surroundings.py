"""What surrounds a command: signals, closed streams, and files that are read and written at once."""

import shutil
import signal
import subprocess
import sys
import time

import pytest

from octavo.runtime import CheckpointError
from octavo.tools import inspect
from octavo.tools.make_checkpoint import make_checkpoint

OCTAVO = [sys.executable, "-m", "octavo.tools.cli"]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP], ids=lambda kind: kind.name)
def test_a_signal_leaves_nothing_behind(tiny_dir, tmp_path, kind):
    text = "A long text that takes its time. " * 400
    say = [*OCTAVO, "say", text, "--model", tiny_dir, "--device", "cpu", "-o", tmp_path / "out.wav"]
    process = subprocess.Popen(say, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.iterdir()):  # the hidden file is there: it has begun
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(kind)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err, list(tmp_path.iterdir())) == (128 + kind, "", [])


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_reason_to_fail(tiny_dir, tmp_path, closed):
    say = f'exec "$0" "$@" {closed}'
    arguments = ["say", "Hi.", "--model", tiny_dir, "--max-rows", "20", "--device", "cpu", "-o", tmp_path / "out.wav"]
    done = subprocess.run(["sh", "-c", say, *OCTAVO, *arguments], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done
    assert (tmp_path / "out.wav").stat().st_size > 1000


def test_what_is_read_is_not_written(say, recording, tmp_path):
    audio = recording(seconds=2)
    before = audio.read_bytes()
    assert say("Hi.", "--ref-audio", audio, "-o", audio).refused(str(audio), "is read as well")
    assert audio.read_bytes() == before
    text = tmp_path / "text.srt"
    text.write_text("Hello.")
    assert say("-f", text, "-o", tmp_path / "out.wav", "--srt", text).refused("is read as well")
    assert text.read_text() == "Hello."


@pytest.mark.parametrize("option", ["-o", "--voice", "--ref-audio", "--codes", "--srt"])
def test_an_empty_value_is_not_a_missing_one(say, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    assert say("Hi.", option, "").refused("is empty")
    assert list(tmp_path.iterdir()) == []


def test_inspect_names_what_loading_would_refuse(octavo, tmp_path):
    """From the headers alone: one layer fewer in the config than in the file, and a codec of other widths."""
    folder = make_checkpoint(tmp_path / "a", size="tiny")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 3'))
    assert octavo("inspect", folder).refused("body.layers.3", "left over")
    shutil.rmtree(folder)
    assert octavo("inspect", folder).refused(str(folder))
    with pytest.raises(CheckpointError):
        inspect.run(type("Arguments", (), {"model": str(tmp_path), "json": False, "tensors": False}))
