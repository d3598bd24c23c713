"""The README's table: made from the JSON files, and the committed one agrees with the committed ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from octavo.bench import measure, tables
from octavo.bench.measure import Result, Timing
from octavo.bench.tables import BEGIN, END, render, rewrite

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"cores": 2, "cpu": "A chip", "date": "2026-11-20", "gpu": None, "memory_gb": 25.2, "os": "Debian",
         "python": "3.11.4", "threads": 1, "torch": "2.13.0", "transformers": "5.23.0",
         "load_average": [0.1, 0.1, 0.1]}  # fmt: skip
STEP = Result("C1", "decode step", "tiny, fp32", 1.567, "times as fast", 1.5,
              timings={"octavo": Timing(0.8123, 1, 2, 60), "baseline": Timing(1.2729, 2, 3, 60)})  # fmt: skip
COUNT = Result("C9", "rows before the first sound", "exact", 19, "rows", 18, at_most=True)
ASIDE = Result("", "decode row", "tiny, fp32", 1.2, "times as fast")


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    measure.save(folder / "cpu-2core" / "decode.json", FACTS, [STEP, ASIDE])
    measure.save(folder / "cpu-2core" / "codec.json", FACTS | {"load_average": [3, 2, 1]}, [COUNT])
    return folder


def test_render(results):
    assert render(results).splitlines() == [
        "Measured 2026-11-20 on A chip, 2 cores, 25 GB; Debian, Python 3.11.4, torch 2.13.0, transformers 5.23.0; "
        "one thread, by turns, 10th percentile.",
        "",
        "| | what | octavo | baseline | result | asked |",
        "|---|---|---|---|---|---|",
        "| C1 | decode step: tiny, fp32 | 0.812 ms | 1.27 ms | 1.57 times as fast | at least 1.5 |",
        "| C9 | rows before the first sound: exact |  |  | 19 rows | at most 18: missed |",
    ]


def test_another_machine_has_its_own_table(results):
    measure.save(results / "gpu" / "decode.json", FACTS | {"gpu": "A card"}, [STEP])
    parts = render(results).split("Measured ")
    assert len(parts) == 3 and "on A card (A chip" in parts[2]


@pytest.mark.parametrize("before, after", [("", ""), ("# octavo\n\ntext\n", "\n\nmore `text`\n")])
def test_rewrite_changes_what_is_between_the_markers_alone(before, after):
    text = f"{before}{BEGIN}\nold | table\n{END}{after}"
    once = rewrite(text, "| new |")
    assert once.startswith(before + BEGIN) and once.endswith(END + after) and "old" not in once
    assert re.search(r"\n\n\| new \|\n\n", once)  # a table needs its empty lines
    assert rewrite(once, "| new |") == once
    assert rewrite(once, "") == f"{before}{BEGIN}\n{END}{after}"


@pytest.mark.parametrize("text", ["", BEGIN, END, END + BEGIN, BEGIN + END + END, BEGIN + BEGIN + END])
def test_rewrite_wants_its_markers(text):
    with pytest.raises(ValueError, match="each once"):
        rewrite(text, "")


def test_check_tells_and_write_mends(results, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"# A\n{BEGIN}\n{END}\n")
    arguments = ["--readme", str(readme), "--results", str(results)]
    assert tables.main([*arguments, "--check"]) == 1 and "make tables" in capsys.readouterr().err
    assert readme.read_text() == f"# A\n{BEGIN}\n{END}\n"
    assert tables.main(arguments) == 0
    assert tables.main([*arguments, "--check"]) == 0
    measure.save(results / "cpu-2core" / "codec.json", FACTS, [])
    assert tables.main([*arguments, "--check"]) == 1


def test_no_readme_is_a_sentence(tmp_path, capsys):
    assert tables.main(["--readme", str(tmp_path / "absent.md")]) == 1
    assert "absent.md" in capsys.readouterr().err


def test_the_readme_says_what_the_files_say():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    assert tables.main(["--check", "--readme", str(readme), "--results", str(ROOT / "bench" / "results")]) == 0
