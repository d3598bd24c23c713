"""AWQ of a whole model: searched scales are folded into what comes before, then weights are clamped and rounded.

Four folds, each exact in itself; s is a vector over the input channels of the products behind it:

    input_layernorm / s             q, k, v columns * s
    v rows / s                      o columns * s        s of a value head serves all query heads that read it
    post_attention_layernorm / s    gate, up columns * s
    up rows / s                     down columns * s     up multiplies behind the activation of gate

Every layer is searched as it is in the 16-bit model, with the inputs that it has there: errors of the layers before
do not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from octavo.runtime.config import ModelConfig
from octavo.runtime.models.qwen3 import PRODUCTS
from octavo.runtime.tensor_names import BODY

from .awq_search import Inputs, Scales, clamp, search_scales
from .formats.awq import quantize
from .formats.grouped import Grouped
from .walk import Step, Walk

NORMS = {"qkv": "input_layernorm", "gate_up": "post_attention_layernorm"}  # which take a product's scales
_TINY = 1e-30  # a tensor of zeros is no reason to divide by them
_UNCLAMPED = {"self_attn.q_proj", "self_attn.k_proj"}  # whose products meet in a softmax: large values matter there


@dataclass(frozen=True)
class Figures:
    """What a layer's search has found. losses: of each product, with plain rounding, with scales, and clamped as well,
    as parts of the mean square of what it gives; errors: of each tensor, relative L2 of what is stored against what was
    folded."""

    number: int
    losses: dict[str, tuple[float, float, float]]
    errors: dict[str, float]


def quantize_model(
    walk: Walk,
    group: int = 128,
    report: Callable[[Figures], None] = lambda figures: None,
) -> Iterator[tuple[str, Grouped | torch.Tensor]]:
    """The body's matrices, and in fp32 those of its norms that scales were folded into, by name, on the CPU.

    walk: of the 16-bit model. `report` is called after each layer. Raises ValueError when `group` does not divide a
    row, CheckpointError when a layer cannot be read.
    """
    cfg = walk.cfg
    for K in (cfg.hidden_size, cfg.q_size, cfg.intermediate_size):
        if group < 1 or K % group:
            raise ValueError(f"groups of {group} do not divide rows of {K}. Use a group size that does.")
    for step in walk.layers(capture=True):
        layer = _Layer(walk, step, group)
        yield from layer.quantized()
        report(layer.figures)


class _Layer:
    def __init__(self, walk: Walk, step: Step, group: int):
        self.walk, self.group, self.prefix = walk, group, f"{BODY}{step.number}."
        self.figures = Figures(step.number, {}, {})
        self.inputs = {name: Inputs(x, walk.weights) for name, x in step.inputs.items()}
        cfg = walk.cfg
        heads = {"repeats": cfg.num_heads // cfg.num_kv_heads, "width": cfg.head_dim}
        self.scales: dict[str, Scales] = {}
        for name, modules in PRODUCTS.items():
            weights = [self._stored(module) for module in modules]
            shared = heads if name == "o" else {}
            self.scales[name] = search_scales(weights, self.inputs[name], group, **shared)

    def quantized(self) -> Iterator[tuple[str, Grouped | torch.Tensor]]:
        for name, modules in PRODUCTS.items():
            inputs, scales = self.inputs[name], self.scales[name]
            if name in NORMS:
                yield f"{self.prefix}{NORMS[name]}.weight", (self._stored(NORMS[name]) / scales.channels).cpu()
            groups = scales.channels.view(-1, self.group)
            grams = inputs.grams(self.group) / (groups[:, :, None] * groups[:, None, :])
            loss = energy = 0.0
            for module in modules:
                weight = self._stored(module)
                folded = fold(module, weight, name, self.scales, self.walk.cfg)
                matrix = quantize(folded if module in _UNCLAMPED else clamp(folded, grams), self.group)
                error = matrix.dequantize().sub_(folded)
                self.figures.errors[f"{self.prefix}{module}.weight"] = float(error.norm() / (folded.norm() + _TINY))
                unfolded = error / scales.channels * _row_scales(module, self.scales, self.walk.cfg)
                loss += float(inputs.loss(unfolded))
                energy += float(inputs.loss(weight)) + _TINY
                yield f"{self.prefix}{module}.weight", _on_cpu(matrix)
            self.figures.losses[name] = (scales.rounded / energy, scales.scaled / energy, loss / energy)

    def _stored(self, module: str) -> torch.Tensor:
        return self.walk.checkpoint[f"{self.prefix}{module}.weight"].to(self.walk.device).float()


def fold(
    module: str, weight: torch.Tensor, product: str, scales: Mapping[str, Scales], cfg: ModelConfig
) -> torch.Tensor:
    """The weight of a module of `product`, once all of its layer's scales are folded into their places."""
    return weight * scales[product].channels / _row_scales(module, scales, cfg)


def _row_scales(module: str, scales: Mapping[str, Scales], cfg: ModelConfig) -> torch.Tensor | float:
    """[N, 1] or 1, by which a module's rows are divided: the scales of the product that multiplies what they give."""
    if module == "mlp.up_proj":
        return scales["down"].channels[:, None]
    if module == "self_attn.v_proj":
        return scales["o"].channels.view(cfg.num_kv_heads, -1, cfg.head_dim)[:, 0].reshape(-1, 1)
    return 1.0


def _on_cpu(matrix: Grouped) -> Grouped:
    offset = None if matrix.offset is None else matrix.offset.cpu()
    return Grouped(matrix.codes.cpu(), matrix.scale.cpu(), offset)
