"""Speech from text that arrives in pieces: from a language model that is still writing, say."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator

from . import text
from .errors import RequestError
from .outbox import Outbox
from .pieces import carry
from .request import Item, Request
from .script import Script
from .sentences import sentence_ends
from .speech import Chunk
from .tags import without_tags


class Session(Iterator[Chunk], AsyncIterator[Chunk]):
    """`push` text as it comes; a sentence is spoken as soon as it is complete, all of them in one voice and level.

        with engine.session(voice="anna") as session:
            for words in source:
                session.push(words)
            session.close()
            for chunk in session: ...

    Iterate in another thread or task than the one that pushes, to hear the beginning before the end is written.
    Dropping a session, or leaving its `with` before the end, cancels it.
    """

    def __init__(
        self,
        open_request: Callable[[Gate], tuple[Script, Request]],
        act: Callable[[Request, Callable[[], None]], None],
        end: Callable[[Request], None],
        out: Outbox[Item],
    ):
        """What the engine lends: a running request that has no text yet and its script, the way to the loop's thread,
        and the end of a request."""
        self._open, self._act, self._end = open_request, act, end
        self._out = out
        self._buffer = ""  # not spoken yet
        self._force: dict[str, str] = {}  # style, speed and pitch tags in force
        self._lock = threading.RLock()  # the callers' methods, one at a time
        self._closed = False
        self._ended: Exception | bool = False
        self.warnings: list[str] = []  # about the text so far
        self._begin()

    def push(self, words: str) -> None:
        """More text. Raises RequestError for what cannot be spoken; that is forgotten, what came before is spoken."""
        if not isinstance(words, str):
            raise RequestError(f"The text is a {type(words).__name__}; give a string.")
        with self._lock:
            if self._closed:
                raise RequestError("The session is closed. Open another one.")
            if len(self._buffer) + len(words) > text.MAX_CHARACTERS:
                raise RequestError(f"{text.MAX_CHARACTERS:,} characters and no end of a sentence among them. Flush.")
            self._buffer += words
            # A mark at the very end may be the point of a decimal, or of an abbreviation.
            ends = [end for end in sentence_ends(self._buffer)[0] if self._buffer[end:].strip()]
            if ends:
                self._speak(ends[-1])

    def flush(self) -> None:
        """Speaks what has been pushed, although its sentence may not be complete."""
        with self._lock:
            self._speak(len(self._buffer))

    def cancel(self) -> None:
        """Stops speaking at once and forgets what was pushed: the listener barged in. The session stays open, but the
        next text begins anew: in a voice of its own, if none was given. Of a closed session it is the end."""
        with self._lock:
            self._buffer = ""
            self._gate.shut()
            self._end(self._request)
            if self._ended:
                return
            self._out.clear()
            if self._closed:
                self._out.put(None)
            else:
                self._begin()

    def close(self) -> None:
        """No more text: speaks the rest; the iterator ends behind it. Closing twice is harmless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            request = self._request
            try:
                self._speak(len(self._buffer))
            finally:
                self._act(request, lambda: setattr(request, "closed", True))

    def __next__(self) -> Chunk:
        while not self._ended:
            if chunk := self._take(self._out.get()):
                return chunk
        raise self._ended if isinstance(self._ended, Exception) else StopIteration

    def __aiter__(self) -> Session:
        return self

    async def __anext__(self) -> Chunk:
        while not self._ended:
            if chunk := self._take(await self._out.get_async()):
                return chunk
        raise self._ended if isinstance(self._ended, Exception) else StopAsyncIteration

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            self.cancel()

    def __del__(self) -> None:
        if request := getattr(self, "_request", None):  # None: it could not even be opened
            self._end(request)

    def _take(self, item: Item) -> Chunk | None:
        if isinstance(item, Chunk):
            return item
        self._ended = item if isinstance(item, Exception) else True
        self._out.put(item)  # for whoever else waits at this session
        return None

    def _begin(self) -> None:
        self._gate = Gate(self._out)
        self._script, self._request = self._open(self._gate)

    def _speak(self, end: int) -> None:
        """The buffer up to `end` becomes pieces."""
        ready, rest = self._buffer[:end], self._buffer[end:]
        if not without_tags(ready).strip():
            return  # tags alone wait for their words
        self._buffer = rest
        cleaned = text.clean(carry(ready.strip(), self._force))
        self.warnings += cleaned.warnings
        request, added = self._request, []
        try:
            for piece in text.split(cleaned.text):
                self._script.add(piece.text)
                added.append(piece.text)
        finally:  # those before one that is refused are spoken
            self._act(request, lambda: request.texts.extend(added))


class Gate:
    """Where a request of a session puts its sound; shut, it lets nothing more through to the listener."""

    def __init__(self, out: Outbox[Item]):
        self._out, self._open, self._passing = out, True, threading.Lock()

    def put(self, item: Item) -> None:
        with self._passing:
            if self._open:
                self._out.put(item)

    def shut(self) -> None:
        with self._passing:
            self._open = False
