"""The frame around the commands: help, exit codes, and who catches what."""

import importlib.metadata
import subprocess
import sys

import pytest

from octavo.runtime.errors import CapacityError, OctavoError, RequestError
from octavo.tools import commands, doctor


def test_help_and_version(octavo):
    assert octavo("--version").out == f"octavo {importlib.metadata.version('octavo')}\n"
    overview = octavo("--help")
    assert overview.code == 0 and all(name in overview.out for name in commands.COMMANDS)
    for name in commands.COMMANDS:
        assert octavo(name, "--help").code == 0


def test_every_flag_of_say_has_help(octavo):
    said = octavo("say", "--help").out
    flags = """-f -o --model --download --device --dtype --vram --voice --ref-audio --ref-text --temperature --top-k
        --top-p --seed --max-rows --split --no-guard --strict --codes --srt --play"""
    assert all(f"{flag} " in said or f"{flag}," in said for flag in flags.split())


@pytest.mark.parametrize("arguments", [[], ["sing"], ["inspect"], ["voices"], ["say", "x", "--split", "all"]], ids=str)
def test_wrong_arguments(octavo, arguments):
    outcome = octavo(*arguments)
    assert outcome.code == 2 and "usage: octavo" in outcome.err


def test_an_early_ctrl_c_says_nothing():
    """Importing the sub-commands takes a moment, and `main` is in charge from before it."""
    code = """
import sys
before = set(sys.modules)
from octavo.tools import cli
assert sys.modules.keys() - before <= {"octavo", "octavo.tools", "octavo.tools.cli"}, set(sys.modules) - before

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "argparse":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
sys.exit(cli.main(["--help"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from octavo.tools.cli import main; main(['--help']); "
        "sys.exit(bool({'torch', 'numpy', 'tokenizers', 'soundfile', 'huggingface_hub'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "error, code, said",
    [
        (OctavoError("This is wrong. Do that."), 2, "octavo: This is wrong. Do that.\n"),
        (RequestError("Too long. Cut it."), 2, "octavo: Too long. Cut it.\n"),
        (CapacityError("Too large. Use less."), 2, "octavo: Too large. Use less.\n"),
        (OSError(28, "No space left on device", "out.wav"), 2, "octavo: out.wav: No space left on device.\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=repr,
)
def test_exit_codes(octavo, monkeypatch, error, code, said):
    def run(_):
        raise error

    monkeypatch.setattr(doctor, "run", run)
    outcome = octavo("doctor")
    assert (outcome.code, outcome.out, outcome.err) == (code, "", said)


def test_a_bug_is_not_hidden(octavo, monkeypatch):
    def run(_):
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "run", run)
    with pytest.raises(ZeroDivisionError):
        octavo("doctor")


def test_the_reader_of_our_output_may_leave():
    command = f"{sys.executable} -m octavo.tools.cli doctor | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() == "141" and done.stderr == ""
