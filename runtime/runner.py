"""Runs the model: prompts in, one row of codes per running request out. The only place that lays out its inputs.

Whatever a request may vary lies in tensors with one row per slot, at fixed addresses, so that a captured row can read
them; nothing about a request is a constant of the computation.
"""

from __future__ import annotations

import numpy as np
import torch

from octavo.kernels.delay_step import delay_step
from octavo.kernels.philox import uniform
from octavo.kernels.rope import rope_table
from octavo.kernels.sample_codes import sample_codes

from .config import EngineConfig
from .kv_cache import DUMMY_PAGE
from .layers.attention import Rows
from .memory import lazy_zeros
from .models import Model
from .prompt import PLACEHOLDER
from .scheduler import Sequence


class Slots:
    """What the device knows of each running request: tensors with one row per slot."""

    def __init__(self, slots: int, config: EngineConfig, codebooks: int, device: torch.device):
        def full(*shape: int, value: float = 0, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.full((slots, *shape), value, dtype=dtype, device=device)

        self.table = full(-(-config.max_context // config.page_size))  # pages, padded with the dummy page
        self.length = full()  # rows in the KV cache
        self.row = full()  # generated rows
        self.last = full(codebooks)  # the newest row, which is fed back
        self.delay = full()  # rows of the ramp-in so far
        self.left = full(value=-1)  # rows of the ramp-out to come; -1 before it
        self.temperature = full(dtype=torch.float32)  # 0: greedy
        self.top_k = full()
        self.top_p = full(value=1, dtype=torch.float32)
        self.draws = full(config.max_context, codebooks, dtype=torch.float32)  # u of every row to come


class Runner:
    def __init__(self, model: Model, config: EngineConfig):
        cfg = model.cfg
        self.model, self.config, self.device = model, config, model.device
        pages = (cfg.num_layers, config.num_pages + 1, config.page_size, 2, cfg.num_kv_heads, cfg.head_dim)
        # Zeros, not whatever was there: rows beyond a sequence's end are masked out, but 0 * NaN would be NaN.
        self.pages = lazy_zeros(pages, model.dtype, self.device)
        self.rope = rope_table(config.max_context, cfg.head_dim, cfg.rope_theta, self.device, model.dtype)
        self.slots = Slots(config.max_batch, config, cfg.num_codebooks, self.device)

    @torch.inference_mode()
    def prefill(self, sequences: list[Sequence]) -> tuple[np.ndarray, np.ndarray]:
        """Runs the prompts, all in one pass, beginning behind what their voices' pages hold already, and samples
        their first row. Returns what `decode_row` returns."""
        S, device = self.config.page_size, self.device
        if copies := [sequence.copy for sequence in sequences if sequence.copy]:
            source, target = (list(pages) for pages in zip(*copies, strict=True))
            self.pages[:, target] = self.pages[:, source]
        embedded, positions, kv_slots, spans, ends = [], [], [], [], []
        for sequence in sequences:
            self._admit(sequence)
            first, last = sequence.reused_rows, sequence.prompt_rows
            table = torch.tensor(sequence.pages, device=device)
            position = torch.arange(first, last, device=device)
            embedded.append(self._embed_prompt(sequence))
            positions.append(position)
            kv_slots.append(table[position // S] * S + position % S)
            spans.append((last - first, last, table[: -(-last // S)]))
            ends.append(last - first)
        cos, sin = self.rope[torch.cat(positions)].split(1, 1)
        rows = Rows(cos, sin, torch.cat(kv_slots), spans=spans)
        hidden = self.model(torch.cat(embedded), rows, self.pages)
        last_rows = hidden[torch.tensor(ends, device=device).cumsum(0) - 1]
        return self._sample(last_rows, sequences, self._index(sequences))

    @torch.inference_mode()
    def decode_row(self, sequences: list[Sequence]) -> tuple[np.ndarray, np.ndarray]:
        """Feeds each sequence's last row back and samples the next: rows [B, 8] int64 delayed codes, and done [B] bool,
        true where the ramp-out is complete."""
        S, slots = self.config.page_size, self.slots
        index = self._index(sequences)
        position = slots.length[index]
        pages = max(sequence.prompt_rows + sequence.rows_done - 1 for sequence in sequences) // S + 1
        table = slots.table[index, :pages]
        kv_slots = table.gather(1, (position // S)[:, None])[:, 0] * S + position % S
        cos, sin = self.rope[position].split(1, 1)
        beyond = torch.arange(pages * S, device=self.device) > position[:, None]
        mask = torch.zeros(beyond.shape, dtype=self.model.dtype, device=self.device).masked_fill_(beyond, -torch.inf)
        rows = Rows(cos, sin, kv_slots, table, mask[:, None, None])
        hidden = self.model(self.model.embed_audio(slots.last[index]), rows, self.pages)
        slots.length[index] = position + 1
        return self._sample(hidden, sequences, index)

    def _sample(
        self, hidden: torch.Tensor, sequences: list[Sequence], index: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws the next row of each sequence and moves its state on. hidden: [B, hidden]; index: [B], their slots."""
        slots, cfg = self.slots, self.model.cfg
        row_number = slots.row[index]
        limits = [sequence.sampling.top_k or cfg.codebook_vocab for sequence in sequences]
        sampled = sample_codes(
            self.model.logits(hidden),
            slots.draws[index, row_number],
            slots.temperature[index],
            slots.top_k[index],
            slots.top_p[index],
            max_top_k=max(limits),
            any_top_p=any((sequence.sampling.top_p or 1.0) < 1.0 for sequence in sequences),
        )
        row, delay, left, done = delay_step(sampled, slots.delay[index], slots.left[index], cfg.boc, cfg.eoc)
        slots.last[index], slots.delay[index], slots.left[index] = row, delay, left
        slots.row[index] = row_number + 1
        for sequence in sequences:
            sequence.rows_done += 1
        return row.cpu().numpy(), done.cpu().numpy()

    def _index(self, sequences: list[Sequence]) -> torch.Tensor:
        return torch.tensor([sequence.slot for sequence in sequences], device=self.device)

    def _admit(self, sequence: Sequence) -> None:
        """Writes a new owner's state into its slot; nothing of the previous owner stays."""
        slots, n, sampling, cfg = self.slots, sequence.slot, sequence.sampling, self.model.cfg
        slots.table[n] = DUMMY_PAGE
        slots.table[n, : len(sequence.pages)] = torch.tensor(sequence.pages)
        slots.length[n] = sequence.prompt_rows
        slots.row[n], slots.delay[n], slots.left[n] = 0, 0, -1
        slots.temperature[n] = 0.0 if sampling.greedy else sampling.temperature
        slots.top_k[n] = min(sampling.top_k or cfg.codebook_vocab, cfg.codebook_vocab)
        slots.top_p[n] = sampling.top_p or 1.0
        counters = torch.arange(sampling.max_rows * cfg.num_codebooks).view(-1, cfg.num_codebooks)  # row * 8 + codebook
        slots.draws[n, : sampling.max_rows] = uniform(sampling.seed, counters).to(self.device)

    def _embed_prompt(self, sequence: Sequence) -> torch.Tensor:
        """The prompt's rows behind the reused ones, [n, hidden]. Reference rows go by their absolute position."""
        first, prompt = sequence.reused_rows, sequence.prompt
        ids = torch.tensor(prompt.ids[first:])
        audio = ids == PLACEHOLDER
        x = self.model.embed_text(ids.masked_fill(audio, 0))
        if audio.any():
            assert prompt.reference_rows is not None
            skipped = sum(token == PLACEHOLDER for token in prompt.ids[:first])
            reference = torch.as_tensor(prompt.reference_rows[skipped:], device=self.device)
            x[audio.to(self.device)] = self.model.embed_audio(reference)
        return x
