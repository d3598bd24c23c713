"""Where a text may be cut: at ends of sentences in any script, at clauses, at spaces, between graphemes.

Each function gives positions in ascending order, never inside a tag, and looks at every character a bounded number of
times. A position stands behind what ends there; white space may follow it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from .tags import ANY_TAG

# Marks that end a sentence whatever follows (Unicode's Sentence_Terminal, as far as people write it today): Chinese
# and Japanese, Devanagari, Arabic and Urdu, Syriac, Armenian, Hebrew, Ethiopic, Burmese, Khmer, Tibetan, Thai,
# Mongolian, N'Ko, Ol Chiki, Meetei, Sinhala, Javanese, Balinese, Vai, Lisu, Bamum, Greek (its own question mark).
_STOPS = "。！？｡‼⁇⁈⁉।॥؟۔܀܁܂։׃።፧፨။។៕།༎๚๛᠃᠉߹᱾᱿꯫෴꧈꧉᭚᭛꘎꘏꓿꛳꛷\u037e"
# Marks that end a sentence only before white space, a tag or a wide character, and not behind an abbreviation.
_POINTS = ".!?…‽．"
# What belongs to the sentence behind its mark. Some opening quotes close in other languages („…“, »…«), but not
# before a letter (。“…).
_CLOSER = r"""(?:["'”’»›)\]}）］｝】」』〉》〕〗〟*_]|[“‘«‹](?!\w))"""

_END = re.compile(
    rf"(?P<tag>{ANY_TAG.pattern})"
    r"|(?P<blank>\n[^\S\n]*\n\s*)"
    rf"|(?P<mark>[{re.escape(_POINTS + _STOPS)}]+|(?<=[\u0370-\u03ff\u1f00-\u1fff]);(?=\s))"  # a Greek ; asks
    rf"(?P<closer>(?:{_CLOSER}|[ \u00a0\u202f][»›](?!\w))*)"
)
_CLAUSE = re.compile(rf"(?P<tag>{ANY_TAG.pattern})|[,;:·]{_CLOSER}*(?=\s)|[、，；،؛၊፣፤፥᠂]|：(?!\d)|[–—-](?=\s)|—|\n")
_SPACE = re.compile(rf"(?P<tag>{ANY_TAG.pattern})|[\s\u200b]+")
_WORD_BEFORE = re.compile(r"(?<![\w=/?!&%#@+])(?:[^\W_]|['’\u0300-\u036f])+(?:\.[^\W_]+)*$")  # with its inner points
_LONGEST_WORD = 24  # none of the abbreviations is longer
_OPENING = re.compile(rf"\s*(?:{ANY_TAG.pattern}\s*){{0,9}}[\"'“‘«‹”’»›(\[{{（「『¿¡„–—*_-]*")

# A point behind these ends no sentence: titles, and words that introduce what follows.
_INTRODUCING = frozenset(
    "dr mr mrs ms mx messrs prof st sen gov gen col maj capt cmdr lt sgt rev fr hr sr sra srta dña mme mlle mgr "
    "dipl ing dott sig ph vs cf ca approx esp viz al bzw vgl sog evtl ggf inkl exkl z.b z.t d.h u.a v.a i.d.r e.g i.e "
    "p.ej av avda apdo blvd mt ft напр др ул стр см им т.е".split()
)
# Behind these it does if a capital follows: they stand at the end of a sentence as well.
_CLOSING = frozenset(
    "etc usw ff inc ltd corp co bros jr ph.d m.d b.a m.a b.sc m.sc a.m p.m ecc u.ä o.ä т.д т.п".split()
)
# Behind these it does unless a number follows.
_COUNTING = frozenset(
    "no nr nos num núm nº art abs fig figs vol ch chap sec sect pp kap bd op pag pág cap eq tab anm ver "
    "jan feb mar apr jun jul aug sep sept oct okt nov dec dez".split()
)


def sentence_ends(text: str) -> tuple[list[int], list[int]]:
    """(where sentences end, where a point probably ends none): the latter will do as the end of a clause.

    Decimals, versions, addresses, times, abbreviations, initials, ordinals and quoted questions that run on are
    respected. A blank line always ends a sentence.
    """
    ends: list[int] = []
    doubtful: list[int] = []
    for found in _END.finditer(text):
        if found["blank"]:
            ends.append(found.start())
        elif found["mark"] and (found["mark"] == ";" or not _STOP_IN.isdisjoint(found["mark"])):
            ends.append(found.end())
        elif found["mark"] and _stands_free(text, found.end()):
            (ends if _point_ends(text, found) else doubtful).append(found.end())
    return ends, doubtful


_STOP_IN = frozenset(_STOPS)


def _stands_free(text: str, at: int) -> bool:
    """False inside 3.14, v2.0.1, example.com, a?b=c."""
    following = text[at : at + 1]
    if not following or following.isspace() or ANY_TAG.match(text, at):
        return True
    return is_wide(following) and not following.isdecimal()


def _point_ends(text: str, found: re.Match[str]) -> bool:
    mark, at = found["mark"], found.end()
    opening = _OPENING.match(text, at)
    following = text[opening.end() : opening.end() + 1] if opening else ""
    if found["closer"] and following.islower():
        return False  # "Really?" she asked.
    if "!" in mark or "?" in mark or "‽" in mark:
        return True
    if len(mark) > 1 or mark == "…":
        return not following.islower()  # Well ... maybe.
    before = _WORD_BEFORE.search(text, max(0, found.start() - _LONGEST_WORD), found.start())
    word = before[0].lower() if before else ""
    if word in _CLOSING:
        return not (following.islower() or following.isdecimal())
    if word in _COUNTING or word.endswith("str"):  # Bahnhofstr. 5
        return not following.isdecimal()
    if word in _INTRODUCING or (word.isdecimal() and len(word) <= 2):
        return False  # with numbers: am 3. Oktober, 1. First
    return not all(len(part) == 1 and part.upper() != part for part in word.split("."))  # J. R. R., z. B., U.S.


def clause_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Behind commas, semicolons, colons and dashes of any script, and at line ends, within [start, end)."""
    return (found.end() for found in _CLAUSE.finditer(text, start, end) if not found["tag"])


def word_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Behind white space and zero-width spaces within [start, end)."""
    return (found.end() for found in _SPACE.finditer(text, start, end) if not found["tag"])


def grapheme_ends(text: str, start: int, end: int) -> Iterator[int]:
    """Behind every tag and every grapheme within [start, end): the last resort, for text without any boundary."""
    at, flags = start, 0
    while at < end:
        if found := ANY_TAG.match(text, at, end):
            at = found.end()
        else:
            flags = flags + 1 if text[at] in _FLAG_LETTERS else 0
            at += 1
        if at < end and not (_joins(text[at - 1], text[at]) or (flags % 2 and text[at] in _FLAG_LETTERS)):
            yield at


_FLAG_LETTERS = frozenset(map(chr, range(0x1F1E6, 0x1F200)))  # two of them are one flag
_JOINERS = frozenset("\u200c\u200d") | frozenset(map(chr, range(0x1F3FB, 0x1F400)))  # and skin colours
_VOWELS_BEFORE = frozenset("เแโใไເແໂໃໄ")  # Thai and Lao: written before their consonant
_VOWELS_BEHIND = frozenset("ะาำๅະາຳ")


def _joins(before: str, after: str) -> bool:
    """Whether a cut between the two would break a grapheme (or an Indic conjunct, or a Thai syllable)."""
    if before < "\u0300" and after < "\u0300":
        return False
    if after in _JOINERS or after in _VOWELS_BEHIND or unicodedata.category(after)[0] == "M":
        return True
    if before == "\u200d" or before in _VOWELS_BEFORE or unicodedata.combining(before) == 9:  # 9: virama
        return not after.isspace()
    if "\u1100" <= after <= "\u115f":  # a leading consonant: opens a syllable, unless it doubles another
        return "\u1100" <= before <= "\u115f"
    return "\u1160" <= after <= "\u11ff" and ("\u1100" <= before <= "\u11ff" or "\uac00" <= before <= "\ud7a3")


def is_wide(character: str) -> bool:
    """Chinese, kana, hangul and their punctuation, by Unicode's East Asian Width."""
    return unicodedata.east_asian_width(character) in "WF"
