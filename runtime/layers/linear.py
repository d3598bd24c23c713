"""The one linear layer, with what comes before and after its product, in whatever format its weight is."""

from __future__ import annotations

import torch
import torch.nn as nn

from octavo.kernels.cpu_linear import arrange
from octavo.kernels.launch import on_triton
from octavo.kernels.linear import linear
from octavo.kernels.pack import pack
from octavo.kernels.packed import Packed
from octavo.quant.formats.grouped import Grouped, stack

from .parameter import empty, fill


class Linear(nn.Module):
    """weight: [out, in], a tensor, or Packed where the checkpoint's is quantized; there once `load` has been called.
    Checkpoint matrices may be stacked along `out` (qkv, gate and up): one product for all."""

    weight: torch.Tensor | Packed
    deterministic = False  # set by `load_model`: no row's result may hang on the other rows

    def __init__(self, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.inputs, self.outputs, self.device, self.dtype = inputs, outputs, device, dtype

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

    def load(self, *parts: torch.Tensor | Grouped) -> None:
        """Takes over the parts, one below the other: copied, cast, and laid out as this device multiplies fastest."""
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        if len(tensors) < len(parts):
            matrix = stack(parts)
            if isinstance(matrix, Grouped):
                packed = pack(matrix.codes, matrix.scale, matrix.offset, matrix.levels, self.device, self.dtype)
                if packed:
                    self.weight = packed
                    return
                matrix = matrix.dequantize()
            tensors = [matrix]
        weight = empty(self.outputs, self.inputs, device=self.device, dtype=self.dtype)
        fill(weight, *tensors)
        self.share(weight)

    def share(self, weight: torch.Tensor) -> None:
        """Multiplies with a tensor [out, in] that others may use as well; no copy, unless the device wants products
        laid out apart."""
        self.weight = nn.Parameter(weight if on_triton(weight) else arrange(weight), requires_grad=False)
