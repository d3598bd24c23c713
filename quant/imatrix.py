"""The importance of input channels: how strongly each is driven, for encoders that weigh their errors by it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.runtime.models.qwen3 import PRODUCTS
from octavo.runtime.tensor_names import BODY

from .walk import Walk


def collect(walk: Walk, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, torch.Tensor]:
    """For each matrix of the body, by name: the mean of x^2 over the walk's rows, as these weigh, [K] fp32 on the CPU.
    A matrix that never got anything but zeros is left out.

    `progress(layers done, layers in all)` is called after each layer. Raises CheckpointError.
    """
    share = (walk.weights / walk.weights.sum())[:, None]
    importance: dict[str, torch.Tensor] = {}
    for step in walk.layers(capture=True):
        for product, modules in PRODUCTS.items():
            energy = (step.inputs[product].float().square_() * share).sum(0).cpu()
            if energy.any():
                importance |= {f"{BODY}{step.number}.{module}.weight": energy for module in modules}
        progress(step.number + 1, walk.cfg.num_layers)
    return importance
