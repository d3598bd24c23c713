"""The sentences that come with octavo, and those of a user's file."""

from __future__ import annotations

import unicodedata

import pytest

from octavo.quant import texts
from octavo.runtime import RequestError, text
from octavo.runtime.tags import ANY_TAG


def test_they_can_be_spoken_as_they_are_and_none_is_in_both():
    everything = (*texts.CALIBRATION, *texts.GATE)
    assert len(set(everything)) == len(everything) and len(texts.CALIBRATION) >= 64 and len(texts.GATE) >= 24
    for sentence in everything:
        assert text.clean(sentence, strict=True) == text.CleanText(sentence)
    for part in (texts.CALIBRATION, texts.GATE):
        whole = "".join(part)
        assert len(ANY_TAG.findall(whole)) >= 5 and any(character.isdigit() for character in whole)
        scripts = {unicodedata.name(character).split()[0] for character in whole if character.isalpha()}
        assert scripts >= {"LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI", "CJK", "HIRAGANA", "HANGUL"}


def test_a_file_holds_one_sentence_a_line(tmp_path):
    file = tmp_path / "calib.txt"
    file.write_bytes("\ufeffOne.\r\n\r\n  Zwei, drei!  \n".encode())
    assert texts.read(file) == ["One.", "Zwei, drei!"]


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "holds 0 sentences"),
        (b"\n \n", "holds 0 sentences"),
        (b"Fine.\n\xff\xfe\n", "not UTF-8"),
        (b"Fine.\n<|prosody:pause|>\n", "Line 2 of .* cannot be spoken"),
        (b"x" * 30_000, "Line 1"),
        (b"a\n" * 5000, "holds 5000 sentences"),
        (b"a" * (17 << 20), "more than 17 MB"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_file_gets_a_sentence(tmp_path, content, sentence):
    file = tmp_path / "calib.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RequestError, match=sentence):
        texts.read(file)


def test_a_file_without_an_end_is_refused():
    with pytest.raises(RequestError, match="more than 17 MB"):
        texts.read("/dev/zero")
