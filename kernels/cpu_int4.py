"""y = x W^T on the CPU, with W in 4 bits: torch's own product, which makes fp32 of the codes in registers.

    W[o, i] = (codes[o, i] - 8) * S[o, i // group] + Z[o, i // group]      S = scale, Z = offset + 8 * scale, both bf16

S and Z are all that is rounded; a bf16 weight would be rounded as much. The product is fast for bf16 x only: x of
fp16 becomes bf16, and x of fp32 meets W as plain numbers, which is exact but slow. A row costs its own arithmetic,
however many rows there are: many rows belong to another layout (cpu_packed.py).
"""

from __future__ import annotations

import torch

from .cpu_int8 import finish
from .huge_pages import use_huge_pages
from .packed import Packed
from .rms_norm import rms_norm_ref

GROUPS = (256, 128, 64, 32)  # that the op knows
BLOCK = 64  # rows that the op wants to take together; it pads nothing itself
CHUNK = 16 * BLOCK  # rows that are int32 at one time, while W is packed
IDENTITY = 256  # columns of W that `dense` reads at one time


def group_of(codes: torch.Tensor, scale: torch.Tensor, levels: torch.Tensor | None) -> int | None:
    """The group that such a matrix takes here; None: it has no 4-bit product. Larger groups repeat their scales."""
    if codes.dtype != torch.uint8 or levels is not None:
        return None
    return next((group for group in GROUPS if codes.shape[1] // scale.shape[1] % group == 0), None)


class CpuInt4(Packed):
    def __init__(self, codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None):
        """codes: [OUT, IN] uint8 in 0..15; scale, offset: [OUT, G] fp32; `group_of` them is not None."""
        OUT, IN = self.shape = codes.shape[0], codes.shape[1]
        group = group_of(codes, scale, None)
        assert group, (codes.dtype, codes.shape, scale.shape)
        self.group, rows = group, -(-OUT // BLOCK) * BLOCK
        self._words = torch.empty(rows, IN // 2, dtype=torch.uint8)  # rows of a block lie mixed
        for first in range(0, rows, CHUNK):
            part = torch.zeros(min(CHUNK, rows - first), IN, dtype=torch.int32)
            part[: OUT - first] = codes[first : first + CHUNK]
            self._words[first : first + CHUNK] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(part, 1)
        self._scales = torch.zeros(IN // group, rows, 2, dtype=torch.bfloat16)
        zero = 8 * scale if offset is None else 8 * scale + offset
        for part, values in zip(self._scales.unbind(2), (scale, zero), strict=True):
            part[:, :OUT] = values.repeat_interleave(IN // group // scale.shape[1], 1).t()
        for tensor in (self._words, self._scales):
            use_huge_pages(tensor.data_ptr(), tensor.nbytes)

    def linear(
        self,
        x: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
        swiglu: bool = False,
        deterministic: bool = False,
    ) -> torch.Tensor:
        assert x.shape[1] == self.shape[1], (x.shape, self.shape)
        h = x if norm is None else rms_norm_ref(x.float(), norm.float(), eps)
        if x.dtype == torch.float32:
            y = h @ self.dense(torch.float32).t()
        else:
            y = self._product(h.bfloat16(), self._scales)
        return finish(y.float() if swiglu else y, x.dtype, residual, swiglu)

    def _product(self, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """x: [N, IN] bf16 -> [N, OUT] bf16. Each row's sums are its own: `deterministic` asks for nothing else."""
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), self._words, self.group, scales)[
            :, : self.shape[0]
        ]

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """How the words lie is the op's secret. It tells the codes itself, with unit rows for x and no scales."""
        (OUT, IN), group = self.shape, self.group
        plain = torch.zeros_like(self._scales)
        plain[:, :, 0] = 1
        W = torch.empty(OUT, IN)
        for first in range(0, IN, IDENTITY):
            unit = torch.zeros(min(IDENTITY, IN - first), IN, dtype=torch.bfloat16)
            unit.diagonal(first).fill_(1)
            W[:, first : first + IDENTITY] = self._product(unit, plain).t()
        S, Z = self._scales[:, :OUT].float().permute(2, 1, 0).unsqueeze(3)
        return W.view(OUT, -1, group).mul_(S).add_(Z).view(OUT, IN).to(dtype)

    def tensors(self) -> list[torch.Tensor]:
        return [self._words, self._scales]
