"""The command line, called in this process, with a folder of voices of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from octavo.runtime.engine import Engine
from octavo.tools.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    def refused(self, *words: str) -> bool:
        """Whether it ended with code 2 and one sentence, with all of `words` in it and nothing else."""
        lines = self.err.strip().splitlines()
        assert self.code == 2 and not self.out, self
        assert lines[-1].startswith("octavo: ") and "Traceback" not in self.err, self
        assert all(word in lines[-1] for word in words), (words, self.err)
        return True


@pytest.fixture(autouse=True)
def voices_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "voices of this test"
    monkeypatch.setenv("OCTAVO_VOICES", str(folder))
    return folder


@pytest.fixture
def octavo(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def say(octavo, tiny_dir):
    return lambda *arguments: octavo("say", *arguments, "--model", tiny_dir, "--device", "cpu")


@pytest.fixture
def no_model(monkeypatch):
    """Fails a test whose bad input is noticed only once the model is loaded."""
    monkeypatch.setattr(Engine, "load", lambda *_, **__: pytest.fail("the model was loaded"))


@pytest.fixture
def recording(tmp_path):
    """Writes a reference: `seconds` of a soft buzz."""

    def write(name="ref.wav", seconds=1.5, rate=24_000, channels=1, level=0.2):
        time_axis = np.arange(int(seconds * rate)) / rate
        pcm = level * np.sign(np.sin(2 * np.pi * 120 * time_axis)) * (0.6 + 0.4 * np.sin(9 * time_axis))
        soundfile.write(tmp_path / name, np.repeat(pcm[:, None], channels, axis=1), rate, subtype="FLOAT")
        return tmp_path / name

    return write
