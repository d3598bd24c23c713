"""Checkpoints with quantized matrices, made by the formats alone: nothing of the writers is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from octavo.quant.formats import awq, fp8, int8, nf4

ENCODERS = {
    "awq": lambda weight: awq.encode(awq.quantize(weight, 32)),
    "int8": int8.encode,
    "fp8": fp8.encode,
    "nf4": nf4.encode,
}


def quantized(source: Path, folder: Path, kind: str, only: str = "body.layers.") -> Path:
    """A copy of a folder with the matrices whose names begin with `only` in a format."""
    shutil.copytree(source, folder)
    (folder / "model.safetensors.index.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.startswith(only) and tensors[name].dim() == 2]:
        module = name.removesuffix("weight")
        tensors |= {module + part: value for part, value in ENCODERS[kind](tensors.pop(name).float()).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder
