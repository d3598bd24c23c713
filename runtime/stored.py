"""How the tensors of a checkpoint are stored: plain numbers, or in a format of octavo.quant.formats.

A tensor of the model has one name, `X.weight`, however many tensors of the file it takes: an AWQ matrix is X.qweight,
X.qzeros and X.scales. `group` finds them by their names and types; `decode` gives back what the numbers mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.quant.formats import awq, blocks, fp8, int8, nf4
from octavo.quant.formats.grouped import Grouped

from .errors import CheckpointError

KINDS = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8_e4m3",
    torch.float8_e5m2: "fp8_e5m2",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}
GGUF_NUMBERS = {  # plain numbers by ggml's names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
}
_PLAIN = frozenset(KINDS.values())
_NF4_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")


@dataclass(frozen=True)
class Region:
    """A tensor of a file: `shard` is the file, `begin` its first byte there."""

    shard: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    nbytes: int


@dataclass(frozen=True)
class Stored:
    """A tensor of the model. `shape` is the model's, whatever the file's; `kind` names the format: `bf16`, `awq`,
    `Q4_K`; `parts` are the file's tensors, by what their names have behind the module's (`weight`, `qweight`)."""

    kind: str
    shape: tuple[int, ...]
    parts: Mapping[str, Region]
    undo: Callable[[torch.Tensor], torch.Tensor] | None = None  # from the file's order of values to the model's

    @property
    def plain(self) -> bool:
        """Numbers as they are, no format."""
        return self.kind in _PLAIN

    @property
    def dtype(self) -> torch.dtype | None:
        """Of plain numbers."""
        return next(iter(self.parts.values())).dtype if self.plain else None

    @property
    def is_real(self) -> bool:
        """Real numbers, as far as types tell."""
        return self.dtype is None or self.dtype.is_floating_point

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def shard(self) -> Path:
        return next(iter(self.parts.values())).shard


def group(regions: Mapping[str, Region], read: Callable[[Region], torch.Tensor]) -> dict[str, Stored]:
    """The tensors of safetensors files as tensors of the model. Raises CheckpointError when one lacks a part."""
    found: dict[str, Stored] = {}
    hidden: set[str] = set()
    for name, region in regions.items():
        module, _, suffix = name.rpartition(".")
        kind = _kind(suffix, region, f"{module}.{nf4.STATE}" in regions)
        if not kind:
            continue
        if suffix != "weight" and f"{module}.weight" in regions:
            raise CheckpointError(f"{module}.weight is stored twice: as {kind}, and as it is. Download it again.")
        needed, optional = _PARTS[kind]
        for part in needed:
            if f"{module}.{part}" not in regions:
                raise CheckpointError(f"{module}.{part} is missing, and {name} cannot be read without it.")
        parts = {part: regions[f"{module}.{part}"] for part in (*needed, *optional) if f"{module}.{part}" in regions}
        found[f"{module}.weight"] = Stored(kind, _shape(kind, module, parts, read), parts)
        hidden |= {f"{module}.{part}" for part in parts}
    return found | {
        name: Stored(KINDS[region.dtype], region.shape, {"": region})
        for name, region in regions.items()
        if name not in hidden
    }


_FORMATS = {"awq": awq, "int8": int8, "fp8": fp8, "nf4": nf4}
_PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # needed, and read where they are there
    "awq": (("qweight", "qzeros", "scales"), ()),
    "int8": (("weight", "SCB"), ("weight_format",)),
    "fp8": (("weight", "weight_scale"), ()),
    "nf4": (("weight", "weight.absmax", "weight.quant_map", nf4.STATE), _NF4_NESTED),
}


def _kind(suffix: str, region: Region, has_nf4_state: bool) -> str:
    """Of the tensor that names a quantized module; "" for any other."""
    if suffix == "qweight":
        return "awq"
    if suffix == "weight":
        if has_nf4_state:
            return "nf4"
        return {torch.int8: "int8", torch.float8_e4m3fn: "fp8"}.get(region.dtype, "")
    return ""


def _shape(
    kind: str, module: str, parts: Mapping[str, Region], read: Callable[[Region], torch.Tensor]
) -> tuple[int, ...]:
    if kind == "awq":
        if len(parts["qweight"].shape) != 2:
            raise CheckpointError(f"{module}.qweight is no matrix. Download the checkpoint again.")
        K, words = parts["qweight"].shape
        return words * 8, K
    if kind != "nf4":
        return parts["weight"].shape
    try:
        shape = json.loads(bytes(read(parts[nf4.STATE]).tolist()))["shape"]
        if len(shape) == 2 and all(type(n) is int and n > 0 for n in shape):
            return tuple(shape)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CheckpointError(f"{module}.{nf4.STATE} does not tell the matrix's shape. Download the checkpoint again.")


def decode(name: str, kind: str, shape: tuple[int, ...], parts: Mapping[str, torch.Tensor]) -> torch.Tensor | Grouped:
    """parts: the file's tensors. Raises CheckpointError when they do not belong together."""
    if kind in _PLAIN:
        return next(iter(parts.values()))
    try:
        if kind in _FORMATS:
            return _FORMATS[kind].decode(parts, shape)
        (data,) = parts.values()
        return blocks.decode(data, kind)
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be read: {error} Download the checkpoint again.") from error
