"""Block types of GGUF files: a row of K weights as K / `weights` blocks of `nbytes` bytes each, and what they mean.

All are affine in a small code per weight, with a scale and perhaps an offset for 16 or 32 weights; the K-quants keep
those as small codes themselves, under fp16 factors of a block of 256. IQ4 codes are entries of a table. Layouts: ggml's
block structures. Codes and scales come out exact, so `Grouped.dequantize` has the bits of ggml's own dequantization.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .grouped import Grouped


@dataclass(frozen=True)
class BlockType:
    """name, id: as ggml's; weights and bytes of a block: a plain number is a block of one weight."""

    name: str
    id: int
    weights: int
    nbytes: int

    def row_bytes(self, K: int) -> int:
        """Bytes of a row of K weights. ValueError if blocks do not divide it."""
        if K % self.weights:
            raise ValueError(
                f"A row of {K} weights cannot be stored as {self.name}, whose blocks hold {self.weights}: "
                f"choose a type whose blocks divide the row."
            )
        return K // self.weights * self.nbytes

    def row_weights(self, nbytes: int) -> int:
        """Weights in a row of so many bytes. ValueError if it ends inside a block."""
        if nbytes % self.nbytes:
            raise ValueError(
                f"A row of {nbytes} bytes does not hold whole {self.name} blocks of {self.nbytes} bytes: "
                f"the file is damaged, or its tensor has another type."
            )
        return nbytes // self.nbytes * self.weights


TYPES: dict[str, BlockType] = {
    kind.name: kind
    for kind in (
        BlockType("F32", 0, 1, 4),
        BlockType("F16", 1, 1, 2),
        BlockType("Q4_0", 2, 32, 18),
        BlockType("Q4_1", 3, 32, 20),
        BlockType("Q5_0", 6, 32, 22),
        BlockType("Q5_1", 7, 32, 24),
        BlockType("Q8_0", 8, 32, 34),
        BlockType("Q2_K", 10, 256, 84),
        BlockType("Q3_K", 11, 256, 110),
        BlockType("Q4_K", 12, 256, 144),
        BlockType("Q5_K", 13, 256, 176),
        BlockType("Q6_K", 14, 256, 210),
        BlockType("IQ4_NL", 20, 32, 18),
        BlockType("IQ4_XS", 23, 256, 136),
        BlockType("BF16", 30, 1, 2),
    )
}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def find(name: str) -> BlockType:
    """The type of that name. ValueError if there is none."""
    if name not in TYPES:
        raise ValueError(f"There is no block type {name!r} here; there are {', '.join(TYPES)}.")
    return TYPES[name]


def decode(data: torch.Tensor, type: str) -> Grouped:
    """data: [N, row bytes] uint8, the rows of a matrix as stored; type: name of a block type, not of a plain number.

    Returns codes [N, K] uint8 up to 4 bits and int8 above, scale and offset [N, K / 16 or 32] fp32. ValueError: no such
    type, or rows that end inside a block.
    """
    kind = find(type)
    if type in FLOATS:
        raise ValueError(f"{type} is not quantized: read it as numbers.")
    K = kind.row_weights(data.shape[1])
    rows = data.contiguous().view(data.shape[0], -1, kind.nbytes)
    codes, scale, offset = _DECODE[type](rows)
    N = data.shape[0]
    levels = torch.tensor(IQ4_LEVELS, dtype=torch.float32, device=data.device) if type.startswith("IQ4") else None
    return Grouped(codes.reshape(N, K), scale.reshape(N, -1), None if offset is None else offset.reshape(N, -1), levels)


def values(data: torch.Tensor, type: str) -> torch.Tensor:
    """The numbers themselves, of a block type or a plain one: [N, K] fp32. data and errors: as `decode`."""
    if type not in FLOATS:
        return decode(data, type).dequantize()
    find(type).row_weights(data.shape[1])
    return data.contiguous().view(FLOATS[type]).float()


# A decoder takes blocks [N, B, bytes] and returns codes [N, B, weights] (in any split of the last dimension), and scale
# and offset [N, B, groups] or None.
_Decoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The fp16 number at a byte of each block, as fp32 [N, B, 1]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    """[..., n] bytes -> [..., 2, n]: all low halves, then all high halves."""
    return torch.stack([data & 15, data >> 4], -2)


def _pairs(data: torch.Tensor) -> torch.Tensor:
    """[..., n] bytes -> [..., 4, n]: bits 0-1 of all, bits 2-3 of all, ..."""
    return torch.stack([data & 3, (data >> 2) & 3, (data >> 4) & 3, data >> 6], -2)


