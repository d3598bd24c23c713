"""What quantized matrices take on a device, found by laying out a few rows of each kind: no formula per format."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from octavo.kernels.packed import Packed
from octavo.quant.formats.grouped import Grouped

from .checkpoint import Checkpoint
from .config import ModelConfig
from .layers.linear import Linear
from .models.qwen3 import PRODUCTS
from .tensor_names import BODY

ROWS = 64  # of each part: layouts may pad to 16 rows, which real matrices are a multiple of


def body_bytes(checkpoint: Checkpoint, model: ModelConfig, device: torch.device) -> Callable[[torch.dtype], int]:
    """dtype of the activations -> bytes of all layers' matrices and norms, as `Qwen3Layer.load` would lay them out.

    Each combination of formats is tried once, on the first layer that has it.
    """

    @cache
    def matrix(kinds: tuple[str, ...], number: int, name: str, dtype: torch.dtype) -> tuple[float, bool]:
        """(bytes per row, whether it is packed) of a product; kinds alone tell one from another."""
        parts = [checkpoint.matrix(f"{BODY}{number}.{part}.weight") for part in PRODUCTS[name]]
        few = [part[:ROWS] if isinstance(part, torch.Tensor) else _rows(part) for part in parts]
        linear = Linear(few[0].shape[1], sum(part.shape[0] for part in few), device, dtype)
        linear.load(*few)
        if isinstance(linear.weight, Packed):
            return linear.weight.nbytes / linear.outputs, True
        return linear.inputs * dtype.itemsize, False

    @cache
    def total(dtype: torch.dtype) -> int:
        first: dict[tuple[str, tuple[str, ...]], int] = {}
        nbytes = 0.0
        for number in range(model.num_layers):
            for name, parts in PRODUCTS.items():
                infos = [checkpoint.info[f"{BODY}{number}.{part}.weight"] for part in parts]
                kinds = tuple(info.kind for info in infos)
                per_row, packed = matrix(kinds, first.setdefault((name, kinds), number), name, dtype)
                nbytes += per_row * sum(info.shape[0] for info in infos)
                if name in ("qkv", "gate_up"):
                    nbytes += model.hidden_size * (4 if packed else dtype.itemsize)  # the norm before it
            nbytes += (model.num_heads + model.num_kv_heads) * model.head_dim * dtype.itemsize
        return round(nbytes) + model.hidden_size * dtype.itemsize

    return total


def _rows(part: Grouped) -> Grouped:
    offset = None if part.offset is None else part.offset[:ROWS]
    return Grouped(part.codes[:ROWS], part.scale[:ROWS], offset, part.levels)
