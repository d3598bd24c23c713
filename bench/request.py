"""One request of octavo's own runner that can be fed given rows, and set back to run the same row again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.models import load_model
from octavo.runtime.prompt import Prompt
from octavo.runtime.runner import Runner
from octavo.runtime.scheduler import Scheduler, Sequence

_STATE = ("length", "row", "last", "delay", "left")  # what a row changes in its slot


class Probe(Runner):
    """The runner, with its final hidden states in view; `body_only` leaves out what comes behind them."""

    hidden: torch.Tensor  # [B, hidden], of the last call
    body_only = False

    def _sample(
        self, hidden: torch.Tensor, sequences: list[Sequence], index: torch.Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        self.hidden = hidden
        return (np.empty(0), np.empty(0)) if self.body_only else super()._sample(hidden, sequences, index)

    @contextmanager
    def body_from(self, embedded: torch.Tensor) -> Iterator[None]:
        """For the time being a row is `embedded` [B, hidden] already, and ends with its hidden states."""
        vars(self.model)["embed_audio"] = lambda rows: embedded
        self.body_only = True
        try:
            yield
        finally:
            self.body_only = False
            del vars(self.model)["embed_audio"]


def load_probe(folder: Path, device: torch.device, dtype: torch.dtype) -> Probe:
    """The checkpoint in a runner with the engine's default sizes."""
    return Probe(load_model(Checkpoint.open(folder), device, dtype, lambda done, total: None), EngineConfig())


class ForcedRequest:
    """A request of its own in slot 0, prefilled; then every row it continues from is given from outside."""

    def __init__(self, runner: Probe, ids: list[int], sampling: SamplingParams):
        self.runner = runner
        self.sequence = Sequence(Prompt(ids, None, 1), sampling)
        scheduler = Scheduler(runner.config)
        scheduler.add(self.sequence)
        runner.prefill(scheduler.schedule().prefill)
        self.hold()

    def feed(self, row: torch.Tensor) -> torch.Tensor:
        """row: [8] int64 -> the final hidden states behind it, [1, hidden]."""
        self.runner.slots.last[self.sequence.slot] = row
        self.decode()
        return self.runner.hidden

    def decode(self) -> np.ndarray:
        """The next row of codes, [1, 8], behind the last one."""
        return self.runner.decode_row([self.sequence])[0]

    def hold(self) -> None:
        """Remembers this point, for `rewind`."""
        slots, slot = self.runner.slots, self.sequence.slot
        self._held = {name: getattr(slots, name)[slot].clone() for name in _STATE}
        self._rows_done = self.sequence.rows_done

    def rewind(self) -> None:
        """Back to where `hold` was called last. Keys and values written since are overwritten by the next rows."""
        for name, value in self._held.items():
            getattr(self.runner.slots, name)[self.sequence.slot] = value
        self.sequence.rows_done = self._rows_done
