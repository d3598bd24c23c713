"""Codes to sound: table lookup, then a stack of layers that raise 25 frames per second to 24,000 samples.

    h = sum_q table[q][codes[q]] + bias                     [B, T, latent]
    conv7; five times: Snake, transposed conv of stride s, three residual units; Snake, conv7 to one channel

There is no tanh and no clipping: the sound may leave [-1, 1] and is clamped where it becomes PCM.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F

from octavo.runtime.checkpoint import Weights

from .config import CodecConfig
from .layers import Layer, Snake, owned, residual_units, take_conv

PIECE = 1 << 19  # values: a longer activation is cut in time, which keeps it in the cache and bounds the memory
SHORTEST = 256  # samples: a first piece must outlast what the layers after it hold back


class Stem(Layer):
    """The first convolution, k7: [B, 6 + n, latent] -> [B, n, width]."""

    tail, pad = 6, 3

    def __init__(self, weights: Weights, width: int, latent: int, dtype: torch.dtype):
        super().__init__()
        self.width = width
        self.conv = take_conv(weights, "acoustic_decoder.conv1", (width, latent, 7), dtype)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return self.conv(window)


class Head(Layer):
    """Snake and the last convolution, k7 to one channel: [B, 6 + n, C] -> [B, n, 1].

    For a single output channel a product of all samples with all taps, then the sum along its diagonals, is far less
    work than unfolding the input.
    """

    tail, pad, width = 6, 3, 1

    def __init__(self, weights: Weights, width: int, dtype: torch.dtype):
        super().__init__()
        self.activation = Snake(weights.take("acoustic_decoder.snake1.alpha", 1, width, 1), dtype)
        self.weight = owned(weights.take("acoustic_decoder.conv2.weight", 1, width, 7)[0].T, dtype)  # [tap, C]
        self.bias = owned(weights.take("acoustic_decoder.conv2.bias", 1), dtype)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        n = window.shape[1] - self.tail
        products = self.weight @ self.activation(window).transpose(1, 2)  # [B, tap, 6 + n]
        y = self.bias + products[:, 0, :n]
        for tap in range(1, 7):
            y += products[:, tap, tap : tap + n]
        return y[:, :, None]


class Upsample(Layer):
    """Snake and the transposed convolution of kernel 2s, stride s: [B, 1 + n, Cin] -> [B, n * s, Cout].

        y[q s + r] = W[:, :, r]^T x[q] + W[:, :, r + s]^T x[q - 1] + bias,    r = 0..s-1

    So it is two matrix products whose result lies in time order already. An utterance's samples are y[p : p + n s]
    with p = ceil(s / 2): padding ceil(s / 2) and output padding s mod 2 of the transposed form.
    """

    tail = pad = 1

    def __init__(self, weights: Weights, name: str, cin: int, cout: int, stride: int, dtype: torch.dtype):
        super().__init__()
        self.width, self.stride = cout, stride
        self.trim = (-(-stride // 2), stride // 2)
        self.activation = Snake(weights.take(f"{name}.snake1.alpha", 1, cin, 1), dtype)
        weight = weights.take(f"{name}.conv_t1.weight", cin, cout, 2 * stride)
        taps = weight.reshape(cin, cout, 2, stride).permute(2, 0, 3, 1).reshape(2, cin, stride * cout)
        self.weight = owned(taps, dtype)  # [this or previous, Cin, s * Cout]
        self.bias = owned(weights.take(f"{name}.conv_t1.bias", cout).repeat(stride), dtype)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        x = self.activation(window)
        B, n, cin = window.shape
        y = torch.addmm(self.bias, x[:, 1:].reshape(-1, cin), self.weight[0])
        y.addmm_(x[:, :-1].reshape(-1, cin), self.weight[1])
        return y.view(B, (n - 1) * self.stride, self.width)


class CodecDecoder(nn.Module):
    """codes [B, codebooks, T] int64 -> sound [B, hop * T], in the decoder's dtype (half precision: fp32).

    On CUDA its convolutions are as exact as cuDNN is told to be, TF32 by default. `Codec.decode` does not hang on that.
    """

    def __init__(self, weights: Weights, config: CodecConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = config
        table, bias = fold_lookup(weights, config)
        self.table = nn.Parameter(table.to(dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        widths = config.widths
        layers: list[Layer] = [Stem(weights, widths[0], config.latent, dtype)]
        for b, (cin, cout) in enumerate(pairwise(widths)):
            name = f"acoustic_decoder.block.{b}"
            layers.append(Upsample(weights, name, cin, cout, config.strides[b], dtype))
            layers += residual_units(weights, name, cout, dtype)
        layers.append(Head(weights, widths[-1], dtype))
        self.stack = nn.ModuleList(layers)

    @property
    def layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.stack))

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [B, codebooks, T] -> [B, T, latent]. A code that is none (a control code, 1024 and up) counts as 0."""
        size = self.config.codebook_size
        rows = torch.where((codes < 0) | (codes >= size), 0, codes).transpose(1, 2)
        rows = rows + torch.arange(self.config.codebooks, device=codes.device) * size
        B, T, Q = rows.shape
        h = F.embedding_bag(rows.reshape(B * T, Q), self.table, mode="sum") + self.bias
        return h.view(B, T, -1)

    @torch.inference_mode()
    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        if codes.shape[2] == 0:
            return self.table.new_zeros(len(codes), 0)
        tails: list[torch.Tensor | None] = [None] * len(self.layers)
        pieces = self._run(0, self.lookup(codes), tails, last=True)
        return at_least_fp32(torch.cat(list(pieces), dim=1).squeeze(2))

    def _run(self, begin: int, h: torch.Tensor, tails: list[torch.Tensor | None], last: bool) -> Iterator[torch.Tensor]:
        """The next piece of an utterance, h [B, n, Cin], through the layers from `begin` on, cut as it grows."""
        for i in range(begin, len(tails)):
            length = max(SHORTEST, PIECE // (h.shape[0] * h.shape[2]))
            if h.shape[1] >= 2 * length:
                pieces = h.split(length, dim=1)
                for k, piece in enumerate(pieces, 1):
                    yield from self._run(i, piece, tails, last and k == len(pieces))
                return
            h, tails[i] = advance(self.layers[i], h, tails[i], last)
        yield h


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype.itemsize < 4 else x


def advance(layer: Layer, x: torch.Tensor, tail: torch.Tensor | None, last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The next piece of an utterance through a layer; zeros before the first (`tail` None) and after the last piece.

    x: [B, n, Cin]    ->    what can be said of the output so far, [B, about n * stride, Cout], and the next tail
    """
    zeros = x.new_zeros(x.shape[0], layer.pad, x.shape[2])
    window = torch.cat([zeros if tail is None else tail, x] + [zeros] * last, dim=1)
    y = layer(window)
    front, back = layer.trim
    y = y[:, front * (tail is None) : y.shape[1] - back * last]
    return y, window[:, window.shape[1] - layer.tail :].clone()


def fold_lookup(weights: Weights, config: CodecConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Codebooks, their output projections and fc2 as one table [codebooks * size, latent] and a bias [latent], fp64.

    sum_q (embed_q[c_q] @ P_q^T + p_q) @ F^T + f  =  sum_q table_q[c_q] + bias
    """
    size, dim, width, latent = config.codebook_size, config.codebook_dim, config.rvq_width, config.latent
    fc2 = weights.take("fc2.weight", latent, width).double()
    bias = weights.take("fc2.bias", latent).double()
    tables = []
    for q in range(config.codebooks):
        name = f"quantizer.quantizers.{q}"
        project = weights.take(f"{name}.project_out.weight", width, dim).double()
        embed = weights.take(f"{name}.codebook.embed", size, dim).double()
        tables.append(embed @ (fc2 @ project).T)
        bias = bias + fc2 @ weights.take(f"{name}.project_out.bias", width).double()
    return torch.cat(tables), bias
