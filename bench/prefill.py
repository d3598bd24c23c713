"""C4: the prefill of a voice that spoke before, 89 of the prompt's 160 rows being the reference, against transformers.

octavo finds the voice's keys and values in its pages; the baseline runs the whole prompt. Both embed the prompt and
end with the codes of the first row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from octavo.runtime.config import SamplingParams
from octavo.runtime.prompt import PLACEHOLDER, Prompt
from octavo.runtime.scheduler import Scheduler, Sequence

from .baseline import Baseline
from .measure import Case, Result, compare
from .request import Probe, load_probe
from .step import DTYPES, check_hidden

ROWS, REFERENCE = 160, 89
ASKED = 2.2
SAMPLING = SamplingParams(temperature=0, max_rows=256)
VOICE = b"one voice"


def make_prompt(seed: int = 0) -> Prompt:
    """Two structural tokens, the reference's rows, and text."""
    draw = np.random.default_rng(seed)
    text = draw.integers(0, 256, ROWS - REFERENCE).tolist()
    ids = [*text[:2], *[PLACEHOLDER] * REFERENCE, *text[2:]]
    return Prompt(ids, draw.integers(0, 1024, (REFERENCE, 8)), prefix_length=2 + REFERENCE)


class Ours:
    """octavo's side. With `reuse` the voice has spoken before."""

    def __init__(self, runner: Probe, prompt: Prompt, reuse: bool):
        self.runner, self.prompt, self.voice = runner, prompt, VOICE if reuse else None
        self.scheduler, self.reused_rows = Scheduler(runner.config), 0
        self.first_row()

    def first_row(self) -> np.ndarray:
        """Admission and prefill, all that a request waits for before its first row: [1, 8]."""
        sequence = Sequence(self.prompt, SAMPLING, self.voice)
        self.scheduler.add(sequence)
        chunks = self.scheduler.schedule()
        self.runner.prefill(chunks)
        self.scheduler.prefilled(chunks)
        self.reused_rows = sequence.reused_rows
        return self.runner.collect()[0]

    def leave(self) -> None:
        for sequence in list(self.scheduler.running):
            moved = self.scheduler.finish(sequence)
            assert moved is not None
            self.runner.leave(*moved)
            self.scheduler.free_slot(sequence)


class Theirs:
    def __init__(self, baseline: Baseline, prompt: Prompt):
        self.baseline, device = baseline, baseline.table.device
        self.ids = torch.tensor(prompt.ids, device=device)
        self.rows = torch.as_tensor(prompt.reference_rows, device=device)

    @torch.inference_mode()
    def hidden(self) -> torch.Tensor:
        """The last row's final hidden states, [1, hidden]."""
        return self.baseline.forward(self.baseline.embed_prompt(self.ids, self.rows), self.baseline.start())[-1:]

    @torch.inference_mode()
    def first_row(self) -> list[int]:
        return self.baseline.logits(self.hidden()).argmax(-1)[0].tolist()


def prefill_results(folder: Path, shape: str, device: torch.device, repetitions: int) -> list[Result]:
    """C4 in both dtypes, and the same without reuse. Raises CheckFailed where the outputs differ."""
    exact = Baseline(folder, device, torch.float32)
    results = []
    for name, dtype in DTYPES.items():
        baseline = exact if dtype == torch.float32 else Baseline(folder, device, dtype)
        results += prefill_of(load_probe(folder, device, dtype), baseline, exact, f"{shape}, {name}", repetitions)
    return results


def prefill_of(runner: Probe, baseline: Baseline, exact: Baseline, case: str, repetitions: int) -> list[Result]:
    """With and without reuse. exact: the baseline in fp32."""
    prompt, device = make_prompt(), runner.device
    with exact.rounded_rope():
        want = Theirs(exact, prompt).hidden()
    theirs = Theirs(baseline, prompt)
    results = []
    for reuse in (True, False):
        ours = Ours(runner, prompt, reuse)
        ours.leave()
        ours.first_row()
        check = check_hidden(runner.hidden, theirs.hidden(), want)
        goal, asked = ("C4", ASKED) if reuse else ("", None)
        what = "prefill, voice reused" if reuse else "prefill, nothing reused"
        told = f"{case}, {ours.reused_rows} of {ROWS} rows reused"
        cases = Case(ours.first_row, ours.leave), Case(theirs.first_row)
        results.append(compare(what, told, *cases, (check,), repetitions, goal, asked, device=device))
        ours.leave()
    return results
