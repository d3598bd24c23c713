"""One pass of the streaming decoder through the Triton kernels: its weights as these want them, tails and activations.

Every tensor stays where it is, so that a pass can be captured. 29 launches for the published codec: the lookup, the
first convolution, in each block the transposed convolution and three residual units (two launches each where they are
wide), and the last convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from octavo.kernels.codec_conv import codec_conv
from octavo.kernels.codec_head import codec_head
from octavo.kernels.codec_lookup import codec_lookup
from octavo.kernels.codec_unit import WIDEST, Unit, codec_unit, without_tail
from octavo.kernels.codec_window import COLUMNS, Window

from .config import CodecConfig
from .decoder import CodecDecoder, Head, Stem, Upsample
from .layers import Conv, Layer, ResidualUnit, Snake

# A layer's launches: its input, its output [F * rate, columns], and room for what is between two launches.
Launch = Callable[[Window, torch.Tensor, torch.Tensor], object]


@dataclass(frozen=True)
class Stage:
    launch: Launch
    tails: torch.Tensor  # [2, seats, tail, Cin]
    rate: int  # rows of its input per frame
    delay: int  # rows by which its input is late
    columns: int  # values for each of these rows that it puts out


class Stages:
    """Decodes up to `capacity` frames in one pass. tails[i]: [2, seats, tail, Cin], of layer i."""

    def __init__(self, decoder: CodecDecoder, codes: torch.Tensor, seats: int, capacity: int):
        self.decoder, self.codes = decoder, codes
        new = decoder.table.new_zeros
        self.frames = new(capacity, COLUMNS, dtype=torch.int32)
        self.sound = new(capacity * decoder.config.hop)
        self._stages: list[Stage] = []
        rate, delay, width = 1, 0, decoder.config.latent
        for layer in decoder.layers:
            tails = new(2, seats, layer.tail, width)
            self._stages.append(Stage(_launch(layer), tails, rate, delay, layer.stride * layer.width))
            rate, delay, width = rate * layer.stride, layer.delayed(delay), layer.width
        widest, between = _values(decoder.config)
        self._input, self._output = new(capacity * widest), new(capacity * widest)
        self._between = new(capacity * between)

    @property
    def tails(self) -> list[torch.Tensor]:
        return [stage.tails for stage in self._stages]

    def run(self, F: int) -> None:
        """The frames in self.frames[:F], see kernels/codec_window.py -> self.sound[: F * hop]."""
        frames, decoder, hop = self.frames[:F], self.decoder, self.decoder.config.hop
        x, out = self._input, self._output
        codec_lookup(self.codes, frames, decoder.table, decoder.bias, x[: F * decoder.config.latent].view(F, -1))
        for stage in self._stages:
            rows, (_, _, _, width) = F * stage.rate, stage.tails.shape
            window = Window(x[: rows * width].view(rows, width), stage.tails, frames, stage.rate, stage.delay)
            y = out if stage is not self._stages[-1] else self.sound
            stage.launch(window, y[: rows * stage.columns].view(rows, stage.columns), self._between)
            x, out = out, x
        assert rows == F * hop, (rows, F)


def pass_bytes(config: CodecConfig, capacity: int) -> int:
    """Bytes on the device of all that is not per slot: activations and sound of `capacity` frames, bf16 weights."""
    widest, between = _values(config)
    weights = 7 * config.latent * config.widths[0]
    for (cin, cout), stride in zip(pairwise(config.widths), config.strides, strict=True):
        weights += 2 * stride * cin * cout + 3 * 8 * cout * cout
    return 4 * capacity * (2 * widest + between + config.hop + COLUMNS) + 2 * weights


def _values(config: CodecConfig) -> tuple[int, int]:
    """Values per frame of the widest activation, and of the widest one that a unit keeps between two launches."""
    rate, widest, between = 1, max(config.latent, config.widths[0]), 0
    for stride, width in zip(config.strides, config.widths[1:], strict=True):
        rate *= stride
        widest = max(widest, rate * width)
        between = max(between, rate * width) if width > WIDEST else between
    return widest, between


def _launch(layer: Layer) -> Launch:
    if isinstance(layer, Stem):
        weight, bias = _conv(layer.conv)
        return lambda window, out, _: codec_conv(window, weight, bias, out)
    if isinstance(layer, Upsample):
        taps, snake = _packed(layer.weight.flip(0)), _snake(layer.activation)
        return lambda window, out, _: codec_conv(window, taps, layer.bias, out, snake)
    if isinstance(layer, Head):
        end, last = _snake(layer.activation), layer.weight.contiguous()
        return lambda window, out, _: codec_head(window, end, last, layer.bias, out.view(-1))
    assert isinstance(layer, ResidualUnit), layer
    conv2 = _packed(layer.weight.T[None])
    unit = Unit(_snake(layer.snake1), *_conv(layer.conv1), _snake(layer.snake2), conv2, layer.bias)
    if layer.width <= WIDEST:
        return lambda window, out, _: codec_unit(window, unit, out)

    def wide(window: Window, out: torch.Tensor, between: torch.Tensor) -> None:
        middle = between[: out.numel()].view_as(out)
        codec_conv(window, unit.conv1, unit.bias1, middle, unit.snake1)
        codec_conv(without_tail(window, middle), unit.conv2, unit.bias2, out, unit.snake2, skip=window)

    return wide


def _conv(conv: Conv) -> tuple[torch.Tensor, torch.Tensor]:
    """weight [taps, Cin, Cout], bias [Cout]"""
    assert conv.bias is not None
    return _packed(conv.weight[:, :, 0].permute(2, 1, 0)), conv.bias


def _packed(weight: torch.Tensor) -> torch.Tensor:
    """In bf16 where that loses nothing, as for the published checkpoint; else in fp32."""
    half = weight.bfloat16()
    return (half if torch.equal(half.float(), weight) else weight).contiguous()


def _snake(snake: Snake) -> tuple[torch.Tensor, torch.Tensor]:
    return snake.alpha, snake.reciprocal
