import re
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.runtime.sentences import sentence_ends
from octavo.runtime.tags import ANY_TAG, CONTROL_TAGS, without_tags
from octavo.runtime.text import Piece, split


def sentences(text):
    """Every sentence of a short text, without the white space around it."""
    cuts = [0, *sentence_ends(text)[0], len(text)]
    parts = (text[a:b].strip() for a, b in zip(cuts, cuts[1:], strict=False))
    return [part for part in parts if part]


def spoken_length(text):
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in without_tags(text).strip())


# --- where sentences end: "|" marks the ends that are wanted


@pytest.mark.parametrize(
    "marked",
    [
        "Hello there.| How are you?| Fine!| Good.",
        "no capitals here.| does it split?| it does.",
        "你好！|你好吗？|我很好。|“是的。”|他说。",
        "「行こう。」|と彼は言った。|３．１４です。",
        "안녕하세요.| 잘 지내세요?| 네.",
        "مرحبا.| كيف حالك؟| أنا بخير.",
        "یہ اچھا ہے۔| شکریہ۔",
        "यह अच्छा है।| वह गया॥| ठीक।",
        "Բարեւ։| Ինչպես ես։",
        "ሰላም።| እንዴት ነህ፧| ደህና።",
        "မင်္ဂလာပါ။| နေကောင်းလား။",
        "សួស្តី។| អរគុណ៕",
        "Τι κάνεις;| Καλά.| Κι εσύ;",
        "Он ушёл.| А. С. Пушкин родился в г. Москва.",
        # abbreviations, initials, titles
        "Dr. Smith met Mrs. Jones and J. R. R. Tolkien.| They talked.",
        "See e.g. this, i.e. that, cf. Smith et al. Smith agreed.| Yes.",
        "Das ist z. B. gut, d.h. besser, bzw. Beste Wahl usw.| Er kam am 3. Oktober.",
        "Apples, pears, etc. are fruit.| Apples, etc.| Pears too.",
        "He works at Foo Inc. in town.| She works at Foo Inc.| They like it.",
        "No. 5 is alive.| No.| I won't.| Don't.| Vol. 2 came out.",
        "We met at 5 p.m. in the hall.| It ended at 9 p.m.| Then we left.",
        # numbers, versions, times, addresses
        "Pi is 3.14, or 1.000,5 or 3. 5 of them.",
        "Use v2.0.1.| Then example.com.| Or https://a.example/x?y=1!z.| At 10.30 or 5:30.",
        "It was 1999.| Then 2000 came.",
        # ellipses, quotes, brackets
        "Well... maybe.| Well…| Maybe.| Wait...| What?!| No.",
        "“Really?” she asked.| ‘Yes.’| (It was so.)| Good.",
        '"Stop!" he said.| "Go!"| He went.',
        "« Bonjour ! » dit-il.| « Ça va ? »| Oui.",
        "Er sagte: „Ja.“| Dann ging er.| »Gut.«| Ende.",
        "¿Qué tal?| ¡Bien!| Vale.",
        # tags and lines
        "Hello.|<|sfx:laughter|>Haha!| <|emotion:fear|>Oh no.",
        "A tag <|not. a. tag? really|> stays.| Yes.",
        "A heading|\n\nA line\nthat goes on.|\n \nEnd",
        "Great!| 😀 Fine.",
    ],
)
def test_sentences_end_here(marked):
    parts = re.split(r"(?<!<)\|(?!>)", marked)
    assert sentences("".join(parts)) == [part.strip() for part in parts]


# --- pieces

ONE = "word " * 38 + "end. "  # a piece of its own


def story(sentence, count):
    return " ".join(f"{sentence} {n}." for n in range(100, 100 + count))


def test_a_short_text_stays_one_piece():
    assert split("Hello.\n\nHow are you?") == [Piece("Hello.\n\nHow are you?", 0, 20)]
    assert len(split("A sentence. " * 25)) == 1  # 299 characters
    assert split("  Hi.  ") == [Piece("Hi.", 2, 5)]
    assert split("") == []


def test_pieces_are_whole_sentences_of_about_the_target():
    text = story("This is sentence number", 60)
    pieces = split(text)
    for piece in pieces:
        assert re.fullmatch(r"(This is sentence number \d+\. ?)+", piece.text + " ")
        assert piece.text == text[piece.start : piece.end]
    assert all(180 <= len(piece.text) <= 220 for piece in pieces[:-1])
    assert 100 <= len(pieces[-1].text) <= 300


