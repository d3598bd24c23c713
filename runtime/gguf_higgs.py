"""A Higgs TTS v3 model in GGUF, whoever converted it: upstream names and shapes, config.json and tokenizer.json."""

from __future__ import annotations

import os

from .errors import CheckpointError
from .gguf import read_gguf
from .gguf_audiocpp import read_audiocpp
from .gguf_llama import read_higgstts_cpp, read_pair
from .gguf_model import HiggsGGUF, HiggsTensor
from .tensor_names import TEXT_EMBEDDING

__all__ = ["HiggsGGUF", "HiggsTensor", "open_higgs"]


def open_higgs(path: str | os.PathLike) -> HiggsGGUF:
    """Reads headers, no weights. Raises CheckpointError, also for a GGUF file of another architecture."""
    file = read_gguf(path)
    architecture = file.metadata.scalar("general.architecture")
    if file.metadata.scalar("split.count", 1) != 1:
        raise CheckpointError(f"{file.path} is one part of a split model. Join the parts with llama-gguf-split first.")
    if "audiocpp.tensor_names" in file.metadata or TEXT_EMBEDDING in file.tensors:
        return read_audiocpp(file)
    if architecture == "higgs-tts":
        return read_higgstts_cpp(file)
    if architecture == "qwen3" or "higgs_audio.format" in file.metadata:
        return read_pair(file)
    raise CheckpointError(
        f"{file.path} holds a model of the architecture {architecture!r:.60}; octavo runs Higgs TTS v3, in the "
        "layouts of audio.cpp, HiggsTTS.cpp and mirek190."
    )
