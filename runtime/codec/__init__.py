"""The audio tokenizer bundled in the checkpoint: codes to sound, whole or streaming, and sound to codes."""

from .codec import Codec as Codec
from .config import CodecConfig as CodecConfig
from .decoder import CodecDecoder as CodecDecoder
from .stream import CodecStream as CodecStream
