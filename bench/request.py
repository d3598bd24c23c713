"""One request of octavo's own runner that can be fed given rows, and set back to run the same row again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from octavo.kernels.rms_norm import rms_norm
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.models import load_model
from octavo.runtime.prompt import Prompt
from octavo.runtime.runner import Runner
from octavo.runtime.scheduler import Scheduler, Sequence

_STATE = ("row", "out", "left")  # what a row changes in its lane


class Probe(Runner):
    """The runner, with its final hidden states in view; `body_only` leaves out what comes behind them."""

    last_hidden: torch.Tensor  # [B, hidden], of the last call, before the final norm
    body_only = False

    @property
    def hidden(self) -> torch.Tensor:
        """[B, hidden], of the last call."""
        return rms_norm(self.last_hidden, self.model.body.norm, self.model.cfg.rms_norm_eps)  # type: ignore[attr-defined]

    def _sample(self, hidden: torch.Tensor, first: int, last: int) -> None:
        self.last_hidden = hidden
        if not self.body_only:
            super()._sample(hidden, first, last)

    @contextmanager
    def body_from(self, embedded: torch.Tensor) -> Iterator[None]:
        """For the time being a row is `embedded` [B, hidden] already, and ends with its hidden states."""

        def start_row(last, row, prompt, active, positions):
            row += active
            torch.sub(prompt + row, 1, out=positions)
            return embedded.clone()  # the body works in place

        vars(self.model)["start_row"] = start_row
        self.body_only = True
        try:
            yield
        finally:
            self.body_only = False
            del vars(self.model)["start_row"]


def load_probe(folder: Path, device: torch.device, dtype: torch.dtype) -> Probe:
    """The checkpoint in a runner with the engine's default sizes."""
    model = load_model(Checkpoint.open(folder), device, dtype, lambda done, total: None)
    return Probe(model, EngineConfig())


class ForcedRequest:
    """A request of its own in lane 0, prefilled; then every row it continues from is given from outside."""

    def __init__(self, runner: Probe, ids: list[int], sampling: SamplingParams):
        self.runner = runner
        scheduler = Scheduler(runner.config)
        scheduler.add(Sequence(Prompt(ids, None, 1), sampling))
        while runner.lanes.running:  # of the request before
            runner.leave(runner.lanes.running - 1, runner.lanes.running - 1)
        while scheduler.busy and not scheduler.running:
            chunks = scheduler.schedule()
            runner.prefill(chunks)
            scheduler.prefilled(chunks)
        runner.collect()
        self._lane = runner.lanes.view(0, 1)
        self.hold()

    def feed(self, row: torch.Tensor) -> torch.Tensor:
        """row: [8] int64 -> the final hidden states behind it, [1, hidden]."""
        self.put(row)
        self.decode()
        return self.runner.hidden

    def put(self, row: torch.Tensor) -> None:
        """row: [8] int64, from which the next row continues. What was drawn until now has ended nothing."""
        self._lane.out[0, : len(row)] = row
        self._lane.left.fill_(-1)

    def decode(self) -> np.ndarray:
        """The next row of codes, [1, 8], behind the last one."""
        self.runner.decode()
        return self.runner.collect()[0]

    def hold(self) -> None:
        """Remembers this point, for `rewind`."""
        self._held = {name: getattr(self._lane, name).clone() for name in _STATE}
        self._row = self.runner.lanes.host["row"][0]

    def rewind(self) -> None:
        """Back to where `hold` was called last. Keys and values written since are overwritten by the next rows."""
        for name, value in self._held.items():
            getattr(self._lane, name).copy_(value)
        self.runner.lanes.host["row"][0] = self._row
