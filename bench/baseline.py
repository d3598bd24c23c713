"""What octavo is compared with: the model put together from `transformers` parts, as its users would do it.

Qwen3Model with DynamicCache and scaled dot product attention, and one fused table for the eight codebooks, which embeds
audio rows and is their head. One request at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

PLACEHOLDER = -100
CODEBOOKS, CODES = 8, 1026


class Baseline:
    """A checkpoint folder in the published layout, one shard."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        weights = load_file(folder / "model.safetensors")
        text = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
        self._build(text, weights, device, dtype)

    @classmethod
    def of(
        cls,
        text_config: Mapping[str, Any],
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Baseline:
        """Of weights by their names in a checkpoint; those of this device and dtype already are not copied."""
        baseline = cls.__new__(cls)
        baseline._build(text_config, weights, device, dtype)
        return baseline

    def _build(
        self, text: Mapping[str, Any], weights: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        from transformers import Qwen3Config, Qwen3Model  # here: only who measures needs transformers

        fields = {k: v for k, v in text.items() if k not in ("architectures", "dtype", "model_type")}
        config = Qwen3Config(**fields | {"bos_token_id": None, "eos_token_id": None})
        config._attn_implementation = "sdpa"
        state = {name.removeprefix("body."): w for name, w in weights.items() if name.startswith("body.")}
        state["embed_tokens.weight"] = weights["tied.embedding.text_embedding.weight"]
        with torch.device("meta"):
            self.model: Any = Qwen3Model(config)
        self.model.load_state_dict({name: w.to(device, dtype) for name, w in state.items()}, assign=True)
        self.model.rotary_emb = type(self.model.rotary_emb)(config).to(device)  # its buffer is in no checkpoint
        self.model.eval().requires_grad_(False)
        self.table = weights["tied.embedding.modality_embeddings.0.embedding.weight"].to(device, dtype)
        self.offsets = torch.arange(0, CODEBOOKS * CODES, CODES, device=device)

    @contextmanager
    def rounded_rope(self) -> Iterator[None]:
        """cos and sin rounded to bf16, as the model was trained: for comparing outputs. In bf16 it changes nothing.

        Timing leaves it off, so that the baseline has no work that stock transformers has not.
        """
        rotary = self.model.rotary_emb
        forward = rotary.forward
        rotary.forward = lambda x, ids: tuple(t.to(torch.bfloat16).to(x.dtype) for t in forward(x.float(), ids))
        try:
            yield
        finally:
            del rotary.forward

    def embed_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: [n, 8] int64 delayed codes -> [n, hidden]."""
        return F.embedding(rows + self.offsets, self.table).sum(1)

    def embed_prompt(self, ids: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """ids: [n] int64 with PLACEHOLDER where the next of `rows` [m, 8] goes -> [n, hidden]."""
        audio = ids == PLACEHOLDER
        x = self.model.embed_tokens(ids.masked_fill(audio, 0))
        if rows is not None:
            x[audio] = self.embed_rows(rows)
        return x

    def start(self) -> Any:
        """An empty cache of keys and values."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def forward(self, embedded: torch.Tensor, cache: Any) -> torch.Tensor:
        """[n, hidden] embedded rows behind those of the cache -> [n, hidden] final hidden states."""
        return self.forward_batch(embedded[None], cache)[0]

    @torch.inference_mode()
    def forward_batch(self, embedded: torch.Tensor, cache: Any) -> torch.Tensor:
        """[B, n, hidden] -> [B, n, hidden], likewise."""
        return self.model(inputs_embeds=embedded, past_key_values=cache, use_cache=True).last_hidden_state

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, 8, 1026] fp32."""
        return F.linear(hidden, self.table).float().view(-1, CODEBOOKS, CODES)


def mark(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What the cache holds now, for `rewind`. Growing it makes new tensors, so these stay as they are."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def rewind(cache: Any, held: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for layer, (keys, values) in zip(cache.layers, held, strict=True):
        layer.keys, layer.values = keys, values
