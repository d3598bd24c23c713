"""C1: one decode step at a context of 160 rows, batch 1, against transformers with the same weights.

A step goes from an embedded row to its final hidden states. A row is all of it: embedding, body, head, the pick of
eight codes, and octavo's delay pattern. Both sides read the same forced rows before the clock runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.runtime.config import SamplingParams

from .baseline import Baseline, mark, rewind
from .measure import Case, Check, Result, compare, relative
from .request import ForcedRequest, Probe, load_probe

CONTEXT = 160  # rows in the cache when the timed row comes
FORCED = 16  # of these, fed one by one: the rows whose hidden states are compared
FP32_LIMIT = 1e-4
BAND = {"cpu": 1.0, "cuda": 1.1}  # times the distance of transformers in bf16; a GPU adds in many orders
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GREEDY, SAMPLED = SamplingParams(temperature=0), SamplingParams(temperature=0.8, top_k=50)


@dataclass(frozen=True)
class Shape:
    """The widths for `make_checkpoint`, and what C1 asks for."""

    widths: dict[str, int]
    asked: float


SHAPES = {
    "tiny": Shape({"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 1, "head_dim": 64, "ffn": 1024}, 1.5),
    "small": Shape({"layers": 8, "hidden": 1024, "heads": 16, "kv_heads": 4, "head_dim": 64, "ffn": 3072}, 1.12),
    # One layer of the published model.
    "slice": Shape({"layers": 1, "hidden": 2560, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 9728}, 1.05),
}


@dataclass(frozen=True)
class Course:
    """What both sides go through: ids of text, forced rows of codes, and the row that is timed."""

    ids: list[int]
    forced: torch.Tensor  # [FORCED, 8] int64
    row: torch.Tensor  # [8]

    @classmethod
    def random(cls, device: torch.device, seed: int = 0) -> Course:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(0, 256, (CONTEXT - FORCED,), generator=generator).tolist()
        rows = torch.randint(0, 1024, (FORCED + 1, 8), generator=generator).to(device)
        return cls(ids, rows[:-1], rows[-1])

    def through(self, baseline: Baseline) -> tuple[torch.Tensor, object]:
        """The forced rows' hidden states, [FORCED, hidden], and the cache behind them."""
        cache = baseline.start()
        baseline.forward(baseline.embed_prompt(torch.tensor(self.ids, device=baseline.table.device)), cache)
        return torch.cat([baseline.forward(baseline.embed_rows(row[None]), cache) for row in self.forced]), cache


def step_results(folder: Path, shape: str, device: torch.device, repetitions: int) -> list[Result]:
    """C1 of one shape in both dtypes, and what whole rows cost. Raises CheckFailed where the outputs differ."""
    course = Course.random(device)
    exact = Baseline(folder, device, torch.float32)
    with exact.rounded_rope():
        want, _ = course.through(exact)
    results = []
    for name, dtype in DTYPES.items():
        baseline = exact if dtype == torch.float32 else Baseline(folder, device, dtype)
        sides = Sides(load_probe(folder, device, dtype), baseline, course, want)
        results.append(sides.step(f"{shape}, {name}", SHAPES[shape].asked, repetitions))
        results.append(sides.row(f"{shape}, {name}, greedy", GREEDY, _argmax, repetitions))
        results.append(sides.row(f"{shape}, {name}, sampled", SAMPLED, _draw, repetitions))
    return results


class Sides:
    """octavo and the baseline in one dtype, both behind the same rows."""

    def __init__(self, runner: Probe, baseline: Baseline, course: Course, want: torch.Tensor):
        """want: [FORCED, hidden], the hidden states in fp32."""
        self.runner, self.baseline, self.course, self.want = runner, baseline, course, want
        self.theirs, self.cache = course.through(baseline)
        self.held = mark(self.cache)

    def step(self, case: str, asked: float, repetitions: int) -> Result:
        request, check = self.request(GREEDY)
        embedded = self.baseline.embed_rows(self.course.row[None])
        theirs = self.from_cache(lambda: self.baseline.forward(embedded, self.cache))
        ours, device = Case(lambda: (request.decode(), self.runner.hidden), request.rewind), self.runner.device
        with self.runner.body_from(embedded):
            return compare("decode step", case, ours, theirs, (check,), repetitions, "C1", asked, device=device)

    def row(
        self, case: str, sampling: SamplingParams, pick: Callable[[torch.Tensor], torch.Tensor], repetitions: int
    ) -> Result:
        request, *checks = self.request(sampling)
        ours, device = Case(request.decode, request.rewind), self.runner.device
        theirs = self.from_cache(lambda: pick(self.logits())[0].tolist())
        if sampling.greedy and self.runner.model.dtype == torch.float32:
            checks.append(_same_codes(ours, theirs))
        return compare("decode row", case, ours, theirs, tuple(checks), repetitions, device=device)

    def request(self, sampling: SamplingParams) -> tuple[ForcedRequest, Check]:
        """octavo's side, about to run the timed row, and the proof that its hidden states were right until here."""
        request = ForcedRequest(self.runner, self.course.ids, sampling)
        hidden = torch.cat([request.feed(row) for row in self.course.forced])
        request.put(self.course.row)
        request.hold()
        return request, check_hidden(hidden, self.theirs, self.want)

    def from_cache(self, run: Callable[[], object]) -> Case:
        """The baseline's side, with the cache put back before each run."""
        return Case(torch.inference_mode()(run), lambda: rewind(self.cache, self.held))

    def logits(self) -> torch.Tensor:
        """The baseline's, behind the timed row: [1, 8, 1026]."""
        embedded = self.baseline.embed_rows(self.course.row[None])
        return self.baseline.logits(self.baseline.forward(embedded, self.cache))


def check_hidden(ours: torch.Tensor, theirs: torch.Tensor, want: torch.Tensor) -> Check:
    """fp32: equal. bf16: no further from fp32 than transformers' own bf16 is, as BAND has it. All: [rows, hidden]."""
    if ours.dtype == torch.float32:
        return Check("relative distance of the hidden states", relative(ours, want), FP32_LIMIT)
    distance = relative(ours, want) / relative(theirs, want)
    return Check(
        "hidden states: distance from fp32, over that of transformers in bf16", distance, BAND[ours.device.type]
    )


def _same_codes(ours: Case, theirs: Case) -> Check:
    codes = []
    for case in (ours, theirs):
        case.prepare()
        codes.append(torch.as_tensor(case.run()).flatten())
    return Check("codes of the row that differ", float((codes[0] != codes[1]).sum()), 0)


def _argmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def _draw(logits: torch.Tensor) -> torch.Tensor:
    """As it is usually written: top-k, softmax, multinomial. [B, 8, V] -> [B, 8]."""
    assert SAMPLED.top_k
    largest, codes = (logits / SAMPLED.temperature).topk(SAMPLED.top_k)
    drawn = torch.multinomial(largest.softmax(-1).flatten(0, 1), 1)
    return codes.flatten(0, 1).gather(1, drawn).view(logits.shape[:2])
