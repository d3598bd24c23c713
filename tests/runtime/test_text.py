import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.runtime.errors import RequestError
from octavo.runtime.tags import ADDED_TOKENS, STRUCTURAL_TOKENS
from octavo.runtime.text import CONTROL_TAGS, clean, neutralise, row_cap, silence_allowance

# Text that is mostly tokens, halves of tokens and what may hide between them.
fragments = st.lists(
    st.sampled_from([*ADDED_TOKENS, "<|", "|>", "<", ">", "|", "tts", "<|t", "ts|>", "\0", "\ufeff", "\u00ad", " a"])
    | st.text(max_size=3),
    max_size=30,
).map("".join)


def test_there_are_43_tags_and_41_structural_tokens():
    assert len(CONTROL_TAGS) == len(set(CONTROL_TAGS)) == 43
    assert len(STRUCTURAL_TOKENS) == 41
    assert set(CONTROL_TAGS) | STRUCTURAL_TOKENS == set(ADDED_TOKENS)


@pytest.mark.parametrize(
    "text",
    [
        "Hello there.",
        "你好，我是千问。",
        "<|emotion:elation|>Hi <|prosody:pause|> <|sfx:laughter|>Haha!",
        "e\u0301 stays two characters",
        "a <b> c | d < | e |> 1 < 2 > 0",
        "two\nlines  and   spaces\n\nparagraph",
        "🙂",
    ],
)
def test_ordinary_text_stays_as_it_is(text):
    assert clean(text, strict=True) == clean(text)
    assert clean(text).text == text
    assert clean(text).warnings == ()


@pytest.mark.parametrize("text", ["", " \n\t ", "\0", "\ufeff", "\u200b"])
def test_an_empty_text_is_an_error(text):
    with pytest.raises(RequestError, match="is empty"):
        clean(text)


@pytest.mark.parametrize("text", ["<|prosody:pause|>", " <|emotion:anger|> <|style:singing|>\n", "<|tts|> <|audio|>"])
def test_only_tags_are_an_error(text):
    with pytest.raises(RequestError, match="no words"):
        clean(text)


def test_20_000_characters_are_allowed_and_no_more():
    assert len(clean("a" * 20_000).text) == 20_000
    with pytest.raises(RequestError, match="20,001 characters; 20,000"):
        clean("a" * 20_001)


def test_broken_utf8_names_the_byte():
    text = "caf\xe9".encode("latin-1").decode("utf-8", "surrogateescape")
    with pytest.raises(RequestError, match="Character 4 .*0xE9 is not UTF-8"):
        clean(text)
    with pytest.raises(RequestError, match="half a surrogate pair"):
        clean("\ud83d")


def test_white_space_and_control_characters():
    assert clean("\ufeff a\tb\r\nc\rd\0e\x1bf\x85g\u2028h\u2029i\x7fj so\u00adft\n").text == (
        "a b\nc\nde f\ng\nh\n\ni j soft"
    )


@pytest.mark.parametrize("token", sorted(STRUCTURAL_TOKENS))
def test_a_structural_token_is_removed_with_a_warning(token):
    cleaned = clean(f"Say {token}this.", strict=True)
    assert cleaned.text == "Say this."
    assert len(cleaned.warnings) == 1 and token in cleaned.warnings[0]


@pytest.mark.parametrize(
    "text",
    [
        "<|t<|tts|>ts|>",
        "<|au<|au<|audio|>dio|>dio|>",
        "<tool_<|text|>call>",
        "<|t\0ts|>",
        "<|t\ufeffts|>",
        "<|t\u00adts|>",
    ],
)
def test_a_token_that_forms_by_removal_is_removed(text):
    assert clean(f"x{text}y").text == "xy"


@given(fragments)
def test_nothing_structural_is_left(text):
    cleaned, removed = neutralise(text)
    assert not any(token in cleaned for token in STRUCTURAL_TOKENS)
    if removed:
        assert len(cleaned) < len(text)
    assert neutralise(cleaned) == (cleaned, ())


@pytest.mark.parametrize(
    "unknown, nearest",
    [
        ("<|emotion:hapiness|>", None),
        ("<|emotion:eleation|>", "<|emotion:elation|>"),
        ("<|Emotion:Elation|>", "<|emotion:elation|>"),
        ("<|style:whisper|>", "<|style:whispering|>"),
        ("<|laughter|>", "<|sfx:laughter|>"),
        ("<|prosody:speed slow|>", "<|prosody:speed_slow|>"),
        ("<|pause|>", "<|prosody:pause|>"),
    ],
)
def test_an_unknown_tag_is_text_with_a_warning(unknown, nearest):
    cleaned = clean(f"{unknown}Hello.")
    assert cleaned.text == f"{unknown}Hello."
    assert len(cleaned.warnings) == 1
    assert unknown in cleaned.warnings[0] and "spoken as text" in cleaned.warnings[0]
    if nearest:
        assert nearest in cleaned.warnings[0]
    with pytest.raises(RequestError, match="no tag that the model knows"):
        clean(f"{unknown}Hello.", strict=True)


def test_many_unknown_tags_are_a_short_list():
    cleaned = clean(" ".join(f"<|tag{n}|>" for n in range(1500)))
    assert len(cleaned.warnings) == 9
    assert cleaned.warnings[-1].startswith("1492 more")


# --- how much sound a text may become


def test_row_cap_scales_with_length():
    """25 rows a second at 8 characters a second, 5 s and 7 rows on top: 80 letters are 10 s."""
    assert row_cap("a" * 80) == 25 * 15 + 7
    assert row_cap("a" * 160) == 25 * 25 + 7
    assert row_cap("a   \n b") == row_cap("a b")


@pytest.mark.parametrize(
    "text, characters",
    [("你好", 6), ("한국", 6), ("かな", 6), ("，。", 2), ("12", 8), ("€%", 8), ("NATO", 12), ("مرحبا", 10), ("नम", 4)],
)
def test_row_cap_weighs_characters_by_how_long_they_are_spoken(text, characters):
    assert row_cap(text * 40) == row_cap("a" * 40 * characters)


def test_row_cap_of_tags():
    plain = row_cap("a" * 80)
    assert row_cap("<|prosody:speed_very_slow|>" + "a" * 80) == 25 * 5 + 7 + 385  # ceil(250 / 0.65)
    assert row_cap("<|prosody:speed_slow|>" + "a" * 80) == 25 * 5 + 7 + 295  # ceil(250 / 0.85)
    assert row_cap("<|prosody:speed_very_fast|>" + "a" * 80) == plain
    assert row_cap("<|prosody:speed_slow|><|prosody:speed_very_slow|>" + "a" * 80) == 25 * 5 + 7 + 385
    assert row_cap("<|prosody:pause|><|prosody:long_pause|>" + "a" * 80) == plain + 75
    assert row_cap("<|sfx:cough|>" + "a" * 80) == plain + 50
    assert row_cap("<|emotion:fear|>" + "a" * 80) == plain
    assert row_cap("<|emotion:feer|>" + "a" * 80) > plain  # spoken as text


def test_row_cap_leaves_room_for_slow_readers():
    """A weather report read by a slow narrator (11 characters a second) needs far less than its cap."""
    text = "Tomorrow will be cloudy with some rain in the north, and mostly dry in the south. " * 3
    assert row_cap(text) > 1.3 * 25 * len(text) / 11


def test_silence_allowance():
    assert silence_allowance("Hello.") == 3.0
    assert silence_allowance("A <|prosody:pause|> b <|prosody:long_pause|> c") == pytest.approx(6.2)


@pytest.mark.parametrize(
    "junk",
    [
        "<|t" * 4000 + "ts|>" * 2000,
        ("<|t" * 2857 + "ts|>" * 2857)[:20_000],
        "<|" * 10_000,
        "|>" * 10_000,
        ">" * 20_000,
        "<|x|>" * 4000,
        " ".join(f"<|{n}|>" for n in range(2000)),
        "a" + "\n " * 9999,
        "<|" + "x" * 19_998,
        "\u0301" * 20_000,
    ],
    ids=range(10),
)
def test_cleaning_is_linear(junk):
    best = min(
        seconds(lambda: (clean(junk + ("" if len(junk) > 19_990 else " word")), row_cap(junk))) for _ in range(3)
    )
    assert best < 0.2


def seconds(work):
    start = time.thread_time()
    try:
        work()
    except RequestError:
        pass
    return time.thread_time() - start
