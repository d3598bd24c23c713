"""Voices, voice files and the folder they live in."""

import dataclasses
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.runtime.errors import VoiceError
from octavo.runtime.voice import TEXTS, Voice, VoiceStore, check_codes, find_voice

SHA = "0123456789abcdef" * 4


def codes(frames: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1024, (frames, 8)).astype(np.int16)


def house(name: str = "ada", **fields: object) -> Voice:
    return Voice(**{"codes": codes(), "name": name, "codec": "c0dec", "seed": 7, **fields})  # type: ignore[arg-type]


def recorded(**fields: object) -> Voice:
    given = {"transcript": "Hello.", "consent": "Ada agreed in writing.", "source_sha256": SHA, "seed": None}
    return house(**{**given, **fields})


def same(a: Voice, b: Voice) -> bool:
    return np.array_equal(a.codes, b.codes) and all(
        getattr(a, field) == getattr(b, field) for field in (*TEXTS, "seed", "key")
    )


def save(voice: Voice, path: Path) -> Path:
    voice.save(path)
    return path


# The voice itself


def test_codes_are_a_read_only_copy() -> None:
    mine = codes()
    voice = house(codes=mine)
    mine[0, 0] = (mine[0, 0] + 1) % 1024
    assert voice.codes.dtype == np.int16 and voice.codes[0, 0] != mine[0, 0]
    with pytest.raises(ValueError):
        voice.codes[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        voice.name = "other"  # type: ignore[misc]
    assert voice.seconds == 2.0


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint16, ">i4"])
def test_any_integers_will_do(dtype: str) -> None:
    np.testing.assert_array_equal(check_codes(codes().astype(dtype)), codes())


@pytest.mark.parametrize(
    "bad",
    [
        codes()[0],
        codes()[:, :7],
        codes()[None],
        codes()[:0],
        codes().astype(float),
        codes() == 3,
        np.full((30, 8), 1024),
        np.full((30, 8), -1),
        np.full((30, 8), 2**40),
        "codes",
    ],
    ids=range(10),
)
def test_bad_codes(bad: object) -> None:
    with pytest.raises(VoiceError, match="odes"):
        house(codes=bad)


def test_lengths() -> None:
    for frames in (1, 25, 750, 1500):
        assert len(house(codes=codes(frames)).codes) == frames
    for frames in (25, 750):
        assert len(recorded(codes=codes(frames)).codes) == frames
    with pytest.raises(VoiceError, match="60 s"):
        house(codes=codes(1501))
    for frames in (24, 751):
        with pytest.raises(VoiceError, match="1 to 30 s"):
            recorded(codes=codes(frames))


@pytest.mark.parametrize(
    "fields",
    [
        {"source_sha256": "abc"},
        {"source_sha256": SHA.upper()},
        {"source_sha256": SHA + "\n"},
        {"transcript": "\ud800"},
        {"consent": "x" * 20_001},
        {"name": None},
        {"licence": b"CC0"},
        {"seed": -1},
        {"seed": 1 << 63},
        {"seed": 1.0},
        {"seed": "7"},
        {"seed": True},
    ],
)
def test_bad_fields(fields: dict) -> None:
    with pytest.raises(VoiceError):
        house(**fields)


def test_blank_transcript_is_none() -> None:
    assert house(transcript=" \n").transcript is None
    assert house(transcript=" a ").transcript == " a "


def test_a_seed_may_come_from_numpy() -> None:
    voice = house(seed=np.uint32(7))
    assert voice.seed == 7 and type(voice.seed) is int


def test_a_transcript_that_is_not_read_as_it_stands_warns() -> None:
    assert house(transcript="Hello <|prosody:pause|> there.").warnings == house(transcript=None).warnings == ()
    (warning,) = house(transcript="Hello <|aud<|tts|>io|> there.<|tts|>").warnings
    assert "<|tts|>, <|audio|>" in warning and "transcript" in warning


