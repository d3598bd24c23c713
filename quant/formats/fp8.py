"""8-bit floats (e4m3) with a scale for each row, as compressed-tensors stores them ("float-quantized",
strategy "channel").

weight: float8_e4m3fn [N, K]    weight_scale: [N, 1] fp32        W = weight * weight_scale
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .grouped import Grouped

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448


def encode(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """weight: [N, K], finite. Returns the tensors above by name, rounded to nearest, half to even."""
    weight = weight.float()
    scale = weight.abs().amax(1, keepdim=True) / LARGEST
    scale[scale == 0] = 1  # a row of zeros
    # Beyond the largest number older torch gives NaN, and a subnormal scale may be rounded by that much.
    codes = (weight / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}


def decode(tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> Grouped:
    """tensors: by name as above, or one scale for the whole matrix; shape: (N, K). One group per row.

    ValueError: shapes or dtypes that do not fit.
    """
    weight, scale = tensors["weight"], tensors["weight_scale"]
    fits = weight.dim() == 2 and tuple(weight.shape) == tuple(shape) and scale.numel() in (1, len(weight))
    if weight.dtype != torch.float8_e4m3fn or not fits:
        raise ValueError(
            f"Weights in fp8 want 'weight' float8_e4m3fn {tuple(shape)} and 'weight_scale', one number for each row, "
            f"not {weight.dtype} {tuple(weight.shape)} and {tuple(scale.shape)}."
        )
    return Grouped(weight, scale.float().reshape(-1, 1).expand(shape[0], 1).contiguous())
