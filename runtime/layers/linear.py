"""The one linear layer: y = x W^T. Quantized formats will join here."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from octavo.kernels.cpu_linear import arrange, cpu_linear

from .parameter import empty


class Linear(nn.Module):
    """weight: [out, in]. Checkpoint matrices may be stacked along `out` (qkv, gate and up): one GEMM for all."""

    def __init__(self, inputs: int, outputs: int, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.weight = empty(outputs, inputs, device=device, dtype=dtype)
        self.on_cpu = device.type == "cpu"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cpu_linear(x, self.weight) if self.on_cpu else F.linear(x, self.weight)

    def arrange(self) -> None:
        """Once the weight is final: puts it into the layout that this device multiplies fastest."""
        if self.on_cpu:
            self.weight = nn.Parameter(arrange(self.weight), requires_grad=False)