def test_a_short_rest_joins_the_last_piece():
    sentence = "x" * 98 + "."
    text = " ".join([sentence] * 4 + ["End."])
    assert [len(piece.text) for piece in split(text)] == [199, 204]


def test_chinese_pieces_last_as_long_as_english_ones():
    pieces = split("今天天气很好，我们去公园散步吧。" * 40)
    assert all(piece.text.endswith("。") for piece in pieces)
    assert all(90 <= len(piece.text) <= 110 for piece in pieces[:-1])


def test_a_long_sentence_falls_apart_at_clauses_then_words_then_graphemes():
    clauses = ", ".join(["this clause goes on for quite some time"] * 12) + "."
    assert all(piece.text[-1] in ",." for piece in split(clauses))
    words = " ".join(["word"] * 200)
    assert all(re.fullmatch(r"word( word)*", piece.text) for piece in split(words))
    assert "".join(piece.text for piece in split("x" * 1000)) == "x" * 1000
    thai = " ".join(["สวัสดีครับ"] * 60)
    assert all(piece.text.startswith("ส") and piece.text.endswith("บ") for piece in split(thai))


def test_a_doubtful_point_is_a_better_end_than_a_word():
    text = " ".join(f"{word} score is {n}." for n, word in zip(range(10, 50), ["Your", "My"] * 20, strict=True))
    assert all(piece.text.endswith(".") for piece in split(text))


def test_a_doubtful_point_of_another_sentence_is_no_matter():
    clauses = ", ".join(["this clause goes on for quite some time"] * 12)
    text = f"Mr. {ONE}Then {clauses}. Mr. Jones came."
    pieces = split(text)
    assert " ".join(piece.text for piece in pieces) == text
    assert pieces[1].text.startswith("Then this clause")


def test_marks_alone_are_no_piece():
    sentence = "word " * 47 + "end."  # joining would not bring it nearer to the target
    pieces = split(f"{sentence}\n\n* * *\n\n{sentence}")
    assert [piece.text for piece in pieces] == [f"{sentence}\n\n* * *", sentence]


@pytest.mark.parametrize(
    "grapheme",
    [
        "e\u0301\u0323",
        "👩\u200d👩\u200d👧",
        "👍🏽",
        "क्षि",
        "\u1112\u1161\u11ab",
        "เก",
        "กำ",
        "❤\ufe0f",
        "🇩🇪",
        "<|style:singing|>x",
    ],
)
def test_a_hard_cut_breaks_no_grapheme(grapheme):
    for before in ("", "x", "xy"):  # a cut after 200 characters falls on another place in it
        pieces = split(before + grapheme * 400)
        assert len(pieces) > 1
        parts = [piece.text.removeprefix(before) for piece in pieces]
        assert all(len(part) % len(grapheme) == 0 and part.startswith(grapheme) for part in parts)


def test_white_space_between_pieces_belongs_to_none():
    text = ("word " * 50).strip() + "." + " \n\n  " + ("other " * 40).strip() + "."
    first, second = split(text)
    assert text[first.end : second.start] == " \n\n  "


# --- tags of a long text

LONG = "This is a sentence of some sixty characters, more or less so. " * 4


def test_style_speed_pitch_and_expressive_tags_are_carried_on():
    tags = "<|style:whispering|><|prosody:speed_slow|><|prosody:pitch_low|><|prosody:expressive_high|>"
    pieces = split(tags + LONG * 3)
    assert len(pieces) >= 3
    assert all(piece.text.startswith(tags) and piece.text.count("<|") == 4 for piece in pieces)
    assert (pieces[1].text, pieces[1].start) == (tags + LONG[: pieces[1].end - pieces[1].start], pieces[0].end + 1)


def test_a_later_tag_of_the_same_kind_replaces_the_earlier_one():
    tags = ["<|style:whispering|><|prosody:speed_slow|>", "<|style:singing|>", "", "<|prosody:speed_fast|>", ""]
    pieces = split("".join(tag + ONE for tag in tags))
    assert [piece.text.removesuffix(ONE.strip()) for piece in pieces] == [
        "<|style:whispering|><|prosody:speed_slow|>",
        "<|prosody:speed_slow|><|style:singing|>",
        "<|style:singing|><|prosody:speed_slow|>",
        "<|style:singing|><|prosody:speed_fast|>",
        "<|style:singing|><|prosody:speed_fast|>",
    ]


