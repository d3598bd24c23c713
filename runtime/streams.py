"""The caller's end of a request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

from .errors import CancelledError, OctavoError
from .outbox import Outbox
from .request import Item, Request
from .speech import Chunk, Speech


class SpeechStream(Iterator[Chunk], AsyncIterator[Chunk]):
    """An iterator of chunks as they become final, and the whole speech in `result()`; `for` and `async for` both work.

    `cancel()` may be called from any thread; dropping or closing the stream cancels as well.
    """

    def __init__(self, request: Request, out: Outbox[Item], cancel: Callable[[Request], None]):
        self._request, self._out, self._cancel = request, out, cancel
        self._end: Speech | Exception | None = None

    @property
    def id(self) -> str:
        """Names the request, for `Engine.abort`."""
        return self._request.id

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about the text or the voice, known before the first chunk."""
        return self._request.warnings

    @property
    def seed(self) -> int:
        return self._request.seed

    def __next__(self) -> Chunk:
        if self._end is None and (chunk := self._take(self._out.get())):
            return chunk
        if isinstance(self._end, Exception):
            raise self._end
        raise StopIteration

    def __aiter__(self) -> SpeechStream:
        return self

    async def __anext__(self) -> Chunk:
        if self._end is None and (chunk := self._take(await self._out.get_async())):
            return chunk
        if isinstance(self._end, Exception):
            raise self._end
        raise StopAsyncIteration

    def _take(self, item: Item) -> Chunk | None:
        if isinstance(item, Chunk):
            return item
        if self._end is None:
            try:
                self._end = item() if callable(item) else item
            except MemoryError as error:
                self._end = error
        self._out.put(self._end)  # for whoever else waits at this stream
        return None

    def result(self) -> Speech:
        """Waits for the end and returns the whole speech. Raises what broke it, CancelledError after `cancel`."""
        for _ in self:
            pass
        assert isinstance(self._end, Speech)
        return self._end

    async def aresult(self) -> Speech:
        """The same, in an event loop."""
        async for _ in self:
            pass
        assert isinstance(self._end, Speech)
        return self._end

    def cancel(self) -> None:
        """Stops the request before its next row; its slot and pages are free for others then."""
        self._cancel(self._request)

    def close(self) -> None:
        if self._end is None:
            self.cancel()

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def cancelled() -> OctavoError:
    return CancelledError("The request was cancelled before it finished.")
