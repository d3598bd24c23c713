"""What every reader of a Higgs TTS v3 model in GGUF gives: tensors by upstream name, and what stands beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .config import MODEL_TYPE
from .errors import CheckpointError
from .gguf import GGUFFile, GGUFTensor


@dataclass(frozen=True)
class HiggsTensor:
    """`stored`: type and place in `file`; `shape`: the upstream one; `swapped`: a transposed convolution's weight
    [in, out, taps] is stored as [out * taps, in]."""

    file: Path
    stored: GGUFTensor
    shape: tuple[int, ...]
    swapped: bool = False

    def restore(self, values: torch.Tensor) -> torch.Tensor:
        """Values in the file's order, of any shape -> `shape`."""
        if self.swapped:
            return values.reshape(self.stored.shape).T.reshape(self.shape)
        return values.reshape(self.shape)


@dataclass(frozen=True)
class HiggsGGUF:
    """config: as in config.json; tensors: by upstream name, `tied.head.*` where stored; files: the first is the one
    that was opened; tokenizer(): the content of tokenizer.json, read or built when called (CheckpointError)."""

    config: dict
    tensors: dict[str, HiggsTensor]
    files: tuple[GGUFFile, ...]
    tokenizer: Callable[[], bytes]


def place(file: GGUFFile, name: str, stored: GGUFTensor, shape: tuple[int, ...], swapped: bool = False) -> HiggsTensor:
    """`stored` as the upstream tensor `name`. CheckpointError when it cannot have that shape."""
    if min(shape, default=0) < 0 or math.prod(shape) != math.prod(stored.shape):
        raise CheckpointError(
            f"{file.path} stores {name} with shape {list(stored.shape)}, which cannot be {list(shape)}. "
            "Download it again."
        )
    return HiggsTensor(file.path, stored, shape, swapped)


def required(file: GGUFFile, key: str) -> Any:
    """The value of a key that must be there. Raises CheckpointError."""
    if key not in file.metadata:
        raise CheckpointError(
            f"{file.path} lacks the key {key}. It is damaged, or of a converter octavo does not know."
        )
    return file.metadata.scalar(key)


def config(text: Mapping[str, Any], audio: Mapping[str, Any]) -> dict:
    """config.json of the published layout, as far as octavo reads it."""
    return {
        "model_type": MODEL_TYPE,
        "text_config": {"model_type": "qwen3", **text},
        "audio_encoder_config": {"model_type": "higgs_audio_encoder", "encoder_type": "discrete", **audio},
    }
