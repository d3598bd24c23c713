"""24 kHz to 16 kHz the way the codec was trained: Hann-windowed sinc, 6 zero crossings a side, roll-off 0.99.

Any other resampler shifts HuBERT's input a little and with it the codes. For rates o : n without a common divisor,

    base = 0.99 min(o, n)    width = ceil(6 o / base)    t(i, j) = clip((j / o - i / n) base, -6, 6)
    y[q n + i] = sum over j = -width .. width + o - 1 of  x[q o + j] sinc(t) cos(pi t / 12)^2 base / o

with zeros around x; y has ceil(n L / o) samples. These are the defaults of torchaudio's `resample`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

CROSSINGS = 6
ROLLOFF = 0.99


def resample(x: torch.Tensor, rate_in: int, rate_out: int) -> torch.Tensor:
    """x: [B, L] fp32 or fp64 -> [B, ceil(L * rate_out / rate_in)], the same dtype."""
    divisor = math.gcd(rate_in, rate_out)
    o, n = rate_in // divisor, rate_out // divisor
    base = ROLLOFF * min(o, n)
    width = math.ceil(CROSSINGS * o / base)
    i = torch.arange(n, dtype=torch.float64)[:, None] / n
    j = torch.arange(-width, width + o, dtype=torch.float64)[None] / o
    t = ((j - i) * base).clamp(-CROSSINGS, CROSSINGS)
    taps = torch.sinc(t) * (math.pi * t / (2 * CROSSINGS)).cos().square() * (base / o)  # [n, 2 width + o]
    y = F.conv1d(F.pad(x, (width, width + o))[:, None], taps[:, None].to(x), stride=o)  # [B, n, blocks]
    return y.transpose(1, 2).reshape(len(x), -1)[:, : -(-x.shape[1] * n // o)]
