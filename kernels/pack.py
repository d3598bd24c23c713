"""Codes, scales and offsets -> what `linear` takes as its weight: the layout for the device and the activations."""

from __future__ import annotations

import torch

from .cpu_packed import pack_cpu
from .fp8 import Fp8
from .int4 import Int4
from .int8 import Int8
from .launch import on_triton
from .packed import Packed


def pack(
    codes: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    levels: torch.Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Packed | None:
    """codes: [OUT, IN] uint8 in 0..15, int8 or float8_e4m3fn; scale, offset: [OUT, G] fp32; levels: [16] fp32 or None;
    all on the CPU. dtype: of the activations. None: nothing on this device multiplies the like, or nothing but plain
    numbers is as fast."""
    if device.type == "cpu" and not on_triton(codes):
        return pack_cpu(codes, scale, offset, levels, dtype)
    columns, groups = codes.shape[1], scale.shape[1]
    group = columns // groups
    if codes.dtype == torch.float8_e4m3fn:
        return Fp8.pack(codes, scale, device) if groups == 1 else None
    if codes.dtype == torch.int8:
        fits = groups == 1 or (group >= 16 and group & (group - 1) == 0)
        return Int8.pack(codes, scale, offset, device) if fits else None
    return Int4.pack(codes, scale, offset, levels, device) if columns % 32 == 0 and group % 16 == 0 else None
