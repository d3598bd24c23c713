"""Speaking into memory and into WAV needs neither soundfile nor soxr; what does need them says so in a sentence."""

import subprocess
import sys

import pytest

BLOCKED = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {blocked}:
            raise {error}

sys.meta_path.insert(0, Blocker())
"""

SPEAK = """
import sys
import numpy as np
import octavo.runtime
from octavo.runtime import AudioError, Engine
from octavo.runtime.audio import read_audio

def refused(package, call):
    try:
        call()
    except AudioError as error:
        assert f"pip install {package}" in str(error), error
    else:
        raise AssertionError("it worked")

model, folder = sys.argv[1:]
noise = np.random.default_rng(0).uniform(-0.1, 0.1, 36_000).astype(np.float32)
with Engine.load(model, device="cpu") as engine:
    speech = engine.generate("Into memory.", seed=1, max_rows=20)
    voice = engine.encode_voice((noise, 24_000), transcript="Ssh.")
    assert len(engine.generate("In that voice.", voice, seed=1, max_rows=20).pcm)
    refused("soxr", lambda: engine.encode_voice((noise, 16_000)))
speech.save(f"{folder}/speech.wav")
refused("soundfile", lambda: speech.save(f"{folder}/speech.flac"))
refused("soundfile", lambda: read_audio(f"{folder}/speech.wav"))
print(len(speech.pcm))
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_speaking_needs_no_sound_library(tiny_dir, tmp_path):
    blocked = BLOCKED.format(blocked={"soundfile", "soxr"}, error="ImportError(name)")
    done = python(blocked + SPEAK, tiny_dir, tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 13 * 960
    assert [path.name for path in tmp_path.iterdir()] == ["speech.wav"], "what is refused leaves nothing"


@pytest.mark.parametrize("error, says", [("OSError('no library')", "libsndfile1"), ("ImportError(name)", "pip")])
def test_whatever_keeps_soundfile_from_loading(tmp_path, error, says):
    code = """
from octavo.runtime.audio_writer import write_audio
from octavo.runtime.errors import AudioError
import numpy as np, sys
try:
    write_audio(sys.argv[1] + "/a.flac", np.zeros(9, np.float32))
except AudioError as caught:
    print(caught)
"""
    done = python(BLOCKED.format(blocked={"soundfile"}, error=error) + code, tmp_path)
    assert says in done.stdout and not list(tmp_path.iterdir()), done
