"""Weights into GGUF's block types: rounding for Q8_0 and Q4_0, searches for the K-quants (`search.py`).

Same algorithms as ggml: the bytes of Q8_0 and Q4_0 are its own; in the K-quants sums run in another order, and now and
then that tips the choice between two grids that are equally good. Reads nothing back: `blocks.py` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch

from . import search
from .blocks import find

CHUNK = 160 * 1024  # weights at a time: what a search keeps stays in the processor's cache
GPU_CHUNK = 64 * CHUNK  # a GPU has no use for such small pieces
JUST_BELOW_HALF = 0.5 - 2.0**-25  # added before dropping the fraction: rounds half away from zero, exactly


def encode(weight: torch.Tensor, type: str, importance: torch.Tensor | None = None) -> torch.Tensor:
    """weight: [N, K], finite, of any float type; type: one of `ENCODED`; importance: [K], what an error in a column
    costs (the mean square of its inputs). Q8_0 takes no notice of it.

    Returns [N, row bytes] uint8. ValueError: a type that cannot be written, blocks that do not divide a row, or an
    importance of another length, or one that is negative, not finite, or zero everywhere.
    """
    kind = find(type)
    if type not in _ENCODE:
        raise ValueError(f"{type} cannot be written here; choose one of {', '.join(_ENCODE)}.")
    N, K = weight.shape
    nbytes = kind.row_bytes(K)
    if importance is not None:
        importance = _checked(importance.to(weight.device, torch.float32), K)
    out = torch.empty(N, nbytes, dtype=torch.uint8, device=weight.device)
    on_cpu = weight.device.type == "cpu"
    rows = max(1, (CHUNK if on_cpu else GPU_CHUNK) // K)

    def fill(start: int) -> None:
        chunk = weight[start : start + rows].float().contiguous()
        out[start : start + rows] = _ENCODE[type](chunk, importance).view(-1, nbytes)

    _each(fill, range(0, N, rows), torch.get_num_threads() if on_cpu else 1)
    return out


def _each(work: Callable[[int], None], items: Iterable[int], threads: int) -> None:
    """work(item) of all items in so many threads, each computing alone.

    A chunk is small: threads that share it meet after every operation, hundreds of times, and where another program
    wants a core too, each time all of them wait for the one that is not running.
    """
    if threads == 1:
        for item in items:
            work(item)
        return
    torch.set_num_threads(1)  # for this thread, and for those that start now
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, items):
                pass
    finally:
        torch.set_num_threads(threads)


def _checked(importance: torch.Tensor, K: int) -> torch.Tensor:
    if importance.shape != (K,):
        raise ValueError(f"The importance of {K} columns wants {K} numbers, not {tuple(importance.shape)}.")
    if not importance.isfinite().all() or importance.min() < 0 or importance.max() == 0:
        raise ValueError("An importance is a finite number, not negative, and not zero for every column.")
    # A column that calibration never used is not free: without weight, a group of them would be stored as anything.
    return importance.clamp(min=1e-6 * importance.mean().item())


def _columns(chunk: torch.Tensor, group: int) -> torch.Tensor:
    """[R, K] -> [group, R * K / group], a group in each column."""
    return chunk.reshape(-1, group).T.contiguous()


def _omega(chunk: torch.Tensor, importance: torch.Tensor, around: int, share: float) -> torch.Tensor:
    """An importance h, more for large weights: h * sqrt(share * mean of w^2 over `around` columns + w^2), [R, K]."""
    square = chunk.square().view(len(chunk), -1, around)
    return importance * (share * square.mean(2, keepdim=True) + square).sqrt_().view_as(chunk)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """[B] fp32 -> [B, 2] uint8, as fp16."""
    return x.half().view(-1, 1).view(torch.uint8)


def _q8_0(chunk: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    blocks = chunk.reshape(-1, 32)
    d = blocks.abs().amax(1) / 127
    scaled = blocks * torch.where(d > 0, 1 / d, 0)[:, None]
    codes = (scaled + torch.full_like(scaled, JUST_BELOW_HALF).copysign_(scaled)).to(torch.int8)
    return torch.cat([_bytes(d), codes.view(torch.uint8)], 1)


def _q4_0(chunk: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    if importance is None:
        blocks = chunk.reshape(-1, 32)
        d = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
        codes = (blocks * torch.where(d != 0, 1 / d, 0) + 8.5).to(torch.uint8).clamp_(max=15)
    else:
        x = _columns(chunk, 32)
        d, factor = search.symmetric(x, _columns(_omega(chunk, importance, chunk.shape[1], 1), 32), 8)
        codes = ((x * factor).round_().clamp_(-8, 7) + 8).to(torch.uint8).T
    return torch.cat([_bytes(d), codes[:, :16] | codes[:, 16:] << 4], 1)


def _q6_k(chunk: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    x = _columns(chunk, 16)
    omega = x.square() if importance is None else _columns(importance.expand_as(chunk), 16)
    scale = search.symmetric(x, omega, 32)[0].view(-1, 16)
    largest = scale.gather(1, scale.abs().argmax(1, keepdim=True))
    factor = torch.where(largest != 0, -128 / largest, 0)
    d = torch.where(largest != 0, 1 / factor, 0)
    scales = (factor * scale).round_().clamp_(max=127)
    step = (d.half().float() * scales).view(-1)
    codes = (x / step).round_().clamp_(-32, 31).add_(32)
    q = codes.masked_fill_(step == 0, 0).to(torch.uint8).T.reshape(-1, 2, 4, 32)
    low, high = q & 15, q >> 4
    return torch.cat(
        [
            (low[:, :, :2] | low[:, :, 2:] << 4).flatten(1),
            (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).flatten(1),
            scales.to(torch.int8).view(torch.uint8),
            _bytes(d),
        ],
        1,
    )


def _affine(
    chunk: torch.Tensor, importance: torch.Tensor | None, levels: int, plain: tuple[float, float, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What Q4_K and Q5_K share: the 16 bytes that start each block, and codes [B, 8, 32] uint8 of its weights.

    plain: the grids to try without an importance, as `search.affine` takes them.
    """
    x = _columns(chunk, 32)
    if importance is None:
        omega = x.square().mean(0).sqrt_() + x.abs()
        scale, minimum = (s.view(-1, 8) for s in search.affine(x, omega, levels, *plain))
        d, sc = _six_bits(scale)
        dmin, mn = _six_bits(minimum)
    else:
        omega = _columns(_omega(chunk, importance, 256, 2), 32)
        scale, minimum = (s.view(-1, 8) for s in search.affine(x, omega, levels, -0.9, 0.05, 36))
        total = omega.sum(0).view(-1, 8).T.contiguous()
        d, sc = search.positive(scale.T.contiguous(), total, 63)
        dmin, mn = search.positive(minimum.T.contiguous(), total, 63)
        sc, mn = sc.T, mn.T
    step = (d.half().float()[:, None] * sc).reshape(-1)
    offset = (dmin.half().float()[:, None] * mn).reshape(-1)
    codes = ((x + offset) / step).round_().clamp_(0, levels).masked_fill_(step == 0, 0)
    s, m = sc.to(torch.uint8), mn.to(torch.uint8)
    header = [
        _bytes(d),
        _bytes(dmin),
        s[:, :4] | s[:, 4:] >> 4 << 6,
        m[:, :4] | m[:, 4:] >> 4 << 6,
        s[:, 4:] & 15 | m[:, 4:] << 4,
    ]
    return torch.cat(header, 1), codes.to(torch.uint8).T.reshape(-1, 8, 32)


