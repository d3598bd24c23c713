"""AWQ's two searches: scales of input channels, and bounds of groups, with which rounding to 4 bits hurts least.

Lin et al., "AWQ: Activation-aware Weight Quantization" (2023), in the form of the widely used tools: a channel's scale
is s = mean|x|^a / mean|w|^(1-a) for the best a of a grid, and a group's values are clamped to the best part of their
range. What hurts is the error of the product, for D = what was rounded - W and rows x of weight c:

    loss(D) = sum_t c_t |D x_t|^2 / sum_t c_t = trace(D H D^T),    H = sum_t c_t x_t x_t^T / sum_t c_t
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .formats.awq import steps

EXPONENTS = 20  # a = 0, 1/20, ..., 19/20
CLAMPS = 10  # to 1, 19/20, ..., 11/20 of the group's largest value
_BF16_SPEED = 4  # times fp32's, where there is hardware for it
_VALUES = {"cpu": 1 << 20, "cuda": 1 << 25}  # of a weight at a time: what the caches hold, and what keeps a GPU busy


class Inputs:
    """The rows that a product multiplies, as far as searches need them. x: [T, K]; weights: [T] fp32.

    With few rows these are kept, with many H is: the loss is the same, and its product the faster one. H needs fp32;
    rows that came in bf16 stay so, and multiply several times as fast.
    """

    def __init__(self, x: torch.Tensor, weights: torch.Tensor):
        T, K = x.shape
        is_fast = x.dtype == torch.bfloat16
        share = (weights / weights.sum())[:, None]
        self.magnitude = (x.abs() * share).sum(0)  # [K] fp32: mean|x|
        rows = x.float() * share.sqrt()
        self._is_gram = T > K * (_BF16_SPEED if is_fast else 1)
        self._kept = rows.t() @ rows if self._is_gram else rows.to(x.dtype if is_fast else torch.float32)

    def loss(self, error: torch.Tensor) -> torch.Tensor:
        """error: [n, K] fp32 -> loss(D), a scalar."""
        if self._is_gram:
            return (error @ self._kept).mul_(error).sum()
        return (error.to(self._kept.dtype) @ self._kept.t()).float().square_().sum()

    def grams(self, group: int) -> torch.Tensor:
        """[G, group, group] fp32: H of each group of channels alone."""
        K = self._kept.shape[1]
        if self._is_gram:
            blocks = self._kept.view(K // group, group, K // group, group)
            return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        groups = self._kept.float().view(-1, K // group, group).transpose(0, 1)
        return groups.transpose(1, 2) @ groups


@dataclass(frozen=True)
class Scales:
    """channels: [K] fp32, by which the weights' columns are multiplied, and what goes in is divided; exponent: the a
    that they come from, None where plain rounding was best; losses of plain rounding, and with the scales."""

    channels: torch.Tensor
    exponent: float | None
    rounded: float
    scaled: float


def search_scales(
    weights: list[torch.Tensor], inputs: Inputs, group: int, repeats: int = 1, width: int | None = None
) -> Scales:
    """weights: [N_i, K] each, which multiply the same inputs.

    With repeats > 1, channels (h, r, d) of K = heads * repeats * width share a scale over r: that of the value head
    which `repeats` query heads read.
    """
    K = weights[0].shape[1]
    width = width or K

    def shared(values: torch.Tensor) -> torch.Tensor:
        return values.view(-1, repeats, width).mean(1)

    def spread(scales: torch.Tensor) -> torch.Tensor:
        return scales[:, None].expand(-1, repeats, -1).reshape(K)

    x_mean, w_mean = shared(inputs.magnitude), shared(_mean_magnitude(weights, group))
    tried = [torch.ones(K, device=inputs.magnitude.device)]
    for step in range(EXPONENTS):
        a = step / EXPONENTS
        scales = (x_mean.pow(a) / (w_mean.pow(1 - a) + 1e-4)).clamp_(min=1e-4)
        scales /= (scales.max() * scales.min()).sqrt()  # around 1: neither norms nor weights may overflow
        tried.append(spread(torch.where(scales.isfinite(), scales, 1.0)))
    losses = torch.zeros(len(tried), device=inputs.magnitude.device)
    for part in _parts(weights):
        for number, scales in enumerate(tried):
            rounded = _rounded((part * scales).view(len(part), -1, group)).view_as(part)
            losses[number] += inputs.loss(rounded.div_(scales).sub_(part))
    best = int(losses.argmin())
    exponent = (best - 1) / EXPONENTS if best else None
    return Scales(tried[best], exponent, float(losses[0]), float(losses[best]))


def clamp(weight: torch.Tensor, grams: torch.Tensor) -> torch.Tensor:
    """weight: [N, K] fp32; grams: [G, group, group], of its inputs -> the weight, each group of each row clamped to
    the bound with which it is rounded best: by the loss of its own part of the product."""
    K, group = weight.shape[1], grams.shape[1]
    clamped = torch.empty_like(weight)
    for first, part in _numbered_parts(weight):
        groups = part.view(len(part), K // group, group)
        largest = groups.abs().amax(-1, keepdim=True)
        best, bound = torch.full_like(largest, torch.inf), largest
        for step in range(CLAMPS):
            limit = largest * (1 - step / (2 * CLAMPS))
            error = _rounded(groups.clamp(-limit, limit)).sub_(groups)
            loss = (error.transpose(0, 1) @ grams).transpose(0, 1).mul_(error).sum(-1, keepdim=True)
            better = loss < best
            best, bound = torch.where(better, loss, best), torch.where(better, limit, bound)
        clamped[first : first + len(part)] = groups.clamp(-bound, bound).view_as(part)
    return clamped


def _mean_magnitude(weights: list[torch.Tensor], group: int) -> torch.Tensor:
    """[K]: the mean over all rows of |w|, in parts of the largest of its group."""
    total = torch.zeros(weights[0].shape[1], device=weights[0].device)
    for part in _parts(weights):
        groups = part.abs().view(len(part), -1, group)
        total += (groups / (groups.amax(-1, keepdim=True) + 1e-6)).view_as(part).sum(0)
    return total / sum(len(weight) for weight in weights)


def _rounded(groups: torch.Tensor) -> torch.Tensor:
    """groups: [n, G, group] -> what `formats.awq.quantize` would make of them, as numbers."""
    scale, zero = steps(groups)
    return (groups / scale).round_().add_(zero).clamp_(0, 15).sub_(zero).mul_(scale)


def _parts(weights: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Some rows of them at a time, in fp32."""
    for weight in weights:
        for _, part in _numbered_parts(weight):
            yield part


def _numbered_parts(weight: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    rows = max(1, _VALUES[weight.device.type] // weight.shape[1])
    for first in range(0, len(weight), rows):
        yield first, weight[first : first + rows].float()
