"""Segment times as subtitles. A frame lasts 40 ms, so at 25 frames a second every time is exact in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from .tags import without_tags


class Timed(Protocol):
    """What was spoken in frames [start_frame, end_frame); `Segment` of the engine is one."""

    @property
    def text(self) -> str: ...
    @property
    def start_frame(self) -> int: ...
    @property
    def end_frame(self) -> int: ...


def to_srt(segments: Iterable[Timed], frame_rate: float = 25) -> str:
    """SubRip: numbered cues, times as 00:00:01,240. Save as UTF-8. No segments give an empty text.

    Control tags are not shown; segments without text or without length are left out. SubRip cannot escape: an arrow in
    the text, which would read as a time line, is written as a typographic one.
    """
    cues = [
        f"{number}\n{_time(start, frame_rate, ',')} --> {_time(end, frame_rate, ',')}\n{shown.replace('-->', '→')}\n"
        for number, (shown, start, end) in enumerate(_shown(segments), 1)
    ]
    return "\n".join(cues)


def to_vtt(segments: Iterable[Timed], frame_rate: float = 25) -> str:
    """WebVTT: as `to_srt`, times as 00:00:01.240; `&`, `<` and `>` are written as entities, which covers `-->`."""
    cues = [
        f"{_time(start, frame_rate, '.')} --> {_time(end, frame_rate, '.')}\n"
        f"{shown.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}\n"
        for shown, start, end in _shown(segments)
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _shown(segments: Iterable[Timed]) -> Iterator[tuple[str, int, int]]:
    for segment in segments:
        shown = " ".join(without_tags(segment.text).split())  # a blank line would end the cue
        if shown and segment.end_frame > segment.start_frame:
            yield shown, segment.start_frame, segment.end_frame


def _time(frame: int, frame_rate: float, comma: str) -> str:
    seconds, milliseconds = divmod(round(frame * 1000 / frame_rate), 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{comma}{milliseconds:03}"
