"""Quantized weights as the device reads them, and their product: what `linear` takes instead of a tensor.

    W[o, i] = level(codes[o, i]) * scale[o, i // group] + offset[o, i // group]

Each layout is a class that multiplies, in a file of its own; pack.py chooses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class Packed(ABC):
    """A weight [OUT, IN] in a layout that only its own `linear` reads."""

    shape: tuple[int, int]  # [OUT, IN], SwiGLU's pair of matrices as one

    @abstractmethod
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
        """As `kernels.linear.linear`; x: [N, IN] fp32, fp16 or bf16; norm may be fp32 whatever x is."""

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """W as a tensor [OUT, IN] on its device."""

    @abstractmethod
    def tensors(self) -> list[torch.Tensor]:
        """All that it holds, for whoever counts bytes."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.itemsize for tensor in self.tensors())
