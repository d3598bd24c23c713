"""The tokenizer class of transformers in narrow widths, random weights; octavo's codec with the same weights."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from octavo.bench.codec_reference import reference_tokenizer
from octavo.runtime.checkpoint import Weights
from octavo.runtime.codec import Codec
from octavo.runtime.codec.encoder import CodecEncoder


@pytest.fixture(scope="session")
def reference() -> Any:
    return reference_tokenizer()


@pytest.fixture(scope="session")
def reference64() -> Any:
    return reference_tokenizer(dtype=torch.float64)


@pytest.fixture(scope="session")
def codec(reference: Any) -> Codec:
    return Codec.load(Weights(reference.state_dict()), "cpu")


@pytest.fixture(scope="session")
def codec64(reference64: Any) -> Codec:
    return Codec.load(Weights(reference64.state_dict()), "cpu", torch.float64)


@pytest.fixture(scope="session")
def encoder64(reference64: Any, codec64: Codec) -> CodecEncoder:
    return CodecEncoder(Weights(reference64.state_dict()), codec64.config, torch.float64)


@pytest.fixture(scope="session")
def voiced() -> np.ndarray:
    """Three seconds that sound like a vowel: a gliding pulse train through moving formants, pauses, a little noise."""
    rng = np.random.default_rng(1)
    t = np.arange(72_000) / 24_000
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * t)) / 24_000
    sound = np.zeros_like(t)
    for harmonic in range(1, 40):
        frequency = harmonic * 120
        formants = sum(
            np.exp(-(((frequency - centre - drift * np.sin(3 * t)) / width) ** 2))
            for centre, drift, width in ((600, 200, 150), (1500, 400, 200), (2600, 100, 300))
        )
        sound += (formants + 0.05) / harmonic**0.5 * np.sin(harmonic * phase)
    envelope = np.clip(np.sin(2 * np.pi * 1.3 * t), 0, None) ** 0.5
    return (0.1 * envelope * sound + 0.002 * rng.normal(size=len(t))).astype(np.float32)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """A sentence by espeak-ng at 24 kHz."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng to make speech")
    path: Path = tmp_path_factory.mktemp("speech") / "speech.wav"
    text = "The quick brown fox jumps over the lazy dog, and nobody has seen it since."
    subprocess.run(["espeak-ng", "-w", str(path), text], check=True)
    sound, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(sound, rate, 24_000)


@pytest.fixture
def codes() -> torch.Tensor:
    """[2, 8, 60] random codes."""
    return torch.randint(0, 1024, (2, 8, 60), generator=torch.Generator().manual_seed(3))