def _bits(data: torch.Tensor) -> torch.Tensor:
    """[..., n] bytes -> [..., 8, n]: bit 0 of all, bit 1 of all, ..."""
    return torch.stack([(data >> i) & 1 for i in range(8)], -2)


def _fifth_bits(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """Four bytes, bit i of which (the lowest first) belongs to weight i: [N, B, 32], 16 or 0."""
    return _bits(blocks[..., at : at + 4]).transpose(-1, -2).flatten(-2) << 4


def _q8_0(blocks: torch.Tensor) -> _Decoded:
    return blocks[..., 2:].contiguous().view(torch.int8), _half(blocks, 0), None


def _q4_0(blocks: torch.Tensor) -> _Decoded:
    d = _half(blocks, 0)
    return _nibbles(blocks[..., 2:]), d, -8 * d


def _q4_1(blocks: torch.Tensor) -> _Decoded:
    return _nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> _Decoded:
    codes = _nibbles(blocks[..., 6:]).flatten(-2) | _fifth_bits(blocks, 2)
    return codes.view(torch.int8) - 16, _half(blocks, 0), None


def _q5_1(blocks: torch.Tensor) -> _Decoded:
    codes = _nibbles(blocks[..., 8:]).flatten(-2) | _fifth_bits(blocks, 4)
    return codes.view(torch.int8), _half(blocks, 0), _half(blocks, 2)


def _iq4_nl(blocks: torch.Tensor) -> _Decoded:
    return _nibbles(blocks[..., 2:]), _half(blocks, 0), None


def _iq4_xs(blocks: torch.Tensor) -> _Decoded:
    low = _nibbles(blocks[..., 4:8]).transpose(-1, -2).flatten(-2)
    high = _pairs(blocks[..., 2:4]).transpose(-1, -2).flatten(-2)
    scale = (low | high << 4).float() - 32
    codes = _nibbles(blocks[..., 8:].unflatten(-1, (8, 16)))
    return codes, _half(blocks, 0) * scale, None


def _q2_k(blocks: torch.Tensor) -> _Decoded:
    codes = _pairs(blocks[..., 16:80].unflatten(-1, (2, 32)))
    scales = blocks[..., :16]
    return codes, _half(blocks, 80) * (scales & 15), -_half(blocks, 82) * (scales >> 4)


def _q3_k(blocks: torch.Tensor) -> _Decoded:
    low = _pairs(blocks[..., 32:96].unflatten(-1, (2, 32))).flatten(-3, -2)  # [N, B, 8, 32]
    codes = low | _bits(blocks[..., :32]) << 2
    packed = blocks[..., 96:108]
    scale = (_nibbles(packed[..., :8]).flatten(-2) | _pairs(packed[..., 8:]).flatten(-2) << 4).float() - 32
    scale *= _half(blocks, 108)
    return codes, scale, -4 * scale


def _scales_and_mins(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The header of Q4_K and Q5_K: factors d and dmin, and 6 bits each for the scales and minima of eight groups."""
    packed = blocks[..., 4:16].unflatten(-1, (3, 4))
    first, second, low = packed[..., 0, :], packed[..., 1, :], packed[..., 2, :]
    scale = torch.cat([first & 63, low & 15 | first >> 6 << 4], -1)
    minimum = torch.cat([second & 63, low >> 4 | second >> 6 << 4], -1)
    return _half(blocks, 0) * scale, -_half(blocks, 2) * minimum


def _q4_k(blocks: torch.Tensor) -> _Decoded:
    return _nibbles(blocks[..., 16:].unflatten(-1, (4, 32))), *_scales_and_mins(blocks)


def _q5_k(blocks: torch.Tensor) -> _Decoded:
    low = _nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).flatten(-3, -2)  # [N, B, 8, 32]
    codes = low | _bits(blocks[..., 16:48]) << 4
    return codes.view(torch.int8), *_scales_and_mins(blocks)


def _q6_k(blocks: torch.Tensor) -> _Decoded:
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64))).unflatten(-1, (2, 32)).flatten(-3, -2)  # [N, B, 2, 4, 32]
    codes = low | _pairs(blocks[..., 128:192].unflatten(-1, (2, 32))) << 4
    scale = blocks[..., 192:208].contiguous().view(torch.int8)
    return codes.view(torch.int8) - 32, _half(blocks, 208) * scale, None


_DECODE: dict[str, Callable[[torch.Tensor], _Decoded]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
