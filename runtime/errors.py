"""Every error octavo raises on purpose. Each message is a sentence that says what is wrong and what to do."""


class OctavoError(Exception):
    """Base of the family: catch this to catch everything octavo raises on purpose."""


class CheckpointError(OctavoError):
    """A checkpoint cannot be read: truncated, of another architecture, a tensor missing, misshapen or left over."""


class RequestError(OctavoError, ValueError):
    """The request cannot be spoken: empty or too long text, a sampling value out of range, an unknown voice."""


class AudioError(RequestError):
    """A sound cannot be read, used as a reference, or written."""


class VoiceError(RequestError):
    """A voice file is damaged, or was made with another codec."""


class CapacityError(OctavoError):
    """The request is valid, but this engine's pages or context cannot hold it."""


class CancelledError(OctavoError):
    """The request was cancelled, or its engine was closed, before it finished."""


class EngineError(OctavoError):
    """The engine's device failed, and with it everything that ran there. Load the engine again."""
