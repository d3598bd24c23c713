"""A pass of the streaming codec for the tests of its kernels: utterances at their beginning, middle and end."""

from __future__ import annotations

import numpy as np
import torch

from octavo.kernels.codec_window import COLUMNS, Window, fill_frames

SEATS = 6
PARTS = [  # seat, slot, pos, count, end, parity
    (3, 0, 0, 3, 1 << 20, 0),  # new: everything before it counts as zero
    (0, 1, 7, 1, 1 << 20, 1),
    (5, 2, 4, 4, 6, 1),  # ends within
    (1, 3, 9, 2, 8, 0),  # nothing but dummies, which push out its rest
    (2, 4, 1, 1, 1, 1),  # one frame long
]
FRAMES = sum(count for _, _, _, count, _, _ in PARTS) + 3  # the last ones idle


def frames(device: torch.device) -> torch.Tensor:
    table = np.empty((FRAMES, COLUMNS), np.int32)
    fill_frames(table, PARTS)
    return torch.from_numpy(table).to(device)


def window(device: torch.device, C: int, rate: int, tail: int, delay: int, seed: int = 0) -> Window:
    """Random values; NaN wherever nothing may be read that counts: outside the utterances, and in idle rows."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(FRAMES * rate, C, generator=generator)
    tails = torch.randn(2, SEATS, tail, C, generator=generator)
    row = 0
    for seat, _, pos, count, end, parity in PARTS:
        t = torch.arange(pos * rate - delay - tail, (pos + count) * rate - delay)
        outside = (t < 0) | (t >= end * rate)
        tails[parity, seat, outside[:tail]] = torch.nan
        tails[1 - parity, seat] = torch.nan
        x[row : row + count * rate][outside[tail:]] = torch.nan
        row += count * rate
    x[row:] = torch.nan
    return Window(x.to(device), tails.to(device), frames(device), rate, delay)


def copy(window: Window) -> Window:
    return Window(window.x, window.tails.clone(), window.frames, window.rate, window.delay)


def inside(window: Window, delay: int) -> torch.Tensor:
    """[rows] bool: those of an output late by `delay` that count."""
    found = []
    for _, _, pos, count, end, _ in PARTS:
        t = torch.arange(pos * window.rate - delay, (pos + count) * window.rate - delay)
        found.append((t >= 0) & (t < end * window.rate))
    return torch.cat([*found, torch.zeros(3 * window.rate, dtype=torch.bool)]).to(window.x.device)


def activation(C: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    alpha = 0.3 + 1.7 * torch.rand(C, generator=torch.Generator().manual_seed(C))
    return alpha.to(device), (alpha + 1e-9).reciprocal().to(device)


def weight(*shape: int, seed: int, device: torch.device) -> torch.Tensor:
    """fp32 values that fit bf16."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / (shape[0] * shape[-2]) ** 0.5
    return values.bfloat16().float().to(device)
