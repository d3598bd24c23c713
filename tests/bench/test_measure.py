"""The clock and what is kept of it: statistics, turns, checks that refuse, JSON there and back."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from octavo.bench import command, measure
from octavo.bench.measure import Case, Check, CheckFailed, Result, Timing, compare, interleave


@pytest.fixture
def spend(monkeypatch):
    """A clock that moves only when `spend(milliseconds)` is called."""
    now = [0.0]

    def spend(milliseconds: float) -> None:
        now[0] += milliseconds / 1e3

    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return spend


def test_percentiles_in_milliseconds():
    timing = Timing.of([n / 1000 for n in range(101)][::-1])
    assert timing == Timing(pytest.approx(10), pytest.approx(50), pytest.approx(90), 101)


def test_cases_take_turns_and_only_the_run_is_timed(spend):
    order: list[str] = []

    def case(name: str, cost: float) -> Case:
        return Case(lambda: order.append(name) or spend(cost), lambda: order.append("-") or spend(1000))

    timings = interleave({"a": case("a", 1), "b": case("b", 2), "c": case("c", 3)}, repetitions=3, warm_up=1)
    assert "".join(order).replace("-", "") == "abcbcacababc"  # who begins changes, the warm-up round included
    assert order[::2] == ["-"] * 12  # each run was prepared
    assert [round(timing.p90, 6) for timing in timings.values()] == [1, 2, 3]
    assert [timing.repetitions for timing in timings.values()] == [3] * 3


def test_warm_up_is_not_counted(spend):
    costs = iter([500, 400, 1, 2, 3])
    timing = interleave({"a": Case(lambda: spend(next(costs)))}, repetitions=3, warm_up=2)["a"]
    assert timing.median == pytest.approx(2) and timing.p90 < 3


def test_threads_and_garbage_collection_are_set_and_put_back():
    seen = []
    before = torch.get_num_threads()
    interleave({"a": Case(lambda: seen.append((torch.get_num_threads(), gc.isenabled())))}, 1, 0, threads=2)
    assert seen == [(2, False)]
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)
    with pytest.raises(ZeroDivisionError):
        interleave({"a": Case(lambda: 1 / 0)}, 1, 0, threads=2)
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)


@pytest.mark.parametrize("error", [1.1e-4, math.inf, math.nan])
def test_a_red_check_raises(error):
    Check("distance", 1e-4, 1e-4)
    with pytest.raises(CheckFailed, match="distance"):
        Check("distance", error, 1e-4)


def test_no_comparison_without_a_check():
    with pytest.raises(AssertionError):
        compare("what", "case", Case(lambda: None), Case(lambda: None), (), 1)


def test_the_ratio_is_that_of_the_tenth_percentiles(spend):
    green = (Check("distance", 0, 0),)
    slow = iter([9, 9, 9, *[6] * 5, *[60] * 5])  # disturbed half of the time; its median would say 60
    theirs = Case(lambda: spend(next(slow)))
    result = compare("what", "case", Case(lambda: spend(2)), theirs, green, 10, "C1", 2.9)
    assert result.value == pytest.approx(3) and result.met
    assert result.timings["baseline"].p90 == pytest.approx(60)


@pytest.mark.parametrize(
    "value, asked, at_most, met",
    [(2, 2, False, True), (1.9, 2, False, False), (18, 18, True, True), (19, 18, True, False), (1, None, False, None)],
)
def test_met(value, asked, at_most, met):
    assert Result("C", "what", "case", value, "rows", asked, at_most).met is met


def make_results() -> list[Result]:
    timings = {"octavo": Timing(1.0, 2.0, 3.0, 5), "baseline": Timing(2.0, 3.0, 4.0, 5)}
    check = Check("distance", 1e-7, 1e-4)
    return [Result("C1", "step", "tiny", 2.0, "times as fast", 1.5, checks=(check,), timings=timings),
            Result("C9", "rows", "exact", 19, "rows", 18, at_most=True)]  # fmt: skip


def test_json_there_and_back(tmp_path):
    path, facts = tmp_path / "machine" / "suite.json", measure.machine("2026-11-20")
    measure.save(path, facts, make_results())
    first = path.read_bytes()
    loaded = measure.load(path)
    assert loaded == (facts, make_results())
    measure.save(path, *loaded)
    assert path.read_bytes() == first
    assert list(json.loads(first)) == ["machine", "results"] and facts["date"] == "2026-11-20"
    assert {"cpu", "cores", "memory_gb", "os", "python", "torch", "transformers", "load_average"} <= facts.keys()


def test_json_has_four_digits(tmp_path):
    measure.save(tmp_path / "a.json", {}, [Result("", "what", "case", 1 / 3, "s")])
    assert "0.3333," in (tmp_path / "a.json").read_text()


def run_suite(suite, path: Path) -> int:
    return command.measure(suite, path, command.arguments("bench.x", "").parse_args(["--repetitions", "1"]))


def test_a_red_check_prints_and_writes_no_number(tmp_path, capsys):
    def suite(repetitions, device):
        return [*make_results(), Result("C1", "x", "y", 1, "z", checks=(Check("hidden states differ by", 0.3, 1e-4),))]

    assert run_suite(suite, tmp_path / "red.json") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "hidden states differ by" in captured.err
    assert not (tmp_path / "red.json").exists()


def test_a_green_suite_prints_every_result(tmp_path, capsys):
    assert run_suite(lambda repetitions, device: make_results(), tmp_path / "green.json") == 0
    out = capsys.readouterr().out
    assert "step, tiny: 2 times as fast  (met: at least 1.5)" in out and "MISSED: at most 18" in out
    assert measure.load(tmp_path / "green.json")[1] == make_results()


def test_nothing_else_in_bench_has_a_clock():
    """One way to time: whoever needs a duration takes it from measure.py."""
    others = [path for path in Path(measure.__file__).parent.glob("*.py") if path.name != "measure.py"]
    clocks = ("perf_counter", "time.time(", "monotonic", "process_time", "timeit")
    assert others and not [(p.name, clock) for p in others for clock in clocks if clock in p.read_text()]


def test_take_turns_lets_who_ran_least_go_next():
    order = []

    def job(name, steps, seconds):
        for _ in range(steps):
            order.append(name)
            measure.pause(seconds)
            yield

    seconds = measure.take_turns({"slow": lambda: job("s", 2, 0.02), "fast": lambda: job("f", 12, 0.002)}, 2)
    assert order.count("s") == 4 and order.count("f") == 24
    assert order[0] == "s" and order[1] == "f" and order.index("s", 1) > 5
    assert 0.04 <= seconds["slow"] < 0.2 and 0.024 <= seconds["fast"] < 0.2


def test_a_listener_notes_silence():
    class Chunk:
        pcm = np.zeros(240, np.float32)  # 10 ms

    def stream():
        for gap in (0.02, 0.0, 0.06):  # the third comes 60 ms after 20 ms of sound began
            measure.pause(gap)
            yield Chunk

    heard = measure.listen(stream)
    assert 0.02 <= heard.first < heard.seconds and heard.audio == pytest.approx(0.03)
    assert 0.04 <= heard.silence < 0.2
