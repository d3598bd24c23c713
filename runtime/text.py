"""User text before it is spoken: cleaned, and judged for how much sound it may become.

`split` cuts a long text into pieces (pieces.py); the tags themselves are in tags.py. Both are offered here too, so
that a caller needs one module.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from dataclasses import dataclass

from .errors import RequestError
from .pieces import Piece, split
from .tags import ANY_TAG, CONTROL_TAGS, PAUSES, SLOWER, SOUNDS, STRUCTURAL_TOKENS, without_tags

__all__ = [
    "CONTROL_TAGS",
    "MAX_CHARACTERS",
    "CleanText",
    "Piece",
    "clean",
    "neutralise",
    "row_cap",
    "silence_allowance",
    "split",
]

MAX_CHARACTERS = 20_000
_WARNED_TAGS = 8  # unknown tags named one by one; a text full of them is still one screen of warnings

_LONGEST_TOKEN = max(map(len, STRUCTURAL_TOKENS))
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL: dict[int, str | None] = {
    code: "\n" if chr(code) in "\r\v\f\x85" else " " for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc"
}
_CONTROL |= {
    ord("\n"): "\n",
    0: None,  # NUL
    0xFEFF: None,  # byte order mark
    0xAD: None,  # soft hyphen: where a word may be broken on paper; it would break it for the tokenizer too
    0x2028: "\n",
    0x2029: "\n\n",
}


@dataclass(frozen=True)
class CleanText:
    """`text` can be spoken as it stands; `warnings` tell the user, in sentences, what was changed or looks wrong."""

    text: str
    warnings: tuple[str, ...] = ()


def clean(text: str, strict: bool = False) -> CleanText:
    """Makes user text safe to speak.

    Line ends become \\n, other control characters a space; NULs, byte order marks and soft hyphens vanish, as does
    white space around the whole. Structural tokens are removed, with a warning. An unknown `<|...|>` stays and is
    spoken as text, with a warning that names the nearest known tag; with `strict` it is an error. Nothing else
    changes: the tokenizer normalises Unicode.

    Raises RequestError for a text that is not valid Unicode, has over MAX_CHARACTERS characters, holds nothing to
    speak, or (`strict`) an unknown tag.
    """
    cleaned, removed = neutralise(text)
    cleaned = cleaned.strip()
    if not any(unicodedata.category(character)[0] not in "ZC" for character in without_tags(cleaned)):
        what = "holds tags but no words" if removed or ANY_TAG.search(cleaned) else "is empty"
        raise RequestError(f"The text {what}. Give at least one word to speak.")
    warnings = []
    if removed:
        warnings.append(f"Removed {', '.join(removed)} from the text: it frames prompts and is no control tag.")
    unknown = list(dict.fromkeys(found for found in ANY_TAG.findall(cleaned) if found not in _KNOWN))
    for found in unknown[:_WARNED_TAGS]:
        sentence = f"{found} is no tag that the model knows{_nearest(found)}."
        if strict:
            raise RequestError(f"{sentence} Correct it, or remove it.")
        warnings.append(f"{sentence} It will be spoken as text.")
    if len(unknown) > _WARNED_TAGS:
        warnings.append(f"{len(unknown) - _WARNED_TAGS} more unknown tags will be spoken as text.")
    return CleanText(cleaned, tuple(warnings))


def neutralise(text: str) -> tuple[str, tuple[str, ...]]:
    """The part of `clean` that a reference transcript needs as well: sane characters and no structural tokens.

    Returns the text and the distinct tokens that were removed. Raises RequestError for a text that is not valid
    Unicode or has over MAX_CHARACTERS characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise RequestError(
            f"The text has {len(text):,} characters; {MAX_CHARACTERS:,} are allowed at once. Speak it in several parts."
        )
    if found := _SURROGATE.search(text):
        code = ord(found[0])
        # Python reads byte 0xE9 of broken UTF-8 as U+DCE9 (surrogateescape).
        what = f"byte 0x{code - 0xDC00:02X} is not UTF-8" if 0xDC80 <= code <= 0xDCFF else "half a surrogate pair"
        raise RequestError(f"Character {found.start() + 1} of the text is broken ({what}). Save the text as UTF-8.")
    # Dropped characters may have held a token apart, so they go first.
    return _remove_structural(text.replace("\r\n", "\n").translate(_CONTROL))


