"""Which device and which number format: what the user said, or what fits."""

from __future__ import annotations

import torch

from .checkpoint import Checkpoint
from .errors import RequestError
from .memory import physical_memory

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}


def pick_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, or `auto`: a GPU where there is one. Raises RequestError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RequestError(f"There is no device {name!r}. Use auto, cpu, cuda or cuda:N.") from error
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"octavo does not run on {name!r}. Use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError("No usable GPU was found. `octavo doctor` says why; --device cpu works everywhere.")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise RequestError(f"There is no {name}: this machine has {torch.cuda.device_count()} GPU(s), numbered from 0.")
    return device


def pick_dtype(name: str, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """`fp32`, `bf16`, or `auto`: bf16 on a GPU and for a quantized model, else fp32 where the weights take up to half
    of the memory. On the CPU fp32 also means quantized weights as they are defined, in fp32's memory."""
    if name != "auto":
        if name not in DTYPES:
            raise RequestError(f"There is no dtype {name!r}. Use auto, fp32 or bf16.")
        return DTYPES[name]
    if device.type == "cuda" or checkpoint.quantization:
        return torch.bfloat16
    return torch.float32 if 4 * checkpoint.numel <= physical_memory() / 2 else torch.bfloat16
