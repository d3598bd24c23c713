"""SwiGLU: y = silu(gate) * up, gate and up side by side.

gate_up: [N, 2 F] (gate first)    ->    y: [N, F]
"""

import torch
import torch.nn.functional as F


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
