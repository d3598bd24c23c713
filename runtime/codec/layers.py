"""The layers the codec's decoder and encoder are made of, on time-major sound [B, time, channels].

Each is a function of a window and adds no padding of its own: whoever calls decides whether the samples around are
zeros (the ends of an utterance), or the tail of what came before. `tail` says how many samples of its input a layer
looks back over; it gives `stride` outputs for each input beyond them.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from octavo.kernels.snake import snake, snake_reciprocal
from octavo.runtime.checkpoint import Weights

from .config import DILATIONS
from .fir import fir, fir_pays


def owned(tensor: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A parameter that is a copy in any case: a stored tensor is mapped from a file."""
    return nn.Parameter(tensor.to(dtype, copy=True), requires_grad=False)


class Snake(nn.Module):
    """[B, n, C] -> the same. alpha as stored: [1, C, 1]."""

    def __init__(self, alpha: torch.Tensor, dtype: torch.dtype):
        super().__init__()
        self.alpha = owned(alpha.flatten(), torch.promote_types(dtype, torch.float32))
        self.reciprocal = nn.Parameter(snake_reciprocal(self.alpha), requires_grad=False)

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        return snake(x, self.alpha, self.reciprocal, out)


class Conv(nn.Module):
    """Valid convolution: [B, n, Cin] -> [B, (n - (k - 1) * dilation - 1) // stride + 1, Cout].

    weight as stored: [Cout, Cin, k]. Kept channels-last, as the input is: no layout change around the convolution.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype, dilation=1, stride=1):
        super().__init__()
        self.dilation, self.stride = dilation, stride
        weight = weight.unsqueeze(2).to(dtype, copy=True, memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else owned(bias, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1 and fir_pays(x, self.weight, self.dilation):
            y = fir(x[0], self.weight, self.dilation)[None]
            return y if self.bias is None else y.add_(self.bias)
        x = x.unsqueeze(1).permute(0, 3, 1, 2)  # [B, C, 1, n], channels-last in memory
        y = F.conv2d(x, self.weight, self.bias, stride=(1, self.stride), dilation=(1, self.dilation))
        return y.permute(0, 2, 3, 1).squeeze(1)


class Layer(nn.Module):
    """A layer of the decoder's stack, and what its callers must know to feed it piece by piece.

    [B, tail + n, Cin] -> [B, n * stride, width]
    """

    tail: int  # samples of its input it looks back over
    pad: int  # zeros it wants before and after a whole utterance
    width: int  # channels of its output
    stride: int = 1  # output samples per input sample
    trim: tuple[int, int] = (0, 0)  # output samples before and after those of a whole utterance

    def delayed(self, delay: int) -> int:
        """How many of its output samples a stream is late behind it, if its input is late by `delay`."""
        return (delay + self.tail - self.pad) * self.stride + self.trim[0]


class ResidualUnit(Layer):
    """x + conv1x1(snake(conv7(snake(x)))): [B, tail + n, C] -> [B, n, C]."""

    def __init__(self, weights: Weights, name: str, width: int, dilation: int, dtype: torch.dtype):
        super().__init__()
        self.tail, self.pad, self.width = 6 * dilation, 3 * dilation, width
        self.snake1 = Snake(weights.take(f"{name}.snake1.alpha", 1, width, 1), dtype)
        self.conv1 = take_conv(weights, f"{name}.conv1", (width, width, 7), dtype, dilation)
        self.snake2 = Snake(weights.take(f"{name}.snake2.alpha", 1, width, 1), dtype)
        self.weight = owned(weights.take(f"{name}.conv2.weight", width, width, 1)[:, :, 0], dtype)
        self.bias = owned(weights.take(f"{name}.conv2.bias", width), dtype)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.snake1(window))
        y = self.snake2(y, out=y)
        out = window[:, self.pad : self.pad + y.shape[1]] + self.bias
        out.view(-1, self.width).addmm_(y.reshape(-1, self.width), self.weight.T)
        return out


def residual_units(weights: Weights, name: str, width: int, dtype: torch.dtype) -> list[ResidualUnit]:
    """The three units of block `name`, dilations 1, 3, 9."""
    return [ResidualUnit(weights, f"{name}.res_unit{u}", width, d, dtype) for u, d in enumerate(DILATIONS, 1)]


def take_conv(
    weights: Weights,
    name: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    dilation: int = 1,
    stride: int = 1,
    bias: bool = True,
) -> Conv:
    """The convolution stored as `name`.weight [Cout, Cin, k] and `name`.bias [Cout]."""
    weight = weights.take(f"{name}.weight", *shape)
    return Conv(weight, weights.take(f"{name}.bias", shape[0]) if bias else None, dtype, dilation, stride)
