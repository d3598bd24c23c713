"""One tensor at a time into the type its recipe names, in pieces of rows, and how far from the original that is.

A type is a set of file tensors, named by what comes behind the module's name: `qweight`, `weight.absmax`. Plain numbers
and GGUF's blocks are one, `weight`. `parts` tells their types and shapes before there are values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from octavo.runtime.errors import CheckpointError

from .formats import awq, blocks, fp8, int8, kquants, nf4
from .formats.grouped import Grouped

FLOATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GGUF_FLOATS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
_PIECE = 1 << 22  # values encoded together: 16 MB in fp32
_NF4_STATE = 256  # bytes of its JSON, padded, so that the size of a file is known before its values are

_ToParts = Callable[[torch.Tensor], dict[str, torch.Tensor]]
_FromParts = Callable[[Mapping[str, torch.Tensor], tuple[int, int]], Grouped]


@dataclass(frozen=True)
class Encoded:
    """parts: the file's tensors, on the CPU; relative_l2: |W' - W| / |W|, None where the values stayed the same."""

    parts: Mapping[str, torch.Tensor]
    relative_l2: float | None = None


def parts(kind: str, shape: tuple[int, ...], group_size: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each part of a tensor of `shape` in a safetensors file."""
    if kind in FLOATS:
        return {"weight": (FLOATS[kind], shape)}
    N, K = shape
    if kind == "awq":
        G = K // group_size
        return {
            "qweight": (torch.int32, (K, N // 8)),
            "qzeros": (torch.int32, (G, N // 8)),
            "scales": (torch.float16, (G, N)),
        }
    if kind == "int8":
        return {"weight": (torch.int8, (N, K)), "SCB": (torch.float32, (N,))}
    if kind == "fp8":
        return {"weight": (torch.float8_e4m3fn, (N, K)), "weight_scale": (torch.float32, (N, 1))}
    assert kind == "nf4", kind
    scales = N * K // nf4.BLOCK
    return {
        "weight": (torch.uint8, (N * K // 2, 1)),
        "weight.absmax": (torch.uint8, (scales,)),
        "weight.quant_map": (torch.float32, (16,)),
        "weight.nested_absmax": (torch.float32, (-(-scales // nf4.NESTED_BLOCK),)),
        "weight.nested_quant_map": (torch.float32, (256,)),
        nf4.STATE: (torch.uint8, (_NF4_STATE,)),
    }


def encode(
    name: str,
    weight: torch.Tensor,
    kind: str,
    group_size: int = 128,
    importance: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Encoded:
    """weight: as the source has it, finite. importance: mean square of each input, [K], which block types heed.

    Raises CheckpointError for values too large for the type, or for its scales.
    """
    if kind in FLOATS:
        return _plain(name, weight, kind)
    to_parts, from_parts = _codec(kind, group_size, importance)
    N, K = weight.shape
    rows = N if kind == "nf4" else max(8, _PIECE // K // 8 * 8)  # nested NF4 scales hang on all of the matrix
    along = 1 if kind == "awq" else 0  # AWQ's tensors have the outputs in their columns
    joined: dict[str, torch.Tensor] = {}
    wrong = whole = 0.0
    for first in range(0, N, rows):
        values = weight[first : first + rows].to(device, torch.float32)
        n = len(values)
        with _named(name, kind):
            encoded = to_parts(values)
        for part, tensor in encoded.items():
            size = tensor.size(along)  # of n rows; awq has eight in one
            if first == 0:
                shape = (*tensor.shape[:along], size * N // n, *tensor.shape[along + 1 :])
                joined[part] = torch.empty(shape, dtype=tensor.dtype)
            joined[part].narrow(along, first * size // n, size).copy_(tensor)
        difference = from_parts(encoded, (n, K)).dequantize().sub_(values)
        wrong += difference.square_().sum(dtype=torch.float64).item()
        whole += values.square().sum(dtype=torch.float64).item()
    if not math.isfinite(wrong):  # a scale in fp16 has become infinite
        raise CheckpointError(f"{name} holds values that are too large for {kind}. Keep it: --keep {name}=bf16.")
    if kind == "nf4":
        joined[nf4.STATE] = _padded(joined[nf4.STATE])
    return Encoded(joined, math.sqrt(wrong / whole) if whole else 0.0)


def searched(name: str, weight: Grouped) -> dict[str, torch.Tensor]:
    """The parts of what AWQ's search has made of a tensor. Raises CheckpointError as `encode` does."""
    with _named(name, "awq"):
        return awq.encode(weight)


@contextmanager
def _named(name: str, kind: str) -> Iterator[None]:
    """Inside, what a format says of its numbers becomes a sentence about the tensor."""
    try:
        yield
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be {kind}: {error} Keep it: --keep {name}=bf16.") from error


def _codec(kind: str, group_size: int, importance: torch.Tensor | None) -> tuple[_ToParts, _FromParts]:
    match kind:
        case "awq":
            return lambda values: awq.encode(awq.quantize(values, group_size)), awq.decode
        case "int8":
            return int8.encode, int8.decode
        case "fp8":
            return fp8.encode, fp8.decode
        case "nf4":
            return lambda values: nf4.encode(values, nested=True), nf4.decode
    return (
        lambda values: {"weight": kquants.encode(values, kind, importance)},
        lambda tensors, _: blocks.decode(tensors["weight"], kind),
    )


def _plain(name: str, weight: torch.Tensor, kind: str) -> Encoded:
    """Another type of number. fp16 ends at 65504, and what lies beyond would be infinite."""
    values = weight.to(FLOATS[kind])
    if weight.dtype == values.dtype or kind == "fp32":
        return Encoded({"weight": values})
    wrong = whole = 0.0
    for before, after in zip(weight.reshape(-1).split(_PIECE), values.reshape(-1).split(_PIECE), strict=True):
        if not torch.isfinite(after).all():
            raise CheckpointError(f"{name} holds values that are too large for fp16. Use bf16, or keep this tensor so.")
        wrong += (after.float() - before.float()).square_().sum(dtype=torch.float64).item()
        whole += before.float().square_().sum(dtype=torch.float64).item()
    return Encoded({"weight": values}, math.sqrt(wrong / whole) if whole else 0.0)


def _padded(state: torch.Tensor) -> torch.Tensor:
    """JSON may end in spaces."""
    assert len(state) <= _NF4_STATE, len(state)
    return torch.nn.functional.pad(state, (0, _NF4_STATE - len(state)), value=ord(" "))
