"""What the model arguments of the commands make of the engine."""

import pytest

from octavo.runtime import Engine
from octavo.runtime.checkpoint import Checkpoint
from octavo.runtime.config import EngineConfig
from octavo.runtime.devices import pick_device
from octavo.runtime.memory_plan import plan_for


class Stop(Exception):
    pass


@pytest.fixture
def loaded(monkeypatch):
    """What Engine.load was called with; a budget's plan is made and told."""
    calls = []

    def load(path, *, vram=None, planned=None, **options):
        calls.append((path, vram, options))
        if vram is not None:
            planned(plan_for(Checkpoint.open(path), pick_device("cpu"), "auto", vram, EngineConfig()))
        raise Stop

    monkeypatch.setattr(Engine, "load", load)
    return calls


def test_without_a_budget_there_is_no_plan(octavo, tiny_dir, loaded, tmp_path):
    with pytest.raises(Stop):
        octavo("say", "Hi.", "--model", tiny_dir, "-o", tmp_path / "o.wav")
    ((path, vram, options),) = loaded
    assert (path, vram) == (str(tiny_dir), None) and options.keys() == {"device", "dtype", "download", "progress"}


@pytest.mark.parametrize("command", [["say", "Hi."], ["voices", "make", "ada", "--seed", "1"]], ids=" ".join)
def test_a_budgets_plan_is_told_before_loading(octavo, tiny_dir, loaded, tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Stop):
        octavo(*command, "--model", tiny_dir, "--vram", "2GiB")
    ((_, vram, _),) = loaded
    assert vram == "2GiB"
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("fp32 on cpu, within 2.00 GiB:\n  language model")
    assert "16 requests at once" in told.err


@pytest.mark.parametrize("vram, says", [("plenty", "no amount of memory"), ("1MB", "Allow")])
def test_a_budget_that_cannot_be(octavo, tiny_dir, loaded, tmp_path, vram, says):
    out = tmp_path / "o.wav"
    assert octavo("say", "Hi.", "--model", tiny_dir, "--vram", vram, "-o", out).refused(says)
    assert not out.exists()
