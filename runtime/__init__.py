"""Text in, sound out. The face of octavo: `from octavo.runtime import Engine`."""

from .config import EngineConfig, SamplingParams
from .engine import Engine
from .errors import (
    AudioError,
    CancelledError,
    CapacityError,
    CheckpointError,
    EngineError,
    OctavoError,
    RequestError,
    VoiceError,
)
from .session import Session
from .speech import Chunk, Segment, Speech, Stats, Usage
from .streams import SpeechStream
from .voice import Voice, VoiceStore

__all__ = [
    "AudioError",
    "CancelledError",
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "Engine",
    "EngineConfig",
    "EngineError",
    "OctavoError",
    "RequestError",
    "SamplingParams",
    "Segment",
    "Session",
    "Speech",
    "SpeechStream",
    "Stats",
    "Usage",
    "Voice",
    "VoiceError",
    "VoiceStore",
]
