"""Which layout a quantized weight takes on the CPU, and which of two a product reads."""

from __future__ import annotations

import torch

from .cpu_int4 import CpuInt4, group_of
from .cpu_int8 import CpuInt8, has_byte_products, keeps
from .packed import Packed

FEW = 2  # rows of x


def pack_cpu(
    codes: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    levels: torch.Tensor | None,
    dtype: torch.dtype,
) -> Packed | None:
    """As `kernels.pack.pack`. None: plain numbers are as fast, or with fp32 the only exact way.

    fp32: bytes with one scale a row stay bytes; whatever would have to be rounded becomes plain numbers.
    16 bits: 4-bit codes in the groups of torch's product are held twice, in 4 bits for one row and in 8 for many;
    the rest (8 bits in groups, tables of levels, fp8) is held in 8 bits with one scale a row. Where the processor has
    no products of bytes, only the 4 bits are left.
    """
    bytes_ = has_byte_products()
    if dtype == torch.float32:
        return CpuInt8.pack(codes, scale) if bytes_ and keeps(codes, scale, offset) else None
    four = CpuInt4(codes, scale, offset) if group_of(codes, scale, levels) else None
    if not bytes_:
        return four
    eight = CpuInt8.pack(codes, scale, offset, levels)
    return FewAndMany(four, eight) if four else eight


class FewAndMany(Packed):
    """W in 4 bits for FEW rows, which wait for memory, and in 8 for more, which wait for arithmetic.

    The 4-bit product does the arithmetic of making numbers of codes and then that of each row: it loses to bf16 from
    a few rows on. Making bf16 of W for each product costs as much as hundreds of rows. The bytes are never slower than
    bf16. Both together take three quarters of what bf16 takes.
    """

    def __init__(self, few: CpuInt4, many: CpuInt8):
        self.few, self.many, self.shape = few, many, few.shape

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
        exact = deterministic or x.dtype == torch.float32
        layout: Packed = self.few if len(x) <= FEW or exact else self.many
        return layout.linear(x, norm=norm, eps=eps, residual=residual, swiglu=swiglu, deterministic=deterministic)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return self.few.dense(dtype)

    def tensors(self) -> list[torch.Tensor]:
        return self.few.tensors() + self.many.tensors()
