"""Reports of what the gate measured, and the table that compares files."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math

import pytest
from safetensors.torch import load_file, save_file

from octavo.quant import report
from octavo.quant.scores import FreeRuns, Scores
from octavo.runtime import CheckpointError, RequestError
from octavo.tools.make_checkpoint import make_checkpoint

SCORES = Scores(
    utterances=24,
    rows=2400,
    kl_mean=(0.011, 0.012, 0.013, 0.014, 0.015, 0.016, 0.017, 0.0181),
    kl_p99=(0.1,) * 8,
    top1=(0.931, 0.92, 0.91, 0.9, 0.89, 0.88, 0.87, 0.861),
    top50=(0.96,) * 8,
    eoc_shift=0.00123,
    eoc_shift_last=-0.0045,
    eoc_log_odds=0.12,
    ending=((0.01, 0.02), (0.1, 0.11), (0.9, 0.88)),
    hidden=(0.01, 0.02, 0.0333),
    waveform=0.71,
    free=FreeRuns(24, 1, 2, 0, 1, 1.01, 0.1, 0.25),
)
FACTS = {
    "tool": "octavo 0.1",
    "source": {"name": "a|b", "bytes": "9"},
    "relative_l2": {"body.layers.0.mlp.up_proj.weight": 0.07, "body.layers.1.mlp.up_proj.weight": 0.09},
    "failures": ["It is bad."],
}


@pytest.mark.parametrize("name", ["q4.md", "q4", "q4.json"])
def test_three_files_that_say_the_same(tmp_path, name):
    pytest.importorskip("matplotlib")
    page, data, picture = report.write(tmp_path / name, SCORES, FACTS)
    assert [path.name for path in (page, data, picture)] == ["q4.md", "q4.json", "q4.png"]
    assert sorted(tmp_path.iterdir()) == sorted([page, data, picture])
    stored = json.loads(data.read_text())
    assert Scores.from_dict(stored["scores"]) == SCORES and stored["source"] == FACTS["source"]
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
    text = page.read_text(encoding="utf-8")
    for said in (
        "**fails**",
        "- It is bad.",
        "| 7 | 0.018 | 0.1 | 86.1% | 96.0% |",
        "+0.00123",
        "| source: name | a\\|b |",
        "mean 0.0800",
        "body.layers.1.mlp.up_proj.weight, 0.0900",
        "| run on | 1 | 2 |",
        "](q4.png)",
    ):
        assert said in text, said


def test_a_name_with_dots_keeps_them(tmp_path):
    pytest.importorskip("matplotlib")
    assert report.write(tmp_path / "v1.5-q4.0", SCORES, {})[0].name == "v1.5-q4.0.md"


def test_without_an_end_or_numbers_there_is_a_report_too(tmp_path):
    pytest.importorskip("matplotlib")
    nothing = dataclasses.replace(
        SCORES,
        kl_mean=(math.nan,) * 8,
        kl_p99=(math.nan,) * 8,
        top1=(math.nan,) * 8,
        hidden=(0.0, math.nan),
        eoc_shift_last=None,
        eoc_log_odds=math.nan,
        ending=(),
        waveform=None,
        free=None,
    )
    page, data, _ = report.write(tmp_path / "nothing.md", nothing, {"failures": []})
    assert "**passes**" in page.read_text() and "each going its own way" not in page.read_text()
    restored = Scores.from_dict(json.loads(data.read_text())["scores"])
    assert math.isnan(restored.kl_mean[0]) and restored.eoc_shift_last is None and restored.free is None
    assert "NaN" not in data.read_text()


def test_without_matplotlib_a_sentence_and_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"octavo\[report\]"):
        report.write(tmp_path / "report.md", SCORES, {})
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_gets_a_sentence(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(RequestError, match="cannot be written"):
        report.write(tmp_path / "nowhere" / "report.md", SCORES, {})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("report") / "plain", size="tiny", tied_copies=False, index=False)


def described(plain, folder, provenance) -> str:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).symlink_to(plain / name)
    weights = load_file(plain / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"octavo": json.dumps(provenance)})
    return str(folder)


def test_a_table_of_several_files(plain, tmp_path):
    made = {"type": "in\x1bt8", "scores": SCORES.to_dict(), "failures": []}
    one, two = (
        described(plain, tmp_path / name, made | {"failures": wrong}) for name, wrong in (("one", []), ("two", ["x"]))
    )
    header, rule, *lines = report.table([one, two, str(plain)]).splitlines()
    assert header.count("|") == rule.count("|") and {line.count("|") for line in lines} == {header.count("|")}
    assert "\x1b" not in "".join(lines)
    assert "passes | 0.018 | 93.1% | 86.1% | +0.0012 | +0.12 | 0.033 | 0.710 | 2 of 24 (source 1) |" in lines[0]
    assert lines[0].startswith(f"| {one} | in t8 | 0.0") and "| fails |" in lines[1] and "| no scores |" in lines[2]


@pytest.mark.parametrize(
    "damage",
    [
        {"kl_mean": [0.1]},
        {"kl_mean": None},
        {"top1": ["x"] * 8},
        {"hidden": []},
        {"free": {"count": 3}},
        {"free": [1]},
        {"ending": [1]},
        {"rows": "many"},
        {"utterances": math.inf},
    ],
)
def test_damaged_scores_get_a_sentence(damage):
    with pytest.raises(ValueError, match="damaged"):
        Scores.from_dict(SCORES.to_dict() | damage)
    missing = SCORES.to_dict()
    del missing[next(iter(damage))]
    with pytest.raises(ValueError, match="damaged"):
        Scores.from_dict(missing)


def test_a_table_names_the_file_that_is_damaged(plain, tmp_path):
    bad = described(plain, tmp_path / "bad", {"scores": {"kl_mean": 1}})
    with pytest.raises(CheckpointError, match="bad cannot be compared"):
        report.table([bad])
    with pytest.raises(CheckpointError):
        report.table([str(tmp_path / "absent")])
