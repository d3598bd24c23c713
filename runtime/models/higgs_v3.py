"""Higgs TTS v3: a Qwen3 body with one fused table for eight codebooks, which embeds audio rows and is their head."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn

from octavo.kernels.embed_rows import embed_rows, start_row
from octavo.kernels.rows import Rows

from ..checkpoint import Checkpoint
from ..config import ModelConfig
from ..errors import CheckpointError
from ..layers.linear import Linear
from ..layers.parameter import empty, fill
from ..tensor_names import AUDIO_HEAD, AUDIO_TABLE, BODY, CODEC_PREFIX, TEXT_EMBEDDING
from .qwen3 import Qwen3


class HiggsV3(nn.Module):
    """text_rows: ids [n] int64 -> [n, hidden]. The text embedding stays where it is, mapped from the file: prompts read
    a few hundred of its rows."""

    def __init__(
        self,
        cfg: ModelConfig,
        text_rows: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.cfg, self.text_rows = cfg, text_rows
        self.body = Qwen3(cfg, device, dtype)
        self.audio_table = empty(cfg.num_codebooks * cfg.codebook_vocab, cfg.hidden_size, device=device, dtype=dtype)
        self.audio_head = Linear(cfg.hidden_size, self.audio_table.shape[0], device, dtype)

    @property
    def device(self) -> torch.device:
        return self.audio_table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.audio_table.dtype

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: [n] int64 on the CPU -> [n, hidden] on the model's device."""
        rows = self.text_rows(ids).to(self.dtype)
        if self.device.type == "cuda":  # from pageable memory the copy would wait for all that the device has to do
            rows = rows.pin_memory()
        return rows.to(self.device, non_blocking=True)

    def embed_audio(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: [n, 8] int64 delayed codes, BOC and EOC included -> [n, hidden]."""
        return embed_rows(rows, self.audio_table)

    def start_row(
        self,
        last: torch.Tensor,
        row: torch.Tensor,
        prompt: torch.Tensor,
        active: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        """The lanes' newest rows [B, 8] int16 -> [B, hidden], and `row` and `positions` moved on: see the kernel."""
        return start_row(last, self.audio_table, row, prompt, active, positions)

    def forward(self, x: torch.Tensor, rows: Rows, pages: torch.Tensor) -> torch.Tensor:
        """x: [N, hidden] embedded rows, overwritten -> [N, hidden], for `logits`."""
        return self.body(x, rows, pages)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden: [B, hidden] -> [B, 8 * 1026] in the model's dtype, as it was trained."""
        return self.audio_head(hidden, norm=self.body.norm, eps=self.cfg.rms_norm_eps)

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> HiggsV3:
        """Strict: a missing or misshapen tensor, or one that belongs to no known part, raises CheckpointError.

        Holds the weights once: each layer's file pages are given back as soon as they are copied.
        `progress(layers done, layers in all)` is called after each layer.
        """
        cfg, weights = ModelConfig.from_checkpoint(checkpoint.config), checkpoint.weights()
        check_layout(checkpoint, cfg)
        model = cls(cfg, weights.table(TEXT_EMBEDDING, cfg.vocab_size, cfg.hidden_size), device, dtype)
        table_shape = model.audio_table.shape
        fill(model.audio_table, weights.take(AUDIO_TABLE, *table_shape))
        if cfg.tied_audio:
            model.audio_head.share(model.audio_table)
        else:
            model.audio_head.load(weights.matrix(AUDIO_HEAD, *table_shape))
        fill(model.body.norm, weights.take("body.norm.weight", cfg.hidden_size))
        for number, layer in enumerate(model.body.layers):
            layer.load(checkpoint.weights(f"{BODY}{number}."))
            checkpoint.release()
            progress(number + 1, cfg.num_layers)
        return model.eval()


def check_layout(checkpoint: Checkpoint, cfg: ModelConfig) -> None:
    """Compares names, shapes and types with what config.json describes; reads headers only.

    Raises CheckpointError for a tensor that is missing, misshapen, no floating-point number, or left over. The codec
    may hold more than octavo reads (training leftovers), and so may `tied.head.`: copies of the tables.
    """
    if cfg.num_layers > len(checkpoint):
        raise CheckpointError(
            f"config.json asks for {cfg.num_layers} layers, but the checkpoint has {len(checkpoint)} tensors in all. "
            "They do not belong together."
        )
    weights, known = checkpoint.weights(), layout(cfg)
    for name, shape in known.items():
        weights.check(name, *shape)
    for name in checkpoint:
        if name not in known and not name.startswith((CODEC_PREFIX, "tied.head.")):
            raise CheckpointError(
                f"{name} is left over: no part of the model that config.json describes has it. "
                "The checkpoint and its config.json do not belong together."
            )


def layout(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The language model's tensors, by name: their shapes. The codec's are its own affair."""
    hidden, ffn = cfg.hidden_size, cfg.intermediate_size
    table = (cfg.num_codebooks * cfg.codebook_vocab, hidden)
    shapes: dict[str, tuple[int, ...]] = {TEXT_EMBEDDING: (cfg.vocab_size, hidden), AUDIO_TABLE: table}
    if not cfg.tied_audio:
        shapes[AUDIO_HEAD] = table
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (cfg.q_size, hidden),
        "self_attn.k_proj": (cfg.kv_size, hidden),
        "self_attn.v_proj": (cfg.kv_size, hidden),
        "self_attn.o_proj": (hidden, cfg.q_size),
        "self_attn.q_norm": (cfg.head_dim,),
        "self_attn.k_norm": (cfg.head_dim,),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }
    for number in range(cfg.num_layers):
        shapes |= {f"{BODY}{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {"body.norm.weight": (hidden,)}
