"""Weights as int8 codes with a scale for each row, or a scale and perhaps an offset for each group of columns.

W[o, i] = codes[o, i] * scale[o, i // group] + offset[o, i // group]
"""

from __future__ import annotations

import torch

from .byte_code import Bytes, unit_of
from .byte_weight import ByteWeight


class Int8(ByteWeight):
    @classmethod
    def pack(cls, codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, device: torch.device) -> Int8:
        """codes: [OUT, IN] int8; scale, offset: [OUT, G] fp32, IN = G * 16, 32, 64, ... or G = 1."""
        (OUT, IN), G = codes.shape, scale.shape[1]
        group = IN // G
        assert codes.dtype == torch.int8 and scale.shape == (OUT, G) and IN == G * group, (codes.shape, scale.shape)
        assert offset is None or offset.shape == scale.shape, (offset.shape, scale.shape)
        stored = torch.full((OUT, -(-IN // 16) * 16), 128, dtype=torch.uint8)
        stored[:, :IN] = codes.view(torch.uint8) ^ 128
        if G == 1 and offset is None:
            return cls(Bytes(stored.to(device), scale[:, 0].float().to(device), None, 0, 1.0, IN, False), (OUT, IN))
        if G == 1:
            group = 1 << (IN - 1).bit_length()  # one group, which the columns do not fill
        assert group >= 16 and group & (group - 1) == 0, f"groups of {group} columns"
        unit = unit_of(scale, offset)
        offset = None if offset is None else _halves(offset, unit).to(device)
        return cls(Bytes(stored.to(device), _halves(scale, unit).to(device), offset, group, unit, IN, False), (OUT, IN))


def _halves(numbers: torch.Tensor, unit: float) -> torch.Tensor:
    """[OUT, G] -> fp16 in `unit`, with a column more where G is odd: kernels load two at a time."""
    OUT, G = numbers.shape
    halves = torch.zeros(OUT, G + G % 2, dtype=torch.float16)
    halves[:, :G] = numbers / unit
    return halves
