"""`octavo doctor`: a line for each thing, and never a traceback, however broken the machine is."""

import re
import sys

import pytest
import torch

from octavo.runtime.memory_plan import parse_size
from octavo.tools import doctor


def lines(outcome):
    return {line[:14].strip(): line[14:] for line in outcome.out.splitlines()}


def test_one_line_each(octavo, voices_folder):
    outcome = octavo("doctor")
    assert outcome.code == 0 and outcome.err == ""
    said = lines(outcome)
    assert list(said) == list(doctor.CHECKS)
    assert all(said.values())
    assert "wav, flac" in said["sound files"]
    assert str(voices_folder) in said["voices"] and not voices_folder.exists(), "looking must make nothing"


@pytest.mark.parametrize("name", list(doctor.CHECKS))
def test_a_check_that_breaks_becomes_its_line(octavo, monkeypatch, name):
    def broken():
        raise RuntimeError("driver\nfell over")

    monkeypatch.setitem(doctor.CHECKS, name, broken)
    outcome = octavo("doctor")
    assert outcome.code == 0
    assert lines(outcome)[name] == "no: RuntimeError: driver fell over"
    assert len(outcome.out.splitlines()) == len(doctor.CHECKS)


def test_nothing_can_run_without_a_required_library(octavo, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    outcome = octavo("doctor")
    assert outcome.code == 1
    said = lines(outcome)
    assert said["octavo"].startswith("no: ") and "safetensors" in said["octavo"]


@pytest.mark.parametrize("name, line", [("soundfile", "sound files"), ("soxr", "resampling")])
def test_speaking_needs_no_sound_library(octavo, monkeypatch, name, line):
    monkeypatch.setitem(sys.modules, name, None)
    outcome = octavo("doctor")
    said = lines(outcome)
    assert outcome.code == 0 and said["octavo"].endswith("can run")
    assert said[line].startswith("no: ") and f"pip install {name}" in said[line]


def test_optional_libraries_are_optional(octavo, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    outcome = octavo("doctor")
    assert outcome.code == 0 and "pip install 'octavo[audio]'" in lines(outcome)["sound card"]


def test_a_folder_that_cannot_be_written(octavo, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_VOICES", str(tmp_path / "file" / "voices"))
    assert lines(octavo("doctor"))["voices"].startswith("no: ")


def test_what_fits_on_this_machine(octavo):
    said = lines(octavo("doctor"))
    for dtype in ("bf16", "fp32"):
        form = r"cpu: (\d+ requests? at once, [\d,]+ rows of KV cache in|does not fit, needs) [\d.]+ GiB.*"
        assert re.fullmatch(form, said[f"4b in {dtype}"]), said


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
@pytest.mark.parametrize("dtype, weights", [("bf16", 7.27e9), ("fp32", 14.5e9)])
def test_what_fits_into_so_much(device, dtype, weights):
    device = torch.device(device)
    needed = doctor.fit(dtype, device, int(weights))
    least = parse_size(needed.removeprefix(f"{device}: does not fit, needs "), 1)
    assert weights < least < 1.3 * weights
    assert doctor.fit(dtype, device, least).startswith(f"{device}: 1 request at once, 2,048 rows")
    assert doctor.fit(dtype, device, int(0.99 * least)) == needed
