"""The one linear layer: y = x W^T. Weights stay in the dtype of the computation; quantized formats will join here."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from .parameter import empty


class Linear(nn.Module):
    """weight: [out, in]. Checkpoint matrices may be stacked along `out` (qkv, gate and up): one GEMM for all."""

    def __init__(self, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.weight = empty(outputs, inputs, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """residual + x W^T in one call. residual: [N, out]; x: [N, in]."""
        return torch.addmm(residual, x, self.weight.t())
