"""The models octavo runs. A new one is a file here, a line in `_MODELS`, and what its class says of `Model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from octavo.kernels.rows import Rows

from ..checkpoint import Checkpoint
from ..config import MODEL_TYPE, ModelConfig
from ..errors import CheckpointError
from ..layers.linear import Linear
from ..tensor_names import CODEC_PREFIX
from .higgs_v3 import HiggsV3, check_layout


class Model(Protocol):
    """What the runner asks of a model; shapes as in `higgs_v3`."""

    cfg: ModelConfig

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def embed_text(self, ids: torch.Tensor) -> torch.Tensor: ...
    def embed_audio(self, rows: torch.Tensor) -> torch.Tensor: ...
    def start_row(
        self,
        last: torch.Tensor,
        row: torch.Tensor,
        prompt: torch.Tensor,
        active: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor: ...
    def modules(self) -> Iterator[torch.nn.Module]: ...
    def __call__(self, x: torch.Tensor, rows: Rows, pages: torch.Tensor) -> torch.Tensor: ...
    def logits(self, hidden: torch.Tensor) -> torch.Tensor: ...


_MODELS = {MODEL_TYPE: HiggsV3}


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[int, int], None],
    deterministic: bool = False,
) -> Model:
    """The checkpoint's model on `device`; `progress(done, total)` counts layers. Raises CheckpointError.

    deterministic: a row's result never hangs on what other rows are computed with it.
    """
    kind = checkpoint.config.get("model_type")
    if kind not in _MODELS:
        raise CheckpointError(f"config.json says model_type {kind!r}; octavo runs: {', '.join(_MODELS)}.")
    model = _MODELS[kind].load(checkpoint, device, dtype, progress)
    for module in model.modules():
        if isinstance(module, Linear):
            module.deterministic = deterministic
    return model


__all__ = ["CODEC_PREFIX", "Model", "check_layout", "load_model"]
