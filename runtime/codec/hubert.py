"""HuBERT base: sound at 16 kHz to semantic features at 50 Hz. Post-norm layers, group norm in the feature extractor.

Names and arithmetic follow the checkpoint. Group norm and attention look at the whole recording, so this part of the
codec cannot stream.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from octavo.runtime.checkpoint import Weights

from .config import HUBERT_STRIDES, HubertConfig
from .layers import Conv, owned, take_conv

EPS = 1e-5


class Norm(nn.Module):
    """Weight and bias of a normalisation over `width` channels."""

    def __init__(self, weights: Weights, name: str, width: int, dtype: torch.dtype):
        super().__init__()
        self.weight = owned(weights.take(f"{name}.weight", width), dtype)
        self.bias = owned(weights.take(f"{name}.bias", width), dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Layer norm: over the channels of each position."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPS)

    def over_time(self, x: torch.Tensor) -> torch.Tensor:
        """Group norm with one channel per group: over the time of each channel. x: [B, n, C], changed in place."""
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return x.sub_(mean).mul_(self.weight * (variance + EPS).rsqrt()).add_(self.bias)


class Linear(nn.Module):
    """x W^T + b; weight [out, in]."""

    def __init__(self, weights: Weights, name: str, width_out: int, width_in: int, dtype: torch.dtype):
        super().__init__()
        self.weight = owned(weights.take(f"{name}.weight", width_out, width_in), dtype)
        self.bias = owned(weights.take(f"{name}.bias", width_out), dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)


class HubertLayer(nn.Module):
    """h = LN(h + attention(h)); h = LN(h + W2 gelu(W1 h)). Attention sees all positions, in both directions."""

    def __init__(self, weights: Weights, name: str, config: HubertConfig, dtype: torch.dtype):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Linear(weights, f"{name}.attention.{part}_proj", width, width, dtype) for part in ("q", "k", "v", "out")
        )
        self.layer_norm = Norm(weights, f"{name}.layer_norm", width, dtype)
        self.intermediate_dense = Linear(weights, f"{name}.feed_forward.intermediate_dense", config.ffn, width, dtype)
        self.output_dense = Linear(weights, f"{name}.feed_forward.output_dense", width, config.ffn, dtype)
        self.final_layer_norm = Norm(weights, f"{name}.final_layer_norm", width, dtype)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        B, n, C = h.shape
        q, k, v = (
            proj(h).view(B, n, self.heads, -1).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attention = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, n, C)
        h = self.layer_norm(h + self.out_proj(attention))
        return self.final_layer_norm(h + self.output_dense(F.gelu(self.intermediate_dense(h))))


class Hubert(nn.Module):
    """[B, L] at 16 kHz -> [B, n, width], the mean of its hidden states: after the positions, and after each layer."""

    def __init__(self, weights: Weights, config: HubertConfig, dtype: torch.dtype = torch.float32):
        super().__init__()
        name = "semantic_model"
        convs: list[Conv] = []
        for i, (kernel, stride) in enumerate(zip(config.conv_kernels, HUBERT_STRIDES, strict=True)):
            shape = (config.conv_width, config.conv_width if i else 1, kernel)
            conv = f"{name}.feature_extractor.conv_layers.{i}.conv"
            convs.append(take_conv(weights, conv, shape, dtype, stride=stride, bias=False))
        self.convs = nn.ModuleList(convs)
        self.group_norm = Norm(weights, f"{name}.feature_extractor.conv_layers.0.layer_norm", config.conv_width, dtype)
        self.feature_norm = Norm(weights, f"{name}.feature_projection.layer_norm", config.conv_width, dtype)
        self.projection = Linear(
            weights, f"{name}.feature_projection.projection", config.width, config.conv_width, dtype
        )
        weight, bias = position_conv(weights, config)
        self.pos_weight, self.pos_bias = owned(weight, dtype), owned(bias, dtype)
        self.pos_groups = config.pos_groups
        self.layer_norm = Norm(weights, f"{name}.encoder.layer_norm", config.width, dtype)
        layers = [HubertLayer(weights, f"{name}.encoder.layers.{i}", config, dtype) for i in range(config.layers)]
        self.layers = nn.ModuleList(layers)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        h = sound[:, :, None]
        for i, conv in enumerate(self.convs):
            h = conv(h)
            h = F.gelu(self.group_norm.over_time(h) if i == 0 else h)
        h = self.projection(self.feature_norm(h))
        h = self.layer_norm(h + F.gelu(self.positions(h)))
        total = h
        for layer in self.layers:
            h = layer(h)
            total = total + h
        return total / (len(self.layers) + 1)

    def positions(self, h: torch.Tensor) -> torch.Tensor:
        """The convolution that stands for position embeddings; an even kernel gives one sample too many at the end."""
        kernel = self.pos_weight.shape[2]
        y = F.conv1d(h.transpose(1, 2), self.pos_weight, self.pos_bias, padding=kernel // 2, groups=self.pos_groups)
        return y[:, :, : h.shape[1]].transpose(1, 2)


def position_conv(weights: Weights, config: HubertConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The positional convolution, stored in its two weight-norm factors, one norm per tap: g_k v_k / |v_k|, fp64."""
    name, kernel = "semantic_model.encoder.pos_conv_embed.conv", config.pos_kernel
    g = weights.take(f"{name}.parametrizations.weight.original0", 1, 1, kernel).double()
    shape = (config.width, config.width // config.pos_groups, kernel)
    v = weights.take(f"{name}.parametrizations.weight.original1", *shape).double()
    return g * v / v.norm(dim=(0, 1), keepdim=True), weights.take(f"{name}.bias", config.width)
