"""Parameters that are filled from a checkpoint: allocated once, copied into, never held twice."""

import torch
import torch.nn as nn

from ..memory import lazy_zeros


def empty(*shape: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(lazy_zeros(shape, dtype, device), requires_grad=False)


def fill(parameter: torch.Tensor, *parts: torch.Tensor) -> None:
    """Copies the parts into the parameter, one below the other, casting on the way."""
    start = 0
    for part in parts:
        parameter[start : start + part.shape[0]].copy_(part)
        start += part.shape[0]
    assert start == parameter.shape[0], (start, parameter.shape)
