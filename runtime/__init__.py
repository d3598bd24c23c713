"""Text in, sound out. The face of octavo: `from octavo.runtime import Engine`."""

from .config import EngineConfig, SamplingParams
from .engine import Engine
from .errors import (
    AudioError,
    CancelledError,
    CapacityError,
    CheckpointError,
    OctavoError,
    RequestError,
    VoiceError,
)
from .speech import Chunk, Segment, Speech, Usage
from .voice import Voice, VoiceStore

__all__ = [
    "AudioError",
    "CancelledError",
    "CapacityError",
    "CheckpointError",
    "Chunk",
    "Engine",
    "EngineConfig",
    "OctavoError",
    "RequestError",
    "SamplingParams",
    "Segment",
    "Speech",
    "Usage",
    "Voice",
    "VoiceError",
    "VoiceStore",
]
