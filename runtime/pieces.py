"""A long text as pieces of some 200 characters, cut where a reader would breathe.

The text falls into sentences; a sentence that is too long falls into clauses, a clause into words, a word into
graphemes. Then neighbours are packed together again.

Lengths count what is spoken: control tags nothing, wide characters (Chinese, kana, hangul) two, so that a piece lasts
about as long in every script: 200 are 13 to 25 seconds.
"""

from __future__ import annotations

import heapq
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from .sentences import clause_ends, grapheme_ends, is_wide, sentence_ends, word_ends
from .tags import CARRIED_SLOT, CONTROL_TAG, without_tags

Span = tuple[int, int]
Length = Callable[[Span], int]

_OPENING_TAGS = re.compile(rf"(?:(?:{CONTROL_TAG.pattern})\s*)*")
_OPENING_EMOTIONS = re.compile(r"(?:<\|emotion:[a-z]+\|>\s*)*")


@dataclass(frozen=True)
class Piece:
    """`text` is what to speak: characters [start, end) of the cleaned text, with the tags that are still in force.

    Spans do not count the carried tags. They are in order, do not overlap, begin and end with something other than
    white space, and leave nothing but white space between them.
    """

    text: str
    start: int
    end: int


def split(text: str, target: int = 200, limit: int = 300) -> list[Piece]:
    """Cuts clean text into pieces of about `target` and at most `limit`, at the ends of sentences where there are any.

    A text within `limit` stays one piece; a single grapheme or tag beyond it is left whole. Style, speed, pitch and
    expressive tags hold until another of their kind: later pieces open with them, behind emotion tags of their own
    (the order the model knows). Emotions, pauses and sounds are not repeated.
    """
    lengths = list(accumulate(_lengths(text), initial=0))

    def length(span: Span) -> int:
        return lengths[span[1]] - lengths[span[0]]

    spans = list(_between(text, 0, len(text), []))
    if spans and length(spans[0]) > limit:
        spans = _pack(text, _with_their_tags(text, _units(text, length, limit)), length, target, limit)
    return list(_carry(text, spans))


def _lengths(text: str) -> Iterator[int]:
    end = 0
    for found in CONTROL_TAG.finditer(text):
        yield from (1 + is_wide(character) for character in text[end : found.start()])
        yield from [0] * len(found[0])
        end = found.end()
    yield from (1 + is_wide(character) for character in text[end:])


def _between(text: str, start: int, end: int, cuts: Iterable[int]) -> Iterator[Span]:
    """The parts of [start, end) between ascending cuts, without the white space around them; blank ones drop out."""
    for cut in (*cuts, end):
        part = text[start:cut]
        if visible := part.strip():
            first = start + part.index(visible[0])
            yield first, first + len(visible)
        start = cut


def _units(text: str, length: Length, limit: int) -> Iterator[Span]:
    """The largest units that fit `limit`: sentences, else clauses, else words, else graphemes."""
    ends, doubtful = sentence_ends(text)

    def clauses(text: str, start: int, end: int) -> Iterator[int]:
        within = doubtful[bisect_left(doubtful, start) : bisect_left(doubtful, end)]
        return heapq.merge(within, clause_ends(text, start, end))

    def fit(span: Span, *finer: Callable[[str, int, int], Iterator[int]]) -> Iterator[Span]:
        if length(span) <= limit or not finer:
            yield span
        else:
            for part in _between(text, *span, finer[0](text, *span)):
                yield from fit(part, *finer[1:])

    for sentence in _between(text, 0, len(text), ends):
        yield from fit(sentence, clauses, word_ends, grapheme_ends)


def _with_their_tags(text: str, units: Iterable[Span]) -> list[Span]:
    """Units with something to say: those of nothing but tags open the next one, or close the last."""
    kept: list[Span] = []
    waiting: int | None = None
    end = 0
    for start, end in units:
        waiting = start if waiting is None else waiting
        if without_tags(text[start:end]).strip():
            kept.append((waiting, end))
            waiting = None
    if waiting is not None and kept:
        kept[-1] = (kept[-1][0], end)
    return kept


def _pack(text: str, units: list[Span], length: Length, target: int, limit: int) -> list[Span]:
    """Joins neighbours while that brings a piece nearer to `target`; a unit without a letter or digit joins anyway."""
    packed: list[Span] = []
    speaks = False  # whether packed[-1] has a letter or digit
    for last, unit in enumerate(units, 1 - len(units)):
        unit_speaks = any(map(str.isalnum, without_tags(text[slice(*unit)])))
        if packed:
            joined = (packed[-1][0], unit[1])
            nearer = length(joined) - target <= target - length(packed[-1])
            short_rest = last == 0 and length(unit) < target / 2
            if length(joined) <= limit and (nearer or short_rest or not (speaks and unit_speaks)):
                packed[-1], speaks = joined, speaks or unit_speaks
                continue
        packed.append(unit)
        speaks = unit_speaks
    return packed


def _carry(text: str, spans: Iterable[Span]) -> Iterator[Piece]:
    force: dict[str, str] = {}
    for start, end in spans:
        yield Piece(carry(text[start:end], force), start, end)


def carry(body: str, force: dict[str, str]) -> str:
    """`body` opened by the tags that are in force, but for those it replaces itself; its own are in force afterwards.

    force: tags by their slot (style, speed, ...), in the order the user first wrote them; changed in place.
    """
    own = {CARRIED_SLOT.get(found) for found in CONTROL_TAG.findall(_opening(_OPENING_TAGS, body))}
    carried = "".join(found for slot, found in force.items() if slot not in own)
    emotions = _opening(_OPENING_EMOTIONS, body)
    for found in CONTROL_TAG.findall(body):
        if slot := CARRIED_SLOT.get(found):
            force[slot] = found
    return emotions + carried + body[len(emotions) :]


def _opening(pattern: re.Pattern[str], body: str) -> str:
    found = pattern.match(body)
    return found[0] if found else ""
