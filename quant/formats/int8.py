"""8-bit integers with a scale for each row, as bitsandbytes stores the weights of LLM.int8.

    weight: int8 [N, K]    SCB: [N] fp32, the largest magnitude of the row        W = weight * SCB / 127

The activations' part of LLM.int8 (columns kept in 16 bits while computing) leaves no trace in a file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .grouped import Grouped


def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """weight: [N, K], finite. Returns the tensors above by name, rounded to nearest, half to even."""
    weight = weight.float()
    largest = weight.abs().amax(1)
    factor = torch.where(largest > 0, 127 / largest, 0)
    return {"weight": (weight * factor[:, None]).round_().to(torch.int8), "SCB": largest}


def decode(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> Grouped:
    """tensors: by name as above; shape: (N, K). One group per row. ValueError: shapes or dtypes that do not fit."""
    weight, largest = tensors["weight"], tensors["SCB"]
    fits = weight.dim() == 2 and tuple(weight.shape) == tuple(shape) and largest.numel() == len(weight)
    if weight.dtype != torch.int8 or not fits:
        raise ValueError(
            f"Weights in int8 want 'weight' int8 {tuple(shape)} and 'SCB', one number for each row, "
            f"not {weight.dtype} {tuple(weight.shape)} and {tuple(largest.shape)}."
        )
    if "weight_format" in tensors and int(tensors["weight_format"]) != 0:
        raise ValueError(
            "These int8 weights are in one of bitsandbytes' old GPU layouts, not in rows: "
            "load and save them with a recent bitsandbytes."
        )
    return Grouped(weight, largest.float().reshape(-1, 1) / 127)
