"""A model and a codec that cost nothing: what is left of a step is the host's own work.

Both are as late as a GPU's would be, so that the loop goes the same ways: a row is read while the next one is under
way, and a push is heard in the step after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from octavo.kernels.rows import Rows
from octavo.runtime.config import EngineConfig, ModelConfig
from octavo.runtime.delay import CODEBOOKS
from octavo.runtime.runner import Runner
from octavo.runtime.speech import SAMPLES_PER_FRAME

DELAY = 9458  # samples by which the published codec's sound is late
NEVER = np.iinfo(np.int32).max


class NullModel:
    """Reads and writes nothing; a KV row of it is 16 bytes."""

    cfg = ModelConfig(8, 8, 1, 1, 1, 2, 256)
    device, dtype = torch.device("cpu"), torch.float32

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(ids), 1)

    def embed_audio(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(rows), 1)

    def start_row(self, last, row, prompt, active, positions) -> torch.Tensor:
        raise AssertionError("the null runner starts rows itself")

    def modules(self) -> Iterator[torch.nn.Module]:
        return iter(())

    def __call__(self, x: torch.Tensor, rows: Rows, pages: torch.Tensor) -> torch.Tensor:
        return x

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class NullRunner(Runner):
    """Lays out as the runner does; its rows are canned. ends: [slots], how many rows an utterance in that slot has
    before the model ends it; none at first."""

    def __init__(self, config: EngineConfig, seed: int = 0):
        super().__init__(NullModel(), config)
        self.lookahead = 1
        self.ends = np.full(config.num_slots + 1, NEVER)
        shape = (256, len(self.lanes.host), CODEBOOKS)
        self._canned = np.random.default_rng(seed).integers(0, 1024, shape).astype(np.int16)
        self._step = 0

    def _row(self, first: int, last: int) -> None:
        self.lanes.host["row"][first:last] += 1
        self._sample(torch.empty(0), first, last)

    def _sample(self, hidden: torch.Tensor, first: int, last: int) -> None:
        self._step = (self._step + 1) % len(self._canned)
        out = self.lanes.view(first, last).out.numpy()
        out[:, :CODEBOOKS] = self._canned[self._step, first:last]
        lanes = self.lanes.host[first:last]
        np.equal(lanes["row"] + 1, self.ends[lanes["slot"]], out=out[:, CODEBOOKS], casting="unsafe")


class NullSounds:
    """Silence of the right length. No slot is heard before its frames are final, nor after its end."""

    lookahead = 10

    def __init__(self, slots: int):
        self._pushed = np.zeros(slots, np.int64)  # frames
        self._heard = np.zeros(slots, np.int64)  # samples
        self._coming: deque[list[tuple[int, bool, np.ndarray]]] = deque()
        self._previews: list[tuple[int, bool, np.ndarray]] = []
        self._silence = np.full(64 * SAMPLES_PER_FRAME, 0.1, np.float32)

    def begin(self, slot: int) -> None:
        self._pushed[slot] = self._heard[slot] = 0
        for pushed in (*self._coming, self._previews):
            pushed[:] = [part for part in pushed if part[0] != slot]

    def push(self, slots: list[int], counts: list[int], ends: list[int | None]) -> None:
        parts, self._previews = self._previews, []
        for slot, count, end in zip(slots, counts, ends, strict=True):
            assert count > 0 and (end is None or end >= self._pushed[slot]), (slot, count, end)
            self._pushed[slot] += count
            final = max(0, int(self._pushed[slot]) * SAMPLES_PER_FRAME - DELAY)
            if end is not None:
                final = min(final, end * SAMPLES_PER_FRAME)
            parts.append((slot, False, self._silence[: final - self._heard[slot]]))
            self._heard[slot] = final
        self._coming.append(parts)

    def preview(self, slot: int, frames: int) -> None:
        self._previews.append((slot, True, self._silence[: frames * SAMPLES_PER_FRAME]))

    def collect(self, wait: bool = True) -> list[tuple[int, bool, np.ndarray]]:
        keep = 0 if wait else 1
        return [part for _ in range(len(self._coming) - keep) for part in self._coming.popleft() if len(part[2])]

    def wait_for(self, event: torch.cuda.Event) -> None:
        raise AssertionError("there are no events here")
