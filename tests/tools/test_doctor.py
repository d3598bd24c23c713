"""`octavo doctor`: a line for each thing, and never a traceback, however broken the machine is."""

import sys

import pytest

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
    monkeypatch.setitem(sys.modules, "soxr", None)
    outcome = octavo("doctor")
    assert outcome.code == 1
    said = lines(outcome)
    assert said["octavo"].startswith("no: ") and "soxr" in said["octavo"] and said["resampling"].startswith("no: ")


def test_optional_libraries_are_optional(octavo, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    outcome = octavo("doctor")
    assert outcome.code == 0 and "pip install 'octavo[audio]'" in lines(outcome)["sound card"]


def test_a_folder_that_cannot_be_written(octavo, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_VOICES", str(tmp_path / "file" / "voices"))
    assert lines(octavo("doctor"))["voices"].startswith("no: ")


def test_what_the_published_model_needs():
    # model-v3.md 2.5: the language model and the audio table; the KV cache of 8192 rows; the mapped table; the codec
    # in fp32.
    weights, kv, table, codec = 3_654_524_416, 1152 * 2**20, 2 * 388_956_160, 4 * 201_401_321
    assert doctor.memory_needed("4b", 2) == 2 * weights + kv + table + codec
    assert doctor.memory_needed("4b", 4) == 4 * weights + 2 * kv + table + codec


def test_memory_is_plausible():
    total, free = doctor.memory()
    assert 0 < free <= total
