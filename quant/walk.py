"""Utterances through the language model, all rows at once and one layer at a time: for calibration and for the gate.

Each row of a prompt and of what was spoken goes in as it was drawn (teacher-forced), so that two checkpoints can be
compared row by row. Only the layer at hand is in memory: any model can be walked where one layer and the rows fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from octavo.kernels.embed_rows import embed_rows
from octavo.kernels.launch import on_triton
from octavo.kernels.prefill_attention import prefill_tiles
from octavo.kernels.rms_norm import rms_norm
from octavo.kernels.rope import rope_table
from octavo.kernels.rows import Rows
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import ModelConfig
from octavo.runtime.layers.linear import Linear
from octavo.runtime.models import check_layout
from octavo.runtime.models.qwen3 import PRODUCTS, Qwen3Layer
from octavo.runtime.prompt import PLACEHOLDER
from octavo.runtime.tensor_names import AUDIO_HEAD, AUDIO_TABLE, BODY, TEXT_EMBEDDING

TEXT_SHARE = 0.2  # of the weight of all rows: text is read once, then every row of decoding is an audio row
_PAGE = 16  # rows


@dataclass(frozen=True, eq=False)
class Utterance:
    """A prompt and what was spoken: ids [P] int64, PLACEHOLDER where the next row of `reference` ([L, 8] int64,
    delayed) takes the place; rows [R, 8] int64, R >= 1, the delayed rows as they were drawn; text, for reports."""

    ids: torch.Tensor
    reference: torch.Tensor
    rows: torch.Tensor
    text: str

    @property
    def length(self) -> int:
        """Rows that the model reads: nothing follows the last row that was drawn."""
        return len(self.ids) + len(self.rows) - 1


@dataclass(frozen=True, eq=False)
class Step:
    """A layer that all rows have gone through; inputs: what its products multiplied, [N, K], if it was captured."""

    number: int
    layer: Qwen3Layer
    inputs: dict[str, torch.Tensor]


class Walk:
    """N rows of all utterances, one after the other, M of which predict a row of codes.

    x: [N, hidden], after as many layers as `layers` has yielded; weights: [N] fp32, how much a row counts: 1 for audio
    rows, less for text; targets: [M, 8] int64, the rows of codes that were drawn; owner: [M] int64, whose they are.
    All on `device`, x in `dtype`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        utterances: Sequence[Utterance],
        device: torch.device,
        dtype: torch.dtype,
        chunk_rows: int = 2048,
    ):
        """chunk_rows: how many rows a layer takes at once, unless one utterance has more. Raises CheckpointError."""
        assert utterances and all(len(u.rows) for u in utterances), [len(u.rows) for u in utterances]
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.cfg = ModelConfig.from_checkpoint(checkpoint.config)
        check_layout(checkpoint, self.cfg)
        self.utterances = list(utterances)
        lengths = torch.tensor([u.length for u in utterances])
        spoken = torch.tensor([len(u.rows) for u in utterances])
        self.owner = torch.arange(len(utterances)).repeat_interleave(spoken).to(device)
        self.targets = torch.cat([u.rows for u in utterances]).to(device)
        # An utterance's last rows predict: its prompt's last, and all that was spoken but the last.
        steps = torch.arange(len(self.targets)) - (spoken.cumsum(0) - lengths.cumsum(0)).repeat_interleave(spoken)
        self._predicting = steps.to(device)
        self._parts = _split(lengths.tolist(), chunk_rows)
        self.x = self._embed()

    @cached_property
    def weights(self) -> torch.Tensor:
        is_text = torch.cat([F.pad(u.ids != PLACEHOLDER, (0, len(u.rows) - 1)) for u in self.utterances])
        texts = int(is_text.sum())
        audio = len(is_text) - texts
        share = min(1.0, audio * TEXT_SHARE / (1 - TEXT_SHARE) / texts) if audio and texts else 1.0
        return torch.where(is_text, share, 1.0).to(self.device)

    def layers(self, capture: bool = False) -> Iterator[Step]:
        """Takes the rows through the body, from the first layer on; a step is yielded when `x` is behind its layer.

        Raises CheckpointError when a layer cannot be read.
        """
        self.x = self._embed()
        chunks = [self._lay_out(part) for part in self._parts]
        cfg, pages = self.cfg, max(int(rows.table.max()) for _, rows in chunks) + 1
        cache = torch.zeros(pages, _PAGE, 2, cfg.num_kv_heads, cfg.head_dim, dtype=self.dtype, device=self.device)
        for number in range(cfg.num_layers):
            layer = Qwen3Layer(cfg, self.device, self.dtype)
            layer.load(self.checkpoint.weights(f"{BODY}{number}."))
            self.checkpoint.release()
            seen: dict[str, list[torch.Tensor]] = {name: [] for name in PRODUCTS} if capture else {}
            for name, inputs in seen.items():
                _watch(getattr(layer, f"{name}_proj"), inputs)
            for at, rows in chunks:
                layer(self.x[at], rows, cache)
            yield Step(number, layer, {name: torch.cat(inputs) for name, inputs in seen.items()})

    def logits(self) -> torch.Tensor:
        """[M, 8 * 1026] fp32, of the rows that predict `targets`; once the last layer has been yielded."""
        norm = self.checkpoint["body.norm.weight"].to(self.device).float()
        head = self.checkpoint[AUDIO_TABLE if self.cfg.tied_audio else AUDIO_HEAD].to(self.device, self.dtype)
        hidden = rms_norm(self.x[self._predicting].float(), norm, self.cfg.rms_norm_eps).to(self.dtype)
        return F.linear(hidden, head).float()

    def _embed(self) -> torch.Tensor:
        """[N, hidden]"""
        cfg, weights = self.cfg, self.checkpoint.weights()
        text_rows = weights.table(TEXT_EMBEDDING, cfg.vocab_size, cfg.hidden_size)
        table = weights.take(AUDIO_TABLE, cfg.num_codebooks * cfg.codebook_vocab, cfg.hidden_size)
        table = table.to(self.device, self.dtype)
        parts = []
        for u in self.utterances:
            prompt = text_rows(u.ids.clamp(min=0)).to(self.device, self.dtype)
            if len(u.reference):
                prompt[u.ids.to(self.device) == PLACEHOLDER] = embed_rows(u.reference.to(self.device), table)
            parts.append(prompt)
            if len(u.rows) > 1:
                parts.append(embed_rows(u.rows[:-1].to(self.device), table))
        return torch.cat(parts)

    def _lay_out(self, part: range) -> tuple[slice, Rows]:
        """Where the rows of these utterances stand in `x`, and what the kernels must know of them."""
        lengths = [u.length for u in self.utterances]
        mine = torch.tensor(lengths[part.start : part.stop])
        first = sum(lengths[: part.start])
        needed = (mine + _PAGE - 1) // _PAGE
        page = torch.arange(int(needed.max())) + (needed.cumsum(0) - needed)[:, None] + 1  # page 0 is nobody's
        table = torch.where(torch.arange(int(needed.max())) < needed[:, None], page, 0)
        spans = [(length, length) for length in mine.tolist()]
        cfg = self.cfg
        rows = Rows(
            torch.cat([torch.arange(length) for length, _ in spans]).int().to(self.device),
            torch.arange(len(mine)).repeat_interleave(mine).int().to(self.device),
            table.int().to(self.device),
            rope_table(int(mine.max()), cfg.head_dim, cfg.rope_theta, self.device, self.dtype),
            _PAGE,
            spans=spans,
            tiles=prefill_tiles(spans, self.device) if on_triton(self.x) else None,
        )
        return slice(first, first + int(mine.sum())), rows


def _split(lengths: list[int], chunk_rows: int) -> list[range]:
    """Runs of utterances with at most `chunk_rows` rows each, or of one utterance."""
    parts, first, rows = [], 0, 0
    for number, length in enumerate(lengths):
        if rows and rows + length > chunk_rows:
            parts.append(range(first, number))
            first, rows = number, 0
        rows += length
    return [*parts, range(first, len(lengths))]


def _watch(linear: Linear, inputs: list[torch.Tensor]) -> None:
    """Adds to `inputs` what each call of `linear` multiplies: its x, or the norm of that."""

    def look(module: torch.nn.Module, args: tuple, options: dict) -> None:
        (x,), norm = args, options.get("norm")
        if norm is not None:
            x = rms_norm(x.float(), norm.float(), options["eps"]).to(x.dtype)
        inputs.append(x)

    linear.register_forward_pre_hook(look, with_kwargs=True)
