"""Qwen3, the decoder body: pre-norm blocks of grouped-query attention (norms on q and k, then rope) and SwiGLU."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn as nn

from octavo.kernels.decode_attention import decode_attention
from octavo.kernels.packed import Packed
from octavo.kernels.prefill_attention import prefill_attention
from octavo.kernels.qk_rope import qk_rope_write
from octavo.kernels.rows import Rows

from ..checkpoint import Weights
from ..config import ModelConfig
from ..layers.linear import Linear
from ..layers.parameter import empty, fill

# A layer's products, and the checkpoint's modules whose weights each of them multiplies with, one below the other.
PRODUCTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class Qwen3Layer(nn.Module):
    """Its norms before products, input_norm and mlp_norm [hidden], come with their products' weights: see `load`."""

    input_norm: torch.Tensor
    mlp_norm: torch.Tensor

    def __init__(self, cfg: ModelConfig, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.cfg, self.eps = cfg, cfg.rms_norm_eps
        self.qkv_proj = Linear(cfg.hidden_size, cfg.q_size + 2 * cfg.kv_size, device, dtype)
        self.qk_norm = empty(cfg.num_heads + cfg.num_kv_heads, cfg.head_dim, device=device, dtype=dtype)
        self.o_proj = Linear(cfg.q_size, cfg.hidden_size, device, dtype)
        self.gate_up_proj = Linear(cfg.hidden_size, 2 * cfg.intermediate_size, device, dtype)
        self.down_proj = Linear(cfg.intermediate_size, cfg.hidden_size, device, dtype)

    def forward(self, x: torch.Tensor, rows: Rows, pages: torch.Tensor) -> torch.Tensor:
        """x: [N, hidden], changed in place; pages: this layer's [P, S, 2, kv_heads, D], to which the rows' keys and
        values are added. Returns x."""
        N, H, K, D = x.shape[0], self.cfg.num_heads, self.cfg.num_kv_heads, self.cfg.head_dim
        qkv = self.qkv_proj(x, norm=self.input_norm, eps=self.eps).view(N, H + 2 * K, D)
        qk_rope_write(qkv, self.qk_norm, self.eps, rows, pages)
        attention = decode_attention if rows.spans is None else prefill_attention
        x = self.o_proj(attention(qkv[:, :H], pages, rows).view(N, H * D), residual=x)
        h = self.gate_up_proj(x, norm=self.mlp_norm, eps=self.eps, swiglu=True)
        return self.down_proj(h, residual=x)

    def load(self, weights: Weights) -> None:
        """Copies the checkpoint's tensors into the fused parameters; quantized matrices stay so."""
        c, hidden, ffn = self.cfg, self.cfg.hidden_size, self.cfg.intermediate_size
        q, k, v = (weights.matrix(f"self_attn.{n}_proj.weight", s, hidden)
                   for n, s in (("q", c.q_size), ("k", c.kv_size), ("v", c.kv_size)))  # fmt: skip
        self.qkv_proj.load(q, k, v)
        self.o_proj.load(weights.matrix("self_attn.o_proj.weight", hidden, c.q_size))
        self.gate_up_proj.load(*(weights.matrix(f"mlp.{n}_proj.weight", ffn, hidden) for n in ("gate", "up")))
        self.down_proj.load(weights.matrix("mlp.down_proj.weight", hidden, ffn))
        q_norm, k_norm = (weights.take(f"self_attn.{n}_norm.weight", c.head_dim) for n in "qk")
        fill(self.qk_norm, q_norm.expand(c.num_heads, -1), k_norm.expand(c.num_kv_heads, -1))
        self.input_norm = _norm(weights.take("input_layernorm.weight", hidden), self.qkv_proj)
        self.mlp_norm = _norm(weights.take("post_attention_layernorm.weight", hidden), self.gate_up_proj)


def _norm(weight: torch.Tensor, behind: Linear) -> nn.Parameter:
    """In the model's dtype, or in fp32 before quantized weights: AWQ has divided it by the scales of its channels, and
    16 bits would round those."""
    dtype = torch.float32 if isinstance(behind.weight, Packed) else behind.dtype
    own = empty(*weight.shape, device=behind.device, dtype=dtype)
    fill(own, weight)
    return own


class Qwen3(nn.Module):
    def __init__(self, cfg: ModelConfig, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.cfg = cfg
        layers = nn.ModuleList(Qwen3Layer(cfg, device, dtype) for _ in range(cfg.num_layers))
        self.layers = cast("list[Qwen3Layer]", layers)
        self.norm = empty(cfg.hidden_size, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, rows: Rows, pages: torch.Tensor) -> torch.Tensor:
        """x: [N, hidden], overwritten; pages: [layers, P, S, 2, kv_heads, D]. Returns [N, hidden], before the last
        norm: whoever reads it applies `norm` to the rows that it needs."""
        for layer, layer_pages in zip(self.layers, pages, strict=True):
            x = layer(x, rows, layer_pages)
        return x
