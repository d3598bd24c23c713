"""What the host does for a row, with a model that computes nothing: C5, C6 and C10. On a GPU this work must fit behind
the device's, or the device waits.

The loop, scheduler, runner and lanes are the engine's; only the model's and the codec's arithmetic is left out. The
requests are those of performance.md 5.2: 160 prompt rows, 89 of them a voice's, and 104 rows of speech. As on a GPU, a
row is read while the next one is under way.

    python -m octavo.bench.host --json OUT
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch

from octavo.runtime.config import EngineConfig, SamplingParams
from octavo.runtime.loop import Loop
from octavo.runtime.prompt import PLACEHOLDER, Prompt
from octavo.runtime.request import Request
from octavo.runtime.scheduler import Scheduler, Sequence
from octavo.runtime.speech import SAMPLES_PER_FRAME, Chunk
from octavo.runtime.utterance import Utterance

from .command import main
from .measure import Case, Check, Result, Timing, interleave
from .null import NullRunner, NullSounds

STEP = {1: 60, 64: 150, 256: 450}  # C5: streams -> microseconds
ADMITTED, ADMISSION = 32, 1.0  # C6: requests, ms
PROMPT, REFERENCE, ROWS = 160, 89, 104
QUIET = 8  # steps between two pushes of utterances that all began together


class StillRunner(NullRunner):
    """Its rows are whatever stands in the lanes: canned ones would take time as well."""

    def _row(self, first: int, last: int) -> None:
        pass

    def _sample(self, hidden: torch.Tensor, first: int, last: int) -> None:
        pass


class Crowd:
    """So many streams at a time: whoever ends is followed by the next. Counts what was handed out."""

    def __init__(self, streams: int, rows: int = ROWS, staggered: bool = True, prefill_rows: int = 2048):
        config = EngineConfig(
            max_batch=streams, kv_rows=320 * (streams + 1), max_context=512, prefill_rows=prefill_rows
        )
        self.loop = Loop(Scheduler(config), StillRunner(config), NullSounds(config.num_slots))
        self.rows, self.ended, self.samples = rows, 0, 0
        self._waiting: list[Request] = []
        draw = np.random.default_rng(0)
        first = draw.integers(8, rows + 1, streams) if staggered else np.full(streams, rows)
        self._beginners = [self._request(int(count)) for count in first]
        self._streams = streams

    def begin(self, streams: int | None = None) -> None:
        """So many more of them at once; all, if nothing is said."""
        for request in self._beginners[:streams]:
            self.loop.add(request)
        del self._beginners[:streams]

    def prepare(self) -> None:
        """What callers' threads do before: requests that are ready to follow, more than will end in a run of steps."""
        while len(self._waiting) < 2 * self._streams + 2:
            self._waiting.append(self._request(self.rows))

    def run(self, steps: int) -> None:
        for _ in range(steps):
            ended = self.ended
            self.loop.step()
            for _ in range(self.ended - ended):
                self.loop.add(self._waiting.pop())

    def put(self, item: object) -> None:
        """The requests' outbox: chunks, and what makes the whole speech last."""
        if isinstance(item, Chunk):
            self.samples += len(item.pcm)
        else:
            assert callable(item), item
            self.ended += 1

    def _request(self, rows: int) -> Request:
        ids = [1, 2, *[PLACEHOLDER] * REFERENCE, *range(PROMPT - REFERENCE - 2)]
        prompt = Prompt(ids, np.zeros((REFERENCE, 8), np.int64), prefix_length=2 + REFERENCE)
        sequence = Sequence(prompt, SamplingParams(max_rows=rows), b"a voice")

        def start(request: Request, number: int) -> Utterance:
            utterance = Utterance(sequence, allowance=None)
            self.loop.begin(request, utterance)
            return utterance

        return Request(["text"], start, self, seed=0, ahead=1, carry=False)


def results(repetitions: int, device: torch.device) -> list[Result]:
    return [*step_results(repetitions), admission_result(repetitions), *growth_results()]


def step_results(repetitions: int) -> list[Result]:
    """C5: the mean of the steps in a request's life, arrivals and departures among them."""
    crowds = {streams: Crowd(streams) for streams in STEP}
    for crowd in crowds.values():
        crowd.begin()
        crowd.prepare()
        crowd.run(2 * ROWS)
    cases = {str(n): Case(lambda crowd=crowd: crowd.run(ROWS), crowd.prepare) for n, crowd in crowds.items()}  # type: ignore[misc]
    timings = interleave(cases, repetitions)
    found = []
    for streams, crowd in crowds.items():
        frames = crowd.samples / SAMPLES_PER_FRAME / max(1, crowd.ended)
        check = Check("frames of a request that were not heard", max(0, (ROWS - 7) / 2 - frames), 0)
        value = timings[str(streams)].p10 / ROWS * 1e3  # us
        case = f"null model, {streams} streams"
        whole = timings[str(streams)]  # of ROWS rows
        row = Timing(whole.p10 / ROWS, whole.median / ROWS, whole.p90 / ROWS, whole.repetitions)
        timing = {"octavo": row}
        found.append(Result("C5", "host work of a row", case, value, "us", STEP[streams], True, (check,), timing))
    return found


def admission_result(repetitions: int) -> Result:
    """C6: a step in which 32 requests come, are laid out for one prefill and get their first two rows."""
    crowds: list[Crowd] = []

    def prepare() -> None:
        crowd = Crowd(ADMITTED + 1, prefill_rows=PROMPT * ADMITTED)
        crowd.begin(1)
        crowd.loop.step()  # the voice's keys and values are there now
        crowd.begin()
        crowds[:] = [crowd]

    timing = interleave({"octavo": Case(lambda: crowds[0].loop.step(), prepare)}, repetitions)["octavo"]
    missing = ADMITTED + 1 - len(crowds[0].loop.scheduler.running)
    check = Check("requests that were not admitted", missing, 0)
    case = f"null model, {ADMITTED} requests in one prefill, voice reused"
    return Result("C6", "host work of admission", case, timing.p10, "ms", ADMISSION, True, (check,), {"octavo": timing})


def growth_results() -> list[Result]:
    """C10: what a step costs in which nothing happens, in Python's instructions, and what it leaves in memory."""
    counts, kept = {}, {}
    for streams in (64, 256):
        crowd = Crowd(streams, rows=300, staggered=False, prefill_rows=PROMPT * streams)
        crowd.begin()
        crowd.run(60)  # the pushes are 25 rows apart by now
        samples = crowd.samples
        while crowd.samples == samples:
            crowd.run(1)
        crowd.run(2)
        samples = crowd.samples
        counts[streams] = instructions(lambda crowd=crowd: crowd.run(QUIET)) / QUIET  # type: ignore[misc]
        tracemalloc.start()
        crowd.run(1)
        begin = tracemalloc.get_traced_memory()[0]
        crowd.run(QUIET)
        kept[streams] = (tracemalloc.get_traced_memory()[0] - begin) / QUIET
        tracemalloc.stop()
        assert crowd.samples == samples, "something happened"
    case = f"null model, {counts[256]:.0f} instructions of Python at 256 streams, over those at 64"
    memory = f"null model, 256 streams, against {kept[64]:.0f} at 64"
    return [
        Result("C10", "a row in which nothing happens", case, counts[256] / counts[64], "times", 1.0, True),
        Result("C10", "memory kept by such a row", memory, kept[256], "bytes", 64, True),
    ]


def instructions(run: Callable[[], object]) -> int:
    """Bytecode instructions of Python that `run` executes, in functions that it calls."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


if __name__ == "__main__":
    sys.exit(main(results, "bench.host", __doc__ or ""))