def test_key_sees_every_code_and_the_transcript() -> None:
    base = house()
    assert base.key == house(name="other", seed=None, consent="x").key
    keys = {base.key, house(transcript="a").key, house(transcript="b").key, house(codes=codes(49)).key}
    for frame, book in [(0, 0), (0, 7), (49, 7), (25, 3)]:
        changed = codes()
        changed[frame, book] ^= 1
        keys.add(house(codes=changed).key)
    assert len(keys) == 8


def test_codec() -> None:
    house().require_codec("c0dec")
    for other in ("c0decs", "", "C0DEC"):
        with pytest.raises(VoiceError, match="another codec"):
            house().require_codec(other)
    with pytest.raises(VoiceError, match="unknown"):
        house(codec="").require_codec("c0dec")


# The file

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    fields = {field: data.draw(text, field) for field in TEXTS if field not in ("source_sha256", "codec")}
    voice = house(
        **fields,
        codec=data.draw(text.filter(bool)),
        codes=codes(data.draw(st.integers(25, 60)), data.draw(st.integers(0, 9))),
        seed=data.draw(st.none() | st.integers(0, 2**63 - 1)),
        source_sha256=data.draw(st.sampled_from(["", SHA]) if fields["consent"].strip() else st.just("")),
    )
    loaded = Voice.load(save(voice, tmp_path / "v.safetensors"))
    assert same(loaded, voice) and loaded.transcript == voice.transcript


def test_the_file_holds_what_it_says_and_no_sound(tmp_path: Path) -> None:
    path = save(recorded(codes=codes(750), licence="CC0", created="2026-11-20"), tmp_path / "v.safetensors")
    assert path.stat().st_size < 750 * 16 + 1000
    with safetensors.safe_open(path, "numpy") as file:
        assert list(file.keys()) == ["codes"] and file.get_tensor("codes").dtype == np.int16
        metadata = file.metadata()
    want = {"format": "octavo-voice", "version": "1", "transcript": "Hello.", "consent": "Ada agreed in writing."}
    want |= {"licence": "CC0", "created": "2026-11-20", "source_sha256": SHA, "codec": "c0dec", "name": "ada"}
    assert want.items() <= metadata.items() and metadata.keys() - want.keys() == {"octavo", "digest"}


