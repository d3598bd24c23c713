"""The one linear layer, with what comes before and after its product. Quantized formats will join here."""

from __future__ import annotations

import torch
import torch.nn as nn

from octavo.kernels.cpu_linear import arrange
from octavo.kernels.launch import on_triton
from octavo.kernels.linear import linear

from .parameter import empty


class Linear(nn.Module):
    """weight: [out, in]. Checkpoint matrices may be stacked along `out` (qkv, gate and up): one GEMM for all."""

    deterministic = False  # set by `load_model`: no row's result may hang on the other rows

    def __init__(self, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.weight = empty(outputs, inputs, device=device, dtype=dtype)

    def forward(
        self,
        x: torch.Tensor,
        *,
        norm: torch.Tensor | None = None,
        eps: float = 0.0,
        residual: torch.Tensor | None = None,
        swiglu: bool = False,
    ) -> torch.Tensor:
        """x: [N, in] -> [N, out], or [N, out / 2] with `swiglu`, for gate over up.

        norm: [in], RMSNorm of x before; residual: [N, out], to which the product is added in place.
        """
        return linear(
            x, self.weight, norm=norm, eps=eps, residual=residual, swiglu=swiglu, deterministic=self.deterministic
        )

    def arrange(self) -> None:
        """Once the weight is final: puts it into the layout that this device multiplies fastest."""
        if not on_triton(self.weight):
            self.weight = nn.Parameter(arrange(self.weight), requires_grad=False)