def _six_bits(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, 8] -> the factor [B] that gives the largest of eight the code 63, and the codes [B, 8]."""
    largest = x.amax(1)
    codes = (x * torch.where(largest > 0, 63 / largest, 0)[:, None]).round_().clamp_(0, 63)
    return largest.clamp(min=0) / 63, codes


def _q4_k(chunk: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    header, q = _affine(chunk, importance, 15, (-1, 0.1, 20))
    return torch.cat([header, (q[:, ::2] | q[:, 1::2] << 4).flatten(1)], 1)


def _q5_k(chunk: torch.Tensor, importance: torch.Tensor | None) -> torch.Tensor:
    header, q = _affine(chunk, importance, 31, (-0.5, 0.1, 15))
    low, high = q & 15, q >> 4
    fifth = high[:, 0]
    for j in range(1, 8):
        fifth = fifth | high[:, j] << j
    return torch.cat([header, fifth, (low[:, ::2] | low[:, 1::2] << 4).flatten(1)], 1)


_ENCODE: dict[str, Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]] = {
    "Q8_0": _q8_0,
    "Q6_K": _q6_k,
    "Q5_K": _q5_k,
    "Q4_K": _q4_k,
    "Q4_0": _q4_0,
}
ENCODED = tuple(_ENCODE)
