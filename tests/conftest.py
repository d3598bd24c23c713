"""Fixtures for all tests: the devices of this machine, the shared folder of facts, a tiny synthetic checkpoint."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# One thread per process: the tensors of these tests are too small to be worth splitting, and threads that wait for each
# other make timings jump. Set before torch is imported; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():  # kernels are interpreted; read when octavo.kernels is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

from octavo.kernels import launch
from octavo.runtime import engine
from octavo.tools.make_checkpoint import make_checkpoint

torch.set_num_threads(1)

# A shell's background job is started with Ctrl-C ignored, and hands that on; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a test that fails for one in a thousand must not stop somebody else's change.
hypothesis.settings.register_profile("octavo", derandomize=True, deadline=None)
hypothesis.settings.load_profile("octavo")


@pytest.fixture(autouse=True)
def same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without a seed draws 1, 2, 3, ... in each test: random weights may end an utterance at any row."""
    seeds = itertools.count(1)
    monkeypatch.setattr(engine.secrets, "randbits", lambda bits: next(seeds))


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Voices and cached codes of the tests stay out of the user's folders, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_VOICES", str(tmp_path_factory.mktemp("user") / "voices"))
        patch.setenv("OCTAVO_CACHE", str(tmp_path_factory.mktemp("user") / "cache"))
        yield


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, and the CUDA device where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where ops launch their kernels: on the CPU under Triton's interpreter, or on CUDA, compiled."""
    pytest.importorskip("triton")
    cuda = torch.cuda.is_available()
    if (request.param == "cuda") != cuda:
        pytest.skip("no CUDA device" if not cuda else "compiled on this machine, not interpreted")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns with NaN
    with launch.forced():
        yield torch.device("cuda" if cuda else "cpu")
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of specifications and test data beside the repository; tests that read it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs ../shared, which is not here")
    return folder


@pytest.fixture(scope="session")
def published_tokenizer(shared: Path) -> Path:
    """The published tokenizer.json."""
    file = shared / "data" / "tokenizer" / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"needs {file.name} of ../shared/data, which is not here")
    return file


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny synthetic checkpoint, seed 0. Read-only by agreement: a test that damages one makes a copy."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", size="tiny", seed=0)
