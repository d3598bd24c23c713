"""A long, wide convolution with fewer products: Karatsuba's trick in time, applied twice ("fast FIR").

Take the samples in blocks of `dilation`. With x0, x1 the even and odd blocks, W0, W1 the even and odd taps, * the
convolution and x0' the even blocks one further on, the even and odd blocks of the output are

    y0 = W0 * x0 + W1 * x1
    y1 = W0 * x1 + W1 * x0' = (W0 + W1) * (x1 + x0') - W0 * x0' - W1 * x1

W0 * x0' is W0 * x0 one block on, so three convolutions at half the rate do instead of four. For 7 taps, twice: 17
products for four outputs instead of 28. What is saved are matrix products, what is added are sums: it pays from some
hundred channels on. The rounding error is that of a plain fp32 convolution within a factor of about two.
"""

from __future__ import annotations

import torch

PHASES = 4  # two halvings
CHANNELS = 128  # below that the sums cost what the products save
BLOCKS = 48  # shorter inputs waste too much in their last, partly filled group of blocks


def fir_pays(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> bool:
    """Whether `fir` is the faster way: one fp32 sequence x [1, n, Cin] on the CPU, wide and long enough."""
    rows = x.shape[1] - (weight.shape[3] - 1) * dilation
    wide = min(weight.shape[:2]) >= CHANNELS and weight.shape[3] > 3
    return (
        wide and x.shape[0] == 1 and x.device.type == "cpu" and x.dtype == torch.float32 and rows >= BLOCKS * dilation
    )


def fir(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> torch.Tensor:
    """Valid convolution of x [n, Cin] with weight [Cout, Cin, 1, k] -> [n - (k - 1) * dilation, Cout]."""
    (n, cin), (cout, _, _, k), d = x.shape, weight.shape, dilation
    groups = -(-(n - (k - 1) * d) // (PHASES * d))  # of PHASES blocks each, the last one partly filled
    spare = -(-(k - 1) // PHASES) + 2  # groups read beyond those, for the later taps and the shifts
    padded = x.new_zeros((groups + spare) * PHASES * d, cin)
    padded[:n] = x
    blocks = padded.view(-1, PHASES, d, cin)
    y = x.new_empty(groups, PHASES, d, cout)
    taps = [weight[:, :, 0, j] for j in range(k)]
    phases = [blocks[:, p].reshape(-1, cin) for p in range(PHASES)]
    for p, phase in enumerate(_convolve(phases, taps, d, groups * d)):
        y[:, p] = phase.view(groups, d, cout)
    return y.view(-1, cout)[: n - (k - 1) * d]


def _convolve(phases: list[torch.Tensor], taps: list[torch.Tensor], d: int, rows: int) -> list[torch.Tensor]:
    """The phases [rows, Cout] of the output from those of the input; taps [Cout, Cin]. One phase: plain products."""
    if len(phases) == 1:
        y = phases[0][:rows] @ taps[0].T
        for j, tap in enumerate(taps[1:], 1):
            y.addmm_(phases[0][j * d : j * d + rows], tap.T)
        return [y]
    even, odd = taps[0::2], taps[1::2]
    both = [a + b for a, b in zip(even, odd, strict=False)] + even[len(odd) :]
    x0, x1 = phases[0::2], phases[1::2]
    n = len(x1[0]) - d
    sums = [a[:n] + b[:n] for a, b in zip(x1, _next(x0, d), strict=True)]
    w0x0 = _convolve(x0, even, d, rows + d)
    w1x1 = _convolve(x1, odd, d, rows)
    crossed = _convolve(sums, both, d, rows)
    out = []
    for a, a_next, b, ab in zip(w0x0, _next(w0x0, d), w1x1, crossed, strict=True):
        out += [a[:rows] + b, ab.sub_(a_next[:rows]).sub_(b)]
    return out


def _next(phases: list[torch.Tensor], d: int) -> list[torch.Tensor]:
    """The phases of the same sequence one block of d rows later."""
    return [*phases[1:], phases[0][d:]]