def test_a_tag_in_the_middle_of_a_piece_is_in_force_from_there():
    pieces = split(f"This is plain. <|style:singing|>{ONE}{ONE}")
    assert [piece.text for piece in pieces] == [
        f"This is plain. <|style:singing|>{ONE.strip()}",
        f"<|style:singing|>{ONE.strip()}",
    ]


def test_emotions_pauses_and_sounds_are_not_carried_on():
    pieces = split(f"<|emotion:fear|><|sfx:sigh|>Uh <|prosody:pause|>{LONG}{LONG}")
    assert "<|" in pieces[0].text
    assert all("<|" not in piece.text for piece in pieces[1:])


def test_carried_tags_stand_behind_an_emotion():
    _, piece = split(f"<|style:shouting|>{ONE}<|emotion:anger|> {ONE}")
    assert piece.text == f"<|emotion:anger|> <|style:shouting|>{ONE.strip()}"


def test_tags_stay_with_the_sentence_they_open():
    text = "".join(f"<|emotion:awe|> <|prosody:speed_fast|>This is sentence number {n}. " for n in range(100, 150))
    text += "<|prosody:pause|>"
    pieces = split(text)
    assert all(re.match(r"<\|emotion:awe\|> (<\|prosody:speed_fast\|>)+This", piece.text) for piece in pieces)
    assert pieces[-1].text.endswith("149. <|prosody:pause|>")


def test_a_tag_on_a_line_of_its_own_opens_the_next_sentence():
    pieces = split(f"{ONE}\n\n<|emotion:awe|>\n\n{ONE}")
    assert [piece.text for piece in pieces] == [ONE.strip(), f"<|emotion:awe|>\n\n{ONE.strip()}"]


# --- any text at all

texts = st.lists(
    st.sampled_from([*CONTROL_TAGS, "<|unknown: tag. x|>", "<|", "|>"])
    | st.sampled_from(["word", " ", ". ", "! ", "\n\n", ", ", "。", "你好", "e.g. ", "é", "e\u0301", "🇩🇪", "\u200b"])
    | st.text(max_size=12)
    | st.integers(1, 60).map("x".__mul__),
    min_size=20,
    max_size=80,
).map("".join)


@settings(deadline=None, max_examples=200)
@given(texts, st.integers(100, 140))  # wide enough for any tag
def test_pieces_cover_the_text_and_respect_the_limit(text, target):
    limit = target * 3 // 2
    pieces = split(text, target, limit)
    end = 0
    for piece in pieces:
        span = text[piece.start : piece.end]
        assert not text[end : piece.start].strip()
        assert span == span.strip() != ""
        assert re.sub(r"<\|(style|prosody):\w+\|>", "", piece.text) == re.sub(r"<\|(style|prosody):\w+\|>", "", span)
        assert spoken_length(span) <= limit
        end = piece.end
    assert not text[end:].strip()
    for tag in ANY_TAG.finditer(text):
        assert any(piece.start <= tag.start() and tag.end() <= piece.end for piece in pieces)
    if without_tags(text).strip():
        assert all(without_tags(piece.text).strip() for piece in pieces)


@given(st.lists(st.sampled_from("ab. ,\n"), max_size=400).map("".join))
def test_the_limit_holds_for_plain_text(text):
    assert all(piece.end - piece.start <= 30 for piece in split(text, 20, 30))


@pytest.mark.parametrize(
    "junk",
    [
        "." * 20_000,
        ". " * 10_000,
        "a. " * 6667,
        '."' * 10_000,
        " \n" * 10_000 + "a",
        "a" + "\u0301" * 19_999,
        "\u200d" * 20_000,
        "🇩🇪" * 10_000,
        "x" * 20_000,
        "你" * 20_000,
        ", " * 10_000,
        "<|" * 10_000,
        "<|prosody:pause|>" * 1176,
        ". <|prosody:pause|>" * 1052,
        "<|style:singing|>a. " * 1000,
        "<|x|>" * 4000,
        ". (" * 6666,
        " »" * 10_000,
        "a.b." * 5000,
        "เ" * 20_000,
        "Mr. " * 5000,
    ],
    ids=range(21),
)
def test_splitting_is_linear(junk):
    def seconds():
        start = time.thread_time()
        split(junk)
        return time.thread_time() - start

    assert min(seconds() for _ in range(3)) < 0.2
