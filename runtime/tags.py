"""The tokens that the checkpoint adds to the Qwen3 vocabulary: control tags for the user, structure for the prompt.

`<|category:value|>` is a control tag; the 43 of model-v3.md 4.2 are the user's. The other 41 added tokens frame the
prompt or belong to other tasks, and must never come out of user text (model-v3.md 4.1).
"""

from __future__ import annotations

import re

_EMOTIONS = (
    "elation amusement enthusiasm determination pride contentment affection relief contemplation confusion surprise "
    "awe longing arousal anger fear disgust bitterness sadness shame helplessness"
).split()
_STYLES = "singing shouting whispering".split()
_SOUNDS = "cough laughter crying screaming burping humming sigh sniff sneeze".split()
_PROSODY = "speed_very_slow speed_slow speed_fast speed_very_fast pitch_low pitch_high pause long_pause".split()
_EXPRESSIVE = "expressive_high expressive_low".split()
_OTHER_TASKS = (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start "
    "vision_end vision_pad image_pad video_pad"
).split()
_PROMPT = (
    "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep asr streaming_asr tts streaming_tts audio_cont_txt "
    "audio audio_end text text_end eoc user assistant system await_audio ref_audio ref_text"
).split()


def tag(category: str, value: str) -> str:
    return f"<|{category}:{value}|>"


# In the order of their ids, which follow the 151,643 ids of the base vocabulary.
ADDED_TOKENS: tuple[str, ...] = (
    *(f"<|{name}|>" for name in _OTHER_TASKS),
    "<tool_call>",
    "</tool_call>",
    *(f"<|{name}|>" for name in _PROMPT),
    *(tag("emotion", value) for value in _EMOTIONS),
    tag("env", "music"),
    tag("env", "noise"),
    *(tag("style", value) for value in _STYLES),
    *(tag("sfx", value) for value in _SOUNDS),
    *(tag("prosody", value) for value in _PROSODY),
    "<|chatml|>",
    *(tag("prosody", value) for value in _EXPRESSIVE),
)
CONTROL_TAGS: tuple[str, ...] = (
    *(tag("emotion", value) for value in _EMOTIONS),
    *(tag("style", value) for value in _STYLES),
    *(tag("sfx", value) for value in _SOUNDS),
    *(tag("prosody", value) for value in (*_PROSODY, *_EXPRESSIVE)),
)
STRUCTURAL_TOKENS = frozenset(ADDED_TOKENS) - frozenset(CONTROL_TAGS)

PAUSES = frozenset({tag("prosody", "pause"), tag("prosody", "long_pause")})
SOUNDS = frozenset(tag("sfx", value) for value in _SOUNDS)
SLOWER = {tag("prosody", "speed_very_slow"): 0.65, tag("prosody", "speed_slow"): 0.85}  # of the ordinary speed

CONTROL_TAG = re.compile("|".join(map(re.escape, CONTROL_TAGS)))
# Whatever looks like a tag, known or mistyped. Bounded, so that a stray opening does not hold a page together.
ANY_TAG = re.compile(r"<\|[^<>|\n]{1,64}\|>")

# Tags of one slot replace each other; tags of different slots stack. Only these are carried to the next piece of a
# long text: an emotion colours its own sentence, pauses and sounds stand where they are written.
CARRIED_SLOT: dict[str, str] = {tag("style", value): "style" for value in _STYLES} | {
    tag("prosody", value): value.split("_")[0]  # speed, pitch, expressive
    for value in (*_PROSODY, *_EXPRESSIVE)
    if "pause" not in value
}


def without_tags(text: str) -> str:
    """`text` as it is heard and shown: control tags cut out, everything else untouched."""
    return CONTROL_TAG.sub("", text)
