"""`octavo voices`: from a recording or from a seed to a stored voice and back, asking for consent."""

import io
import json

import numpy as np
import pytest

from octavo.runtime.engine import Engine
from octavo.runtime.voice import VoiceStore


@pytest.fixture
def add(octavo, recording, tiny_dir):
    """Adds a voice `ann` with consent; options come on top."""
    return lambda *options: octavo(
        "voices", "add", "ann", recording(), "--consent", "I am Ann, and I agree.", "--model", tiny_dir, *options
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def types(monkeypatch):
    """Someone at a terminal types this."""
    return lambda text: monkeypatch.setattr("sys.stdin", Terminal(text))


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())


def test_add_show_list_say_remove(octavo, add, voices_folder, tiny_dir, tmp_path):
    added = add("--transcript", "Bzz.", "--licence", "CC0")
    assert added.code == 0 and "--voice ann" in added.out
    voice = VoiceStore(voices_folder).get("ann")
    assert (voice.transcript, voice.licence, voice.consent) == ("Bzz.", "CC0", "I am Ann, and I agree.")
    assert len(voice.source_sha256) == 64 and voice.codes.shape[1] == 8 and voice.created

    shown = json.loads(octavo("voices", "show", "ann", "--json").out)
    assert shown["frames"] == len(voice.codes) and shown["consent"] == voice.consent
    assert "I am Ann" in octavo("voices", "show", "ann").out
    assert octavo("voices", "list").out.split()[:3] == ["ann", f"{voice.seconds:.2f}", "s"]

    said = ("say", "Hi.", "--seed", 1, "--max-rows", 12, "--model", tiny_dir, "-o", tmp_path / "o.wav")
    assert octavo(*said, "--codes", tmp_path / "a.npy", "--voice", "ann").code == 0
    assert octavo(*said, "--codes", tmp_path / "b.npy", "--voice", voices_folder / "ann.safetensors").code == 0
    assert octavo(*said, "--codes", tmp_path / "c.npy").code == 0
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert np.array_equal(a, b) and not np.array_equal(a, c)

    assert octavo("voices", "rm", "ann", "--yes").code == 0
    assert VoiceStore(voices_folder).list() == {}
    listed = octavo("voices", "list")
    assert listed.code == 0 and listed.out == "" and "No voices" in listed.err


def test_a_transcript_from_a_file(add, voices_folder, tmp_path):
    (tmp_path / "t.txt").write_text("Bzz, ü.", encoding="utf-8")
    assert add("--transcript-file", tmp_path / "t.txt").code == 0
    assert VoiceStore(voices_folder).get("ann").transcript == "Bzz, ü."


def test_a_house_voice_is_its_seed(octavo, voices_folder, tiny_dir):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        made = octavo("voices", "make", name, "--seed", seed, "--text", "Hi.", "--model", tiny_dir)
        assert made.code == 0, made
    voices = VoiceStore(voices_folder).list()
    assert np.array_equal(voices["a"].codes, voices["b"].codes)
    assert not np.array_equal(voices["a"].codes, voices["c"].codes)
    assert (voices["a"].seed, voices["a"].transcript, voices["a"].source_sha256) == (3, "Hi.", "")


def test_a_runaway_is_no_voice(octavo, voices_folder, tiny_dir, monkeypatch):
    import dataclasses

    original = Engine.generate
    monkeypatch.setattr(
        Engine, "generate", lambda *a, **o: dataclasses.replace(original(*a, **o), finish_reason="loop")
    )
    made = octavo("voices", "make", "a", "--seed", 3, "--text", "Hi.", "--model", tiny_dir)
    assert made.refused("seed 3", "another seed") and not voices_folder.exists()


def test_consent_is_asked_for_on_a_terminal(octavo, recording, tiny_dir, types, voices_folder):
    arguments = ("voices", "add", "ann", recording(), "--model", tiny_dir)
    types("She said yes.\n")
    outcome = octavo(*arguments)
    assert outcome.code == 0 and "Whose voice" in outcome.err
    assert VoiceStore(voices_folder).get("ann").consent == "She said yes."
    for nothing in ("\n", ""):  # an empty line, and the end of input
        types(nothing)
        outcome = octavo(*arguments, "--replace")
        assert outcome.code == 2 and "octavo: Without consent" in outcome.err


def test_removing_asks_on_a_terminal(octavo, add, types, voices_folder):
    add()
    for answer, left in (("n\n", 1), ("\n", 1), ("", 1), ("y\n", 0)):
        types(answer)
        assert octavo("voices", "rm", "ann").code == 0
        assert len(VoiceStore(voices_folder).list()) == left


def test_names(octavo, add, no_model, voices_folder):
    assert octavo("voices", "show", "ann").refused("ann")
    assert octavo("voices", "rm", "ann", "--yes").refused("ann")


def test_a_taken_name_is_refused_before_the_model_loads(octavo, add, monkeypatch, voices_folder):
    assert add().code == 0
    before = VoiceStore(voices_folder).get("ann").transcript
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "load", lambda *_, **__: pytest.fail("the model was loaded"))
        assert add("--transcript", "new").refused("ann", "--replace")
    assert VoiceStore(voices_folder).get("ann").transcript == before
    assert add("--transcript", "new", "--replace").code == 0
    assert VoiceStore(voices_folder).get("ann").transcript == "new"


@pytest.mark.parametrize("name", ["", "../ann", "a/b", ".hidden", "a b", "x" * 300])
def test_bad_names(octavo, recording, no_model, voices_folder, name):
    assert octavo("voices", "add", name, recording(), "--consent", "yes", "--model", "m").refused()
    assert not voices_folder.exists()


def test_bad_recordings(octavo, no_model, recording, tmp_path, voices_folder):
    (tmp_path / "text.wav").write_text("no sound")
    for audio in (tmp_path / "absent.wav", tmp_path / "text.wav", recording(seconds=0.2), recording("s.wav", level=0)):
        assert octavo("voices", "add", "ann", audio, "--consent", "yes", "--model", "m").refused()
    assert not voices_folder.exists()


def test_nobody_to_ask(octavo, add, no_model, recording):
    assert octavo("voices", "add", "ann", recording(), "--model", "m").refused("--consent")


def test_nobody_to_ask_about_removing(octavo, add, voices_folder):
    add()
    assert octavo("voices", "rm", "ann").refused("--yes")
    assert len(VoiceStore(voices_folder).list()) == 1


def test_a_damaged_voice_is_listed_as_such_and_can_be_removed(octavo, add, voices_folder):
    add()
    (voices_folder / "bad.safetensors").write_bytes(b"junk")
    outcome = octavo("voices", "list")
    assert outcome.code == 0 and [line.split()[0] for line in outcome.out.splitlines()] == ["ann", "bad"]
    assert "damaged" in outcome.out
    assert octavo("voices", "show", "bad").refused("bad")
    assert octavo("voices", "rm", "bad", "--yes").code == 0


def test_a_folder_that_cannot_be_made(octavo, add, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OCTAVO_VOICES", str(tmp_path / "file" / "voices"))
    assert add().refused("voices")