@pytest.mark.parametrize("consent", ["", " \n"])
def test_no_recorded_voice_is_stored_without_consent(tmp_path: Path, consent: str) -> None:
    with pytest.raises(VoiceError, match="consent"):
        recorded(consent=consent).save(tmp_path / "v.safetensors")
    with pytest.raises(VoiceError, match="codec"):
        house(codec="").save(tmp_path / "v.safetensors")
    assert os.listdir(tmp_path) == []


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_never_loads_as_another_voice(tmp_path: Path, data: st.DataObject) -> None:
    voice = recorded()
    content = bytearray(save(voice, tmp_path / "v.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    (tmp_path / "v.safetensors").write_bytes(content)
    try:
        assert same(Voice.load(tmp_path / "v.safetensors"), voice)  # a space of the header's padding, perhaps
    except VoiceError as exc:
        assert "v.safetensors" in str(exc)


def test_every_single_byte_counts(tmp_path: Path) -> None:
    path = save(house(codes=codes(2)), tmp_path / "v.safetensors")
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip()
    for position in [*range(8 + len(header)), *range(len(content) - 32, len(content))]:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(VoiceError):
            Voice.load(path)


def rewritten(path: Path, tensors: dict | None = None, **changes: str | None) -> Path:
    """The file with other tensors or metadata; None removes an entry. The digest stays what it was."""
    with safetensors.safe_open(path, "numpy") as file:
        metadata = {key: value for key, value in {**file.metadata(), **changes}.items() if value is not None}
        tensors = {"codes": file.get_tensor("codes")} if tensors is None else tensors
    path.write_bytes(safetensors.numpy.save(tensors, metadata))
    return path


@pytest.mark.parametrize(
    "tensors, changes, sentence",
    [
        (None, {}, None),
        (None, {"transcript": "Good bye."}, "digest"),
        (None, {"transcript": None}, "digest"),
        (None, {"consent": ""}, "digest"),
        (None, {"digest": None}, "digest"),
        (None, {"more": "x"}, "digest"),
        (None, {"format": None}, "not a voice file"),
        (None, {"format": "voice"}, "not a voice file"),
        (None, {"version": "2", "octavo": "9.9"}, r"newer octavo \(9.9\)"),
        (None, {"version": None}, "newer"),
        ({}, {}, "tensors"),
        ({"code": codes()}, {}, "tensors"),
        ({"codes": codes(), "pcm": np.zeros(9, np.float32)}, {}, "tensors"),
        ({"codes": codes(seed=1)}, {}, "digest"),
        ({"codes": codes().reshape(100, 4)}, {}, "integers"),
        ({"codes": codes().view(np.uint16)}, {}, "tensors"),
        ({"codes": codes().astype(np.float32)}, {}, "tensors"),
    ],
)
def test_edited_files(tmp_path: Path, tensors: dict | None, changes: dict, sentence: str | None) -> None:
    path = rewritten(save(recorded(), tmp_path / "v.safetensors"), tensors, **changes)
    if sentence is None:
        assert same(Voice.load(path), recorded())
    else:
        with pytest.raises(VoiceError, match=sentence):
            Voice.load(path)


def test_a_forged_digest_does_not_help(tmp_path: Path) -> None:
    from octavo.runtime.voice import _digest

    for bad, fields in [
        (np.full((30, 8), 1024, np.int16), {}),
        (codes(), {"seed": "x"}),
        (codes(), {"seed": "9" * 5000}),
        (codes(), {"consent": ""}),
        (codes(), {"name": None}),
        (codes(10), {}),
    ]:
        with safetensors.safe_open(save(recorded(), tmp_path / "v.safetensors"), "numpy") as file:
            metadata = {k: v for k, v in {**file.metadata(), **fields, "digest": None}.items() if v is not None}
        metadata["digest"] = _digest(bad, metadata).hex()
        (tmp_path / "v.safetensors").write_bytes(safetensors.numpy.save({"codes": bad}, metadata))
        with pytest.raises(VoiceError, match="damaged or was edited"):
            Voice.load(tmp_path / "v.safetensors")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "BOOL", "I64", "U16", "X"])
def test_other_dtypes_in_the_header(tmp_path: Path, dtype: str) -> None:
    path = save(house(), tmp_path / "v.safetensors")
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["codes"]["dtype"] = dtype
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])
    with pytest.raises(VoiceError):
        Voice.load(path)


def test_files_that_are_no_voices(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "song.wav").write_bytes(b"RIFF" + bytes(1000))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(1 << 40)  # a sparse terabyte: must not be read
    safetensors.numpy.save_file({"w": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    for name, sentence in [
        ("empty", "not a voice file"),
        ("song.wav", "not a voice file"),
        ("other.safetensors", "not a voice file"),
        ("model.safetensors", "no voice file: 1099511627776 bytes are too large"),
        ("none.safetensors", "no voice file"),
        (".", "cannot be read|not a voice file"),
        ("a\0b", "not a voice file"),
    ]:
        with pytest.raises(VoiceError, match=sentence):
            Voice.load(os.path.join(tmp_path, name))


# The store


def test_add_list_get_remove(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path / "deep" / "voices")
    assert store.list() == {}
    path = store.add(recorded(name="ada"))
    store.add(house(), name="Bob_2")
    assert path == store.folder / "ada.safetensors" and list(store.list()) == ["Bob_2", "ada"]
    assert same(store.get("ada"), recorded()) and store.get("Bob_2").name == "Bob_2"
    assert store.get("bob_2").name == "Bob_2"
    for use in (store.path_for, lambda name: store.add(house(), name)):
        with pytest.raises(VoiceError, match="already a voice 'ada'"):
            use("ADA")
    assert store.path_for("ADA", replace=True) == path and store.path_for("eve").name == "eve.safetensors"
    store.add(house(seed=8), name="ADA", replace=True)
    assert sorted(os.listdir(store.folder)) == ["Bob_2.safetensors", "ada.safetensors"]
    assert store.get("ada").seed == 8
    store.remove("ADA")
    assert list(store.list()) == ["Bob_2"]
    for use in (store.get, store.remove):
        with pytest.raises(VoiceError, match="no voice 'ada' among the 1"):
            use("ada")


@pytest.mark.parametrize(
    "name", ["a", "Ada-2_x", "小明", "Zoë", unicodedata.normalize("NFD", "Zoë"), "हिन्दी", "x" * 48, "2"]
)
def test_good_names(tmp_path: Path, name: str) -> None:
    store = VoiceStore(tmp_path)
    store.add(house(), name)
    assert same(store.get(name), house(unicodedata.normalize("NFC", name)))
    assert same(store.get(unicodedata.normalize("NFD", name)), store.get(name))


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "a.b",
        "a b",
        "../a",
        "/a",
        "a/b",
        "a\\b",
        "a\0",
        "-a",
        "_a",
        "x" * 49,
        "a\n",
        "C:a",
        "a\ud800",
    ],
)
def test_bad_names(tmp_path: Path, name: str) -> None:
    store = VoiceStore(tmp_path / "voices")
    with pytest.raises(VoiceError, match="cannot name a voice"):
        store.add(house(), name)
    for use in (store.get, store.remove):
        with pytest.raises(VoiceError, match="no voice"):
            use(name)
    assert os.listdir(tmp_path) == []


