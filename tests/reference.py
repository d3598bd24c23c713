"""The model put together from `transformers` parts, sharing no code with octavo: what "right" means in these tests.

The prompt, the delay pattern and the loop are written out once more from the specification.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import DynamicCache, Qwen3Config, Qwen3Model

BOC, EOC, PLACEHOLDER = 1024, 1025, -100


class Reference:
    """A Higgs v3 checkpoint folder as Qwen3Model + fused table, one request at a time, greedy."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, rounded_rope: bool = True, device="cpu"):
        weights = load_file(folder / "model.safetensors")
        text = json.loads((folder / "config.json").read_text())["text_config"]
        config = Qwen3Config(**{k: v for k, v in text.items() if k not in ("architectures", "dtype", "model_type")})
        config._attn_implementation = "sdpa"
        self.model = Qwen3Model(config).to(dtype).eval()
        state = {name[len("body.") :]: w for name, w in weights.items() if name.startswith("body.")}
        state["embed_tokens.weight"] = weights["tied.embedding.text_embedding.weight"]
        self.model.load_state_dict(state)
        self.model.to(device)
        self.table = weights["tied.embedding.modality_embeddings.0.embedding.weight"].to(device, dtype)
        if rounded_rope:  # the published servers round cos and sin to bf16, as the model was trained
            rotary = self.model.rotary_emb.forward
            self.model.rotary_emb.forward = lambda x, ids: tuple(
                t.to(torch.bfloat16).to(x.dtype) for t in rotary(x.float(), ids)
            )

    def embed_row(self, row: list[int]) -> torch.Tensor:
        picked = torch.stack([self.table[c * 1026 + code] for c, code in enumerate(row)])
        return picked.float().sum(0).to(self.table.dtype)

    def embed_prompt(self, ids: list[int], codes: list[list[int]] | None) -> torch.Tensor:
        """ids with PLACEHOLDER where the delayed rows of codes [T][8] go -> [1, n, hidden]."""
        delayed = iter(self.delay(codes or []))
        rows = [self.model.embed_tokens.weight[i] if i != PLACEHOLDER else self.embed_row(next(delayed)) for i in ids]
        return torch.stack(rows)[None]

    @staticmethod
    def delay(codes: list[list[int]]) -> list[list[int]]:
        T = len(codes)
        value = lambda r, c: BOC if r < c else codes[r - c][c] if r - c < T else EOC  # noqa: E731
        return [[value(r, c) for c in range(8)] for r in range(T + 7)] if T else []

    @torch.inference_mode()
    def hidden(self, embedded: torch.Tensor) -> torch.Tensor:
        """[1, n, hidden] -> [n, hidden] final hidden states."""
        return self.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return (hidden @ self.table.T).float().view(-1, 8, 1026)

    @torch.inference_mode()
    def greedy(
        self, ids: list[int], codes: list[list[int]] | None, max_rows: int
    ) -> tuple[list[list[int]], torch.Tensor]:
        """Rows of codes, delayed, and the logits they were taken from, [rows, 8, 1026]."""
        cache = DynamicCache()
        x, rows, seen = self.embed_prompt(ids, codes), [], []
        left = None
        while True:
            hidden = self.model(inputs_embeds=x, past_key_values=cache, use_cache=True).last_hidden_state[0, -1:]
            logits = self.logits(hidden)[0]
            seen.append(logits)
            row = logits.argmax(-1).tolist()
            number = len(rows)
            if number < 8:
                row[number + 1 :] = [BOC] * (7 - number)
            elif left is not None:
                left -= 1
            elif row[0] == EOC:
                left = 6
            rows.append(row)
            if left == 0 or len(rows) == max_rows:
                return rows, torch.stack(seen)
            x = self.embed_row(row)[None, None]
