"""Large tensors: parameters that are filled from a checkpoint, and memory that is only taken when it is used."""

import math
import mmap

import torch
import torch.nn as nn


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on the CPU in a map of their own, which takes memory where it is written and gives it back when dropped.

    torch.zeros would take all of it at once, and what torch.empty takes from the heap may stay there when it is freed:
    weights that were copied into another layout left holes of a quarter of the model behind.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    values = math.prod(shape)
    return torch.frombuffer(mmap.mmap(-1, values * dtype.itemsize), dtype=dtype, count=values).view(shape)


def empty(*shape: int, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(lazy_zeros(shape, dtype, device), requires_grad=False)


def fill(parameter: torch.Tensor, *parts: torch.Tensor) -> None:
    """Copies the parts into the parameter, one below the other, casting on the way: never a second copy in memory."""
    start = 0
    for part in parts:
        parameter[start : start + part.shape[0]].copy_(part)
        start += part.shape[0]
    assert start == parameter.shape[0], (start, parameter.shape)