def test_damaged_files_are_reported_and_do_no_harm(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    store.add(house())
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    (tmp_path / "notes.txt").write_bytes(b"x")
    (tmp_path / ".octavo-1.tmp").write_bytes(b"x")
    (tmp_path / "._ada.safetensors").write_bytes(b"x")  # what a Mac leaves beside a file on a foreign disk
    (tmp_path / "folder.safetensors").mkdir()
    voices = store.list()
    assert list(voices) == ["ada", "broken", "folder"] and isinstance(voices["ada"], Voice)
    assert isinstance(voices["broken"], VoiceError) and isinstance(voices["folder"], VoiceError)
    store.remove("broken")
    assert not (tmp_path / "broken.safetensors").exists()


def test_near_names(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    with pytest.raises(VoiceError, match="octavo voices list"):
        store.get("ada")
    for name in ("Isabella", "isabelle", "bob"):
        store.add(house(), name)
    with pytest.raises(VoiceError, match="Did you mean [Ii]sabell[ae] or [Ii]sabell[ae]?"):
        store.get("isabel")


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(VoiceError, match="OCTAVO_VOICES"):
        VoiceStore(tmp_path / "file").add(house())
    with pytest.raises(VoiceError, match="OCTAVO_VOICES"):
        VoiceStore(tmp_path / "file" / "deeper").add(house())


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OCTAVO_VOICES", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert VoiceStore().folder == tmp_path / "data/octavo/voices"
    monkeypatch.setenv("OCTAVO_VOICES", str(tmp_path / "mine"))
    assert VoiceStore().folder == tmp_path / "mine"
    assert VoiceStore(tmp_path).folder == tmp_path


def test_find_voice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTAVO_VOICES", str(tmp_path / "voices"))
    VoiceStore().add(house(seed=1), "ada")
    assert find_voice("ada").seed == 1
    assert find_voice(Path("ada")).seed == 1
    save(house(seed=2), tmp_path / "file")
    save(house(seed=3), tmp_path / "eve.safetensors")
    assert find_voice("file").seed == 2
    assert find_voice("eve.safetensors").seed == find_voice(tmp_path / "eve.safetensors").seed == 3
    (tmp_path / "bob").mkdir()
    VoiceStore().add(house(seed=4), "bob")
    assert find_voice("bob").seed == 4  # a folder is no voice
    for missing in ("none.safetensors", "voices/none", "./none"):
        with pytest.raises(VoiceError, match="no voice file|no voice"):
            find_voice(missing)
    for name in ("eva", "x" * 5000, "a\0", ""):
        with pytest.raises(VoiceError, match="no voice|not a voice"):
            find_voice(name)
    for name in (3, None, b"ada", ["ada"]):
        with pytest.raises(VoiceError, match=f"not by a value of type {type(name).__name__}"):
            find_voice(name)  # type: ignore[arg-type]
