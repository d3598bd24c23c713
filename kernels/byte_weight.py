"""A weight of one byte a number, whichever number the byte means: what Int8 and Fp8 have in common."""

from __future__ import annotations

import torch

from .byte_code import Bytes
from .byte_dense import byte_dense
from .byte_linear import byte_linear
from .packed import Packed


class ByteWeight(Packed):
    def __init__(self, weight: Bytes, shape: tuple[int, int]):
        self.weight, self.shape = weight, shape

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
        return byte_linear(
            x, self.weight, norm=norm, eps=eps, residual=residual, swiglu=swiglu, deterministic=deterministic
        )

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        return byte_dense(self.weight, dtype)

    def tensors(self) -> list[torch.Tensor]:
        return self.weight.tensors()
