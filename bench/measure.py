"""The one way to time: callables by turns, a set number of threads, the 10th percentile; and what is kept of it.

On a machine that others use too, code that runs alone for a minute meets another minute than the code it is compared
with. So the callables of one comparison take turns, and the 10th percentile stands for what the code costs: it moves
little with the load of others, and it is reached again and again, unlike the minimum.

A Result without a green Check cannot be made of a comparison, so a wrong output never gets a speed.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

_END = object()


class CheckFailed(Exception):
    """The compared outputs differ: there is nothing to time."""


@dataclass(frozen=True)
class Check:
    """What was compared before the clock ran. Raises CheckFailed unless error <= limit (NaN is red as well)."""

    what: str
    error: float
    limit: float

    def __post_init__(self):
        if not self.error <= self.limit:
            raise CheckFailed(f"{self.what}: {self.error:.3g}, allowed is {self.limit:.3g}. No speed is reported.")


@dataclass(frozen=True)
class Case:
    """What is timed, and what puts things back before each run, which is not."""

    run: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call."""

    p10: float
    median: float
    p90: float
    repetitions: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        p10, median, p90 = (float(p) * 1e3 for p in np.percentile(seconds, (10, 50, 90)))
        return cls(p10, median, p90, len(seconds))


@dataclass(frozen=True)
class Result:
    """One figure. `goal`: its number in the list of goals, if it has one; `asked`: what the goal asks for."""

    goal: str
    what: str
    case: str
    value: float
    unit: str
    asked: float | None = None
    at_most: bool = False  # the goal is a limit, not a least
    checks: tuple[Check, ...] = ()
    timings: Mapping[str, Timing] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.asked is None:
            return None
        return self.value <= self.asked if self.at_most else self.value >= self.asked


def interleave(
    cases: Mapping[str, Case],
    repetitions: int,
    warm_up: int = 3,
    threads: int = 1,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Runs each case `repetitions` times, by turns, and `warm_up` rounds before that; who begins a round changes too.

    On a CUDA device the clock starts and stops when the device has nothing left to do.
    """
    wait: Callable[[], object] = torch.cuda.synchronize if device and device.type == "cuda" else lambda: None
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _quiet(threads):
        for number in range(warm_up + repetitions):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                cases[name].prepare()
                wait()
                start = time.perf_counter()
                cases[name].run()
                wait()
                elapsed = time.perf_counter() - start
                if number >= warm_up:
                    seconds[name].append(elapsed)
    return {name: Timing.of(times) for name, times in seconds.items()}


def take_turns(
    jobs: Mapping[str, Callable[[], Iterator[object]]], repetitions: int, threads: int = 1
) -> dict[str, float]:
    """Seconds of jobs too long to be run many times. A job is an iterator, always with the same steps; who has run for
    the least time makes the next step. A step counts with the 10th percentile of its times."""
    seconds: dict[str, list[list[float]]] = {name: [] for name in jobs}
    with _quiet(threads):
        for _ in range(repetitions):
            running = {name: job() for name, job in jobs.items()}
            for name in running:
                seconds[name].append([])
            while running:
                name = min(running, key=lambda name: sum(seconds[name][-1]))
                start = time.perf_counter()
                ended = next(running[name], _END) is _END
                seconds[name][-1].append(time.perf_counter() - start)
                if ended:
                    del running[name]
    return {name: float(np.percentile(times, 10, axis=0).sum()) for name, times in seconds.items()}


def device_ms(run: Callable[[], object], device: torch.device, repetitions: int = 20, warm_up: int = 3) -> float:
    """Milliseconds of one call, the median: on CUDA from an event before it to one behind it, on the current stream."""
    for _ in range(warm_up):
        run()
    if device.type != "cuda":
        return interleave({"run": Case(run)}, repetitions, warm_up=0)["run"].median
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize(device)
    return float(np.median([begin.elapsed_time(end) for begin, end in itertools.pairwise(marks)]))


def stopwatch() -> Callable[[], float]:
    """Begins now; each call tells the seconds since."""
    begin = time.perf_counter()
    return lambda: time.perf_counter() - begin


def pause(seconds: float) -> None:
    time.sleep(seconds)


@dataclass(frozen=True)
class Heard:
    """A stream as its listener met it. Seconds, from the call on."""

    first: float  # until the first chunk
    seconds: float  # until the last
    audio: float  # of sound
    silence: float  # in playback, which begins with the first chunk and waits where there is nothing to play


def listen(call: Callable[[], Iterable[Any]]) -> Heard:
    """call: begins a stream of chunks at 24 kHz."""
    elapsed = stopwatch()
    first, audio, now, silence = 0.0, 0.0, 0.0, 0.0
    for chunk in call():
        now = elapsed()
        first = first or now
        silence = max(silence, now - first - audio)
        audio += len(chunk.pcm) / 24_000
    return Heard(first, now, audio, silence)


def compare(
    what: str,
    case: str,
    ours: Case,
    baseline: Case,
    checks: tuple[Check, ...],
    repetitions: int,
    goal: str = "",
    asked: float | None = None,
    threads: int = 1,
    device: torch.device | None = None,
) -> Result:
    """How many times faster octavo is than the baseline, by their 10th percentiles."""
    assert checks, "a speed needs a check"
    timings = interleave({"octavo": ours, "baseline": baseline}, repetitions, threads=threads, device=device)
    ratio = timings["baseline"].p10 / timings["octavo"].p10
    return Result(goal, what, case, ratio, "times as fast", asked, checks=checks, timings=timings)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """||got - want|| / ||want||, in fp64."""
    got, want = got.double().cpu(), want.double().cpu()
    return ((got - want).norm() / want.norm()).item()


@contextmanager
def _quiet(threads: int) -> Iterator[None]:
    """`threads` threads, and no garbage collection in the middle of a run."""
    before, collected = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(threads)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if collected:
            gc.enable()


def machine(date: str, threads: int = 1) -> dict[str, Any]:
    """What the figures were measured on. `date`: the day, as YYYY-MM-DD."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu_name(),
        "date": date,
        "gpu": gpu,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "os": _os_name(),
        "python": platform.python_version(),
        "threads": threads,
        **{package: _version(package) for package in ("octavo", "torch", "transformers")},
    }


def save(path: Path, facts: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Writes the machine and its results as JSON that reads well and differs little from run to run."""
    content = {"machine": facts, "results": [asdict(result) for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(content), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[dict[str, Any], list[Result]]:
    """What `save` wrote: the machine and the results."""
    content = json.loads(path.read_text(encoding="utf-8"))
    results = []
    for entry in content["results"]:
        checks = tuple(Check(**check) for check in entry.pop("checks"))
        timings = {name: Timing(**timing) for name, timing in entry.pop("timings").items()}
        results.append(Result(**entry, checks=checks, timings=timings))
    return content["machine"], results


def _rounded(value: Any) -> Any:
    """Four digits of every number: more would only be noise."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.4g}")
    return value


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform(terse=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