def _remove_structural(text: str) -> tuple[str, tuple[str, ...]]:
    """Removes every structural token, also those that form when another one is removed from their middle.

    One pass: all tokens end in `>` and have no other, so a token can only be complete, or become complete, when a `>`
    is appended to what is kept so far.
    """
    kept: list[str] = []
    removed: dict[str, None] = {}
    for character in text:
        kept.append(character)
        if character == ">":
            tail = "".join(kept[-_LONGEST_TOKEN:])
            token = tail[tail.rfind("<") :]
            if token in STRUCTURAL_TOKENS:
                del kept[-len(token) :]
                removed[token] = None
    return "".join(kept), tuple(removed)


_KNOWN = frozenset(CONTROL_TAGS)
_BY_VALUE = {known.strip("<|>").split(":")[1]: known for known in CONTROL_TAGS}


def _nearest(unknown: str) -> str:
    """` (the nearest is ...)` or nothing: found by the whole tag, else by its value alone (`<|whisper|>`)."""
    name = unknown.strip("<|> ").lower()
    whole = difflib.get_close_matches(f"<|{name}|>", CONTROL_TAGS, n=1, cutoff=0.75)
    value = difflib.get_close_matches(name.split(":")[-1].strip(), _BY_VALUE, n=1, cutoff=0.6)
    nearest = whole or [_BY_VALUE[found] for found in value]
    return f" (the nearest is {nearest[0]})" if nearest else ""


# Speech is slow at 8 characters a second: people read English aloud at 13 to 17. A cap must never cut real speech, so
# every weight below is on the generous side; it is there to end a runaway, which otherwise lasts 82 seconds.
_CHARACTERS_PER_SECOND = 8.0
_ROWS_PER_SECOND = 25
_MARGIN_SECONDS = 5.0
_RAMP_ROWS = 7  # rows that the delay pattern adds to the frames
_PAUSE_SECONDS = 1.5
_SOUND_SECONDS = 2.0


def row_cap(text: str) -> int:
    """Rows allowed for one piece of text: its slowest sensible reading, and 5 seconds.

    Characters count by how long they are spoken: an alphabetic letter 1; a capital 3 (it may be spelled out); a letter
    of a script without case 2, since it writes a syllable or leaves vowels out (Arabic, Devanagari, Thai); a wide one
    (Chinese, kana, hangul) 3; digits and symbols are read as words, 4; punctuation and a run of spaces 1. The slowest
    speed tag in the text stretches all of it; fast ones shrink nothing. A pause tag adds 1.5 s, an sfx tag 2 s.
    """
    tags = [tag for tag in ANY_TAG.findall(text) if tag in _KNOWN]
    weight = sum(map(_spoken_weight, re.sub(r"\s+", " ", without_tags(text))))
    seconds = weight / _CHARACTERS_PER_SECOND / min((SLOWER.get(tag, 1.0) for tag in tags), default=1.0)
    seconds += sum(_PAUSE_SECONDS * (tag in PAUSES) + _SOUND_SECONDS * (tag in SOUNDS) for tag in tags)
    return math.ceil(_ROWS_PER_SECOND * (seconds + _MARGIN_SECONDS)) + _RAMP_ROWS


def _spoken_weight(character: str) -> int:
    category = unicodedata.category(character)
    if category[0] in "NS" or character in "%&@#/*":
        return 4
    if category[0] == "L" and unicodedata.east_asian_width(character) in "WF":
        return 3
    return {"Lu": 3, "Lo": 2}.get(category, 1)


def silence_allowance(text: str) -> float:
    """Seconds of silence that this text may bring forth in one go before the guard calls it a runaway.

    3 s are more than any breath between sentences; a pause tag is worth up to 1.5 s, and several may stand together.
    """
    return 3.0 + 1.6 * sum(tag in PAUSES for tag in ANY_TAG.findall(text))
