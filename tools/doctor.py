"""Say what this machine can run and, where it cannot, why: one line each."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .inventory import CODEC, CODECS, MODELS, inventory

if TYPE_CHECKING:
    import torch

    from octavo.runtime.codec.config import CodecConfig
    from octavo.runtime.config import ModelConfig

_REQUIRED = ("torch", "safetensors", "tokenizers", "numpy", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    """Prints the lines; 0 unless nothing can run, then 1. Whatever a check raises becomes its line."""
    for name, check in CHECKS.items():
        try:
            line = check()
        except Exception as error:  # a broken driver or library may raise anything; the others still get their line
            line = f"no: {type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{name:<14}{line}")
    return 1 if _unusable() else 0


def _unusable() -> list[str]:
    """Which required libraries do not import, with the reason."""
    reasons = []
    for name in _REQUIRED:
        try:
            importlib.import_module(name)
        except Exception as error:  # an OSError from a missing shared library, for one
            reasons.append(f"{name} ({' '.join(str(error).split())})")
    return reasons


def _octavo() -> str:
    version = importlib.metadata.version("octavo")
    unusable = _unusable()
    return f"no: {version} cannot run without {', '.join(unusable)}" if unusable else f"{version}, can run"


def _python() -> str:
    line = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return line if sys.version_info >= (3, 11) else f"no: {line}; octavo needs Python 3.11 or newer"


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
        return "; ".join(f"{p.name}, capability {p.major}.{p.minor}, {p.total_memory / 1e9:.1f} GB" for p in found)
    if torch.version.cuda is None:
        return "no: this torch was built without CUDA; the CPU is used"
    driver = "a driver is there, but shows no device" if shutil.which("nvidia-smi") else "no NVIDIA driver found"
    return f"no: {driver}; the CPU is used"


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "not installed; only CUDA needs it"


def _sound_files() -> str:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        return f"no: {error}; WAV can be written, for the rest: pip install soundfile"
    can = soundfile.available_formats()
    subtypes = {subtype for container in can for subtype in soundfile.available_subtypes(container)}
    formats = {"wav": "WAV" in can, "flac": "FLAC" in can, "ogg": "VORBIS" in subtypes, "opus": "OPUS" in subtypes,
               "mp3": "MPEG_LAYER_III" in subtypes}  # fmt: skip
    missing = [name for name, there in formats.items() if not there]
    line = f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}: "
    line += ", ".join(name for name, there in formats.items() if there)
    return line + (f"; no {', '.join(missing)}: a newer libsndfile has them" if missing else "")


def _resampling() -> str:
    try:
        import soxr
    except ImportError:
        return "no: recordings that are not at 24 kHz need it: pip install soxr"
    return f"soxr {soxr.__version__}"


def _memory() -> str:
    import torch

    from octavo.runtime.memory_plan import device_memory

    total, free = device_memory(torch.device("cpu"))
    return f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB free"


def _fit(dtype: str) -> str:
    """What the published 4B model would find room for in the memory that is free now, on each device."""
    import torch

    from octavo.runtime.memory_plan import device_memory

    devices = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    return "; ".join(fit(dtype, torch.device(name), device_memory(torch.device(name))[1]) for name in devices)


def fit(dtype: str, device: torch.device, free: int) -> str:
    """The same on one device, of which `free` bytes are free."""
    from octavo.runtime.config import EngineConfig
    from octavo.runtime.devices import DTYPES
    from octavo.runtime.errors import CapacityError
    from octavo.runtime.memory_plan import LEAST_ROWS, plan, size

    shape = (*published(), DTYPES[dtype], device)
    try:
        found = plan(*shape, free)
    except CapacityError:
        one = EngineConfig(max_batch=1, kv_rows=LEAST_ROWS)
        needed = plan(*shape, 1 << 60, one, keep=("max_batch", "kv_rows"), encoder=False).total
        return f"{device}: does not fit, needs {size(needed)}"
    return f"{device}: {found.summary} in {size(found.total)}"


def published() -> tuple[ModelConfig, CodecConfig]:
    """The shapes of the published checkpoint."""
    import torch

    from octavo.runtime.checkpoint import Weights
    from octavo.runtime.codec.config import CodecConfig
    from octavo.runtime.config import ModelConfig

    from .layout import config

    specs = inventory(MODELS["4b"], CODECS["real"], tied_copies=False)
    tensors = {spec.name: torch.empty(spec.shape, device="meta") for spec in specs}
    model = ModelConfig.from_checkpoint(config(MODELS["4b"]))
    return model, CodecConfig.from_weights(Weights(tensors, CODEC))


def _model_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return _folder(Path(HF_HUB_CACHE))


def _voices() -> str:
    from octavo.runtime.voice import VoiceStore

    store = VoiceStore()
    return f"{_folder(store.folder)}, {len(store.list())} voice(s)"


def _folder(folder: Path) -> str:
    """Whether files can be written to `folder`, or it can be made. Makes nothing."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return f"no: {folder} cannot be written"
    return f"{folder}{'' if there == folder else ' (not made yet)'}, {shutil.disk_usage(there).free / 1e9:.0f} GB free"


def _sound_card() -> str:
    try:
        import sounddevice
    except ImportError:
        return "no: --play needs sounddevice; install it with: pip install 'octavo[audio]'"
    except OSError:
        return "no: --play needs the PortAudio library; on Debian: apt install libportaudio2"
    return sounddevice.query_devices(kind="output")["name"]


CHECKS: dict[str, Callable[[], str]] = {
    "octavo": _octavo,
    "Python": _python,
    "torch": _torch,
    "CUDA": _cuda,
    "triton": _triton,
    "sound files": _sound_files,
    "resampling": _resampling,
    "memory": _memory,
    "4b in bf16": lambda: _fit("bf16"),
    "4b in fp32": lambda: _fit("fp32"),
    "model cache": _model_cache,
    "voices": _voices,
    "sound card": _sound_card,
}
