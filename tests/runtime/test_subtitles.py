import re
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from octavo.runtime.subtitles import to_srt, to_vtt


@dataclass(frozen=True)
class Segment:
    text: str
    start_frame: int
    end_frame: int


TWO = [
    Segment("<|emotion:awe|>Hello <|prosody:pause|> there.", 0, 31),
    Segment("<|style:singing|>Tom & Jerry:\n\na < b --> c", 31, 90_031),
]


def test_srt():
    assert to_srt(TWO) == (
        "1\n00:00:00,000 --> 00:00:01,240\nHello there.\n\n2\n00:00:01,240 --> 01:00:01,240\nTom & Jerry: a < b → c\n"
    )


def test_vtt():
    assert to_vtt(TWO) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:01.240\nHello there.\n"
        "\n"
        "00:00:01.240 --> 01:00:01.240\nTom &amp; Jerry: a &lt; b --&gt; c\n"
    )


def test_segments_without_text_or_length_are_skipped():
    segments = [Segment("<|prosody:pause|> ", 0, 5), Segment("No frames.", 5, 5), Segment("Shown.", 5, 9)]
    assert to_srt(segments) == "1\n00:00:00,200 --> 00:00:00,360\nShown.\n"
    assert to_vtt(segments) == "WEBVTT\n\n00:00:00.200 --> 00:00:00.360\nShown.\n"
    assert to_srt([]) == ""
    assert to_vtt([]) == "WEBVTT\n"


def test_another_frame_rate_rounds_to_the_millisecond():
    assert "00:00:00,040 --> 00:00:00,080" in to_srt([Segment("a", 3, 6)], frame_rate=75)
    assert "00:00:00,013" in to_srt([Segment("a", 1, 6)], frame_rate=75)


@given(st.integers(0, 10_000_000), st.integers(1, 5000))
def test_times_are_exact_to_the_frame(start, length):
    segments = [Segment("a", start, start + length)]
    for text in (to_srt(segments), to_vtt(segments).replace(".", ",")):
        times = re.findall(r"(\d\d+):([0-5]\d):([0-5]\d),(\d\d\d)", text)
        milliseconds = [((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms) for h, m, s, ms in times]
        assert milliseconds == [40 * start, 40 * (start + length)]


@given(st.lists(st.text(max_size=30), max_size=5))
def test_no_text_breaks_the_form(texts):
    segments = [Segment(text, 10 * n, 10 * n + 10) for n, text in enumerate(texts)]
    shown = [text for text in texts if text.split()]
    cues = to_srt(segments).split("\n\n") if shown else []
    assert [cue.split("\n")[0] for cue in cues] == [str(n) for n in range(1, len(shown) + 1)]
    assert all(cue.count("-->") == 1 and cue.strip("\n").count("\n") == 2 for cue in cues)
    vtt = to_vtt(segments)
    assert vtt.count("-->") == len(shown)
    assert vtt.count("\n\n") == len(shown)
