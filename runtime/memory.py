"""Host memory: how much there is, and tensors that take it only where they are used."""

import math
import mmap
import os

import torch


def physical_memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on the CPU in a map of their own, which takes memory where it is written and gives it back when dropped.

    torch.zeros would take all of it at once, and what torch.empty takes from the heap may stay there when it is freed:
    weights that were copied into another layout left holes of a quarter of the model behind.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    values = math.prod(shape)
    try:
        private = mmap.mmap(-1, values * dtype.itemsize, access=mmap.ACCESS_COPY)  # a fork's writes stay its own
    except (OSError, OverflowError) as error:
        raise MemoryError(f"{values * dtype.itemsize / 1e9:.1f} GB of memory are not to be had") from error
    return torch.frombuffer(private, dtype=dtype, count=values).view(shape)
