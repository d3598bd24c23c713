"""The frame of gpu_check, on the CPU with steps made up here: deadlines, what is kept of them, the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from octavo.kernels.linear_tile import Tile, candidates
from octavo.tools import gpu_bench, gpu_check, gpu_lines, gpu_table, gpu_tiles
from octavo.tools.gpu_check import Step

PASSED = "gpu_lines.write(name='{}', outcome='passed', seconds=0.1, why='')"


def step(*statements, what="benchmarks", share=1.0):
    code = "; ".join(["import sys, time", "from octavo.tools import gpu_lines", *statements])
    return Step("row", what, share, [sys.executable, "-c", code])


def outcomes(told):
    return {check["name"]: (check["outcome"], check["why"]) for check in told["checks"]}


def test_a_step_is_stopped_at_its_deadline_and_what_it_found_is_kept(tmp_path):
    slow = step(
        "gpu_lines.write(planned=['a', 'b', 'c'])",
        PASSED.format("a"),
        "gpu_lines.write(figure={'name': 'a', 'ms': 2.0})",
        "gpu_lines.write(started='b')",
        "time.sleep(60)",
    )
    start = time.monotonic()
    report = gpu_check.run([slow], 2, tmp_path)
    assert time.monotonic() - start < 10
    (told,) = report["steps"]
    assert told["ended"] == "stopped at its deadline"
    assert outcomes(told) == {
        "a": ("passed", ""),
        "b": ("not run", "was running when the step ended"),
        "c": ("not run", "the step ended before it began"),
    }
    assert told["figures"] == [{"name": "a", "ms": 2.0}]
    assert not gpu_check.failed(report)


def test_time_that_a_step_leaves_goes_to_the_later_ones(tmp_path):
    report = gpu_check.run([step(share=1), step(share=1), step(share=2)], 40, tmp_path)
    deadlines = [told["deadline"] for told in report["steps"]]
    assert deadlines[0] == 10 and 12 < deadlines[1] < 13.4 and deadlines[2] > 30, deadlines


def test_a_step_is_told_how_long_it_has(tmp_path):
    asks = step("gpu_lines.write(facts={'told': {seconds}})")
    assert gpu_check.run([asks], 30, tmp_path)["steps"][0]["told"] == 30 - gpu_check.START_AND_END
    assert gpu_check.run([asks], 5, tmp_path)["steps"][0]["told"] == 0


@pytest.mark.parametrize(
    "statements, why",
    [
        (["print('CUDA error: an illegal access', file=sys.stderr)", "sys.exit(3)"], "exit code 3: CUDA error"),
        (["raise ValueError('no such shape')"], "exit code 1: ValueError: no such shape"),
        (["import os", "os.kill(os.getpid(), 11)"], "exit code -11: "),
    ],
)
def test_a_step_that_dies_is_a_failure_and_the_next_one_runs(tmp_path, statements, why):
    report = gpu_check.run([step(*statements), step(PASSED.format("next"))], 30, tmp_path)
    outcome, said = outcomes(report["steps"][0])["benchmarks"]
    assert outcome == "failed" and said.startswith(why)
    assert outcomes(report["steps"][1]) == {"next": ("passed", "")}
    assert gpu_check.failed(report)


def test_the_report_is_there_after_each_step(tmp_path):
    file = str(tmp_path / "gpu_check.json")
    sees = step("import json", f"gpu_lines.write(facts=dict(seen=len(json.load(open({file!r}))['steps'])))")
    report = gpu_check.run([step("print('hello from a step')"), sees], 30, tmp_path)
    assert report["steps"][1]["seen"] == 1
    assert json.loads((tmp_path / "gpu_check.json").read_text()) == report
    assert (tmp_path / "gpu_check.txt").read_text() == gpu_table.text(report)
    assert "hello from a step" in (tmp_path / "gpu_check.log").read_text()
    assert report["machine"]["torch"] == torch.__version__


@pytest.fixture
def lines(tmp_path, monkeypatch):
    monkeypatch.setenv(gpu_lines.FILE, str(tmp_path / "lines"))
    return lambda: gpu_lines.read(tmp_path / "lines")


def test_benchmarks_one_after_the_other(lines):
    def good(device):
        yield {"case": "N=1", "ms": 2.0, "bytes": 4_000_000, "goal": "G1"}
        yield {"case": "N=2", "audio_s_per_s": 7.0}

    def bad(device):
        yield {"case": "N=1", "ms": 1.0}
        raise RuntimeError("out\nof memory")

    gpu_bench.run({"bad": bad, "good": good}, torch.device("cpu"), time.monotonic() + 60)
    told = lines()
    bandwidth = told["facts"]["copy_gb_s"] * 1e9
    first, second, third = told["figures"]
    assert first == {"name": "bad", "case": "N=1", "ms": 1.0}
    assert second["of_copy"] == pytest.approx(4e6 / 2e-3 / bandwidth)
    assert third == {"name": "good", "case": "N=2", "audio_s_per_s": 7.0}
    assert outcomes(told | {"checks": told["checks"].values()}) == {
        "bad": ("failed", "RuntimeError: out of memory"),
        "good": ("passed", ""),
    }


@pytest.mark.parametrize(
    "figure, met",
    [
        ({"ms": 1.0, "bytes": 8e8, "asked": 0.8}, True),
        ({"ms": 1.0, "bytes": 7.9e8, "asked": 0.8}, False),
        ({"ms": 1.0, "bytes": 7.9e8, "times": 1.3, "asked": 1.3}, True),
        ({"ms": 1.0, "value": 46.0, "asked": 45.0, "at_most": True}, False),
        ({"ms": 1.0, "value": 44.0, "asked": 45.0, "at_most": True}, True),
        ({"ms": 1.0, "asked": 45.0}, None),
    ],
)
def test_a_goal_is_met_or_missed(figure, met):
    assert gpu_bench.complete("a", figure, copy=1e12).get("met") is met


def test_no_benchmark_begins_when_the_time_is_over(lines):
    gpu_bench.run({"late": pytest.fail}, torch.device("cpu"), time.monotonic())
    assert lines()["planned"] == ["late"] and not lines()["checks"]


def test_a_part_without_benchmarks_says_so(lines):
    assert gpu_bench.main(["nothing", "--seconds", "1", "--device", "cpu"]) == 0
    (check,) = lines()["checks"].values()
    assert check["outcome"] == "not run" and "octavo.bench.gpu_nothing" in check["why"]


def test_half_a_line_is_not_read(tmp_path):
    (tmp_path / "lines").write_text('{"started": "a"}\n{"started": "b')
    assert gpu_lines.read(tmp_path / "lines")["started"] == ["a"]


TESTS = {
    "test_one.py": """
