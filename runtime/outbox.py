"""Between the thread that makes sound and whoever waits for it: in another thread, in an event loop, or in the same."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

IDLE_SECONDS = 0.01  # between two looks, where nobody wakes us
T = TypeVar("T")


class Outbox(Generic[T]):
    """A queue with one more way to wait. pump: without a worker, makes the sound here and now; false when it cannot."""

    def __init__(self, pump: Callable[[], bool] | None = None):
        self._items = queue.SimpleQueue[T]()
        self._pump = pump
        self._waiters: set[Callable[[], None]] = set()
        self._lock = threading.Lock()

    def put(self, item: T) -> None:
        self._items.put(item)
        if self._waiters:  # who comes after this looks at the queue himself
            with self._lock:
                waiters = tuple(self._waiters)
            for wake in waiters:
                wake()

    def get(self) -> T:
        while self._pump is not None:
            try:
                return self._items.get_nowait()
            except queue.Empty:
                pass
            if not self._pump():  # nothing to do until some other thread asks for something
                try:
                    return self._items.get(timeout=IDLE_SECONDS)
                except queue.Empty:
                    pass
        return self._items.get()

    def clear(self) -> None:
        """Drops what nobody has taken yet."""
        try:
            while True:
                self._items.get_nowait()
        except queue.Empty:
            pass

    async def get_async(self) -> T:
        """Waits without holding a thread. The waiter may be cancelled: nothing is lost then."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(woken.set)
            except RuntimeError:  # the event loop was closed while we were calling
                pass

        with self._lock:
            self._waiters.add(wake)
        try:
            while True:
                try:
                    return self._items.get_nowait()
                except queue.Empty:
                    if self._pump is not None:
                        await asyncio.sleep(0 if self._pump() else IDLE_SECONDS)
                        continue
                    await woken.wait()
                    woken.clear()
        finally:
            with self._lock:
                self._waiters.discard(wake)