import pytest
@pytest.mark.gpu
def test_good(): pass
@pytest.mark.gpu
def test_bad(): assert 1 == 2, "not equal"
@pytest.mark.gpu
def test_skipped(): pytest.skip("no such thing")
def test_of_the_cpu(): assert False
""",
    "test_two.py": "import no_such_module\n",
    "test_three.py": "1 / 0\n",
}


@pytest.mark.parametrize("workers", [0, 2])
def test_tests_are_reported_one_by_one(tmp_path, workers):
    """With pytest-xdist too, where there is one; a file that wants a missing module did not run."""
    if workers:
        pytest.importorskip("xdist", reason="pytest-xdist is not here")
    for name, source in TESTS.items():
        (tmp_path / name).write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    options = ["--rootdir", str(tmp_path), "-m", "gpu", "-p", "octavo.tools.gpu_tests", "-p", "no:cacheprovider"]
    options += ["--continue-on-collection-errors", *(["-n", str(workers)] if workers else [])]
    command = [sys.executable, "-m", "pytest", *options, *(str(tmp_path / name) for name in TESTS)]
    report = gpu_check.run([Step("row", "tests", 1, command)], 60, tmp_path / "out")
    (told,) = report["steps"]
    found = {name.split("::")[-1]: value for name, value in outcomes(told).items()}
    assert found.pop("test_bad")[0] == "failed"
    assert found == {
        "test_good": ("passed", ""),
        "test_skipped": ("not run", "Skipped: no such thing"),
        "test_two.py": ("not run", "ModuleNotFoundError: No module named 'no_such_module'"),
        "test_three.py": ("failed", "ZeroDivisionError: division by zero"),
    }


def test_every_test_file_belongs_to_one_part():
    files = [file for part in gpu_check._test_files().values() for file in part]
    assert len(files) == len(set(files)) == len(list((gpu_check.ROOT / "tests").rglob("test_*.py")))
    mine = gpu_check._test_files()
    assert str(Path(__file__).resolve()) in mine["engine"]
    assert str(gpu_check.ROOT / "tests/kernels/test_rms_norm.py") in mine["kernels"]


def test_the_page(tmp_path):
    checks = [
        {"name": "t[1]", "outcome": "not run", "why": "no such thing"},
        {"name": "t[2]", "outcome": "not run", "why": "no such thing"},
        {"name": "u", "outcome": "failed", "why": "1 == 2"},
        {"name": "v", "outcome": "passed", "why": ""},
    ]
    figure = {"name": "row", "case": "N=1", "ms": 2.14159, "bytes": 7_350_000_000, "of_copy": 0.8, "launches": 290}
    figures = [figure, {"goal": "G9", "name": "x", "value": 46.0, "asked": 45, "at_most": True, "met": False}]
    told = {"part": "row", "what": "tests", "ended": "in time", "seconds": 3.2, "copy_gb_s": 4300.0}
    page = gpu_table.text(
        {"machine": {"gpu": "A", "cuda": None}, "steps": [told | {"checks": checks, "figures": figures}]}
    )
    assert page.splitlines() == [
        "gpu A",
        "",
        "row tests: 1 passed, 1 failed, 2 not run (in time, 3.2 s); copy 4300 GB/s",
        "  failed: u: 1 == 2",
        "  not run: t[1] and 1 more: no such thing",
        "  goal  name  case  ms     GB    of copy  asked",
        "        row   N=1   2.142  7.35  0.8                         launches 290",
        "  G9    x                                 at most 45 MISSED  value 46",
    ]


def test_the_estimate_stays_unless_another_tile_is_clearly_faster():
    estimate, other = Tile(4, 4, 4), Tile(8, 4, 4)
    assert gpu_tiles.best({estimate: 1.0, other: 0.99}, estimate) == estimate
    assert gpu_tiles.best({estimate: 1.0, other: 0.97}, estimate) == other
    assert gpu_tiles.best({other: 2.0}, estimate) == other


def test_tiles_of_other_shapes_and_kernels_stay_in_the_file(tmp_path):
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"other": {"a": {"x": 1}}, "linear": {"1 2x2": {"rows": 2}, "1 4x4": {"rows": 4}}}))
    gpu_tiles.save({"1 4x4": {"rows": 8}}, file)
    assert json.loads(file.read_text()) == {
        "other": {"a": {"x": 1}},
        "linear": {"1 2x2": {"rows": 2}, "1 4x4": {"rows": 8}},
    }


PRECOMPILE = """
import time
from octavo.kernels.linear_tile import Tile
from octavo.tools import gpu_tiles

if __name__ == "__main__":
    good, bad = Tile(rows=8, warps=2, stages=3), Tile(rows=3, warps=2, stages=3)
    ready = gpu_tiles.precompile({("o", 1): [bad, good], ("qkv", 1): []}, 90, time.monotonic() + 100)
    assert ready == {("o", 1): [good], ("qkv", 1): []}, ready
"""


def test_tiles_are_compiled_ahead(tmp_path):
    """Into Triton's cache, by other processes; three rows are no power of two, so that tile does not compile."""
    pytest.importorskip("triton", reason="needs Triton, which this PyTorch comes without")
    (tmp_path / "ahead.py").write_text(PRECOMPILE)
    compiled = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = compiled | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, str(tmp_path / "ahead.py")], env=environment, check=True)
    (binary,) = (tmp_path / "cache").rglob("*.cubin")
    assert "_gemv_kernel" in binary.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tiles_are_measured():
    device = torch.device("cuda")
    tiles = candidates(1, 2560, False, False, device)[:2]
    times = gpu_tiles.measure("o", 1, tiles, device)
    assert set(times) == set(tiles) and min(times.values()) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    assert gpu_check.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "GPU" in said.err
    assert not (tmp_path / "out").exists()
