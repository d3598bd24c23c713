"""How other threads reach an engine's worker. It outlives the engine, so that a worker can wait without holding one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from .errors import OctavoError


class Mailbox:
    """Actions for one worker thread, which starts with the first of them; or for whoever calls `take`, without one."""

    def __init__(self, work: Callable[[], None] | None):
        self._work = work
        self._wake = threading.Condition()
        self._actions: list[Callable[[], None]] = []
        self._closed = False
        self._thread: threading.Thread | None = None
        self._process = 0  # in which the thread runs

    def post(self, action: Callable[[], None]) -> None:
        """Raises OctavoError when closed, or in a process that was forked off the worker's."""
        with self._wake:
            if self._closed:
                raise OctavoError("The engine is closed. Load it again.")
            if self._work is None:
                pass
            elif self._thread is None:
                thread = threading.Thread(target=self._work, name="octavo", daemon=True)
                thread.start()
                self._thread, self._process = thread, os.getpid()
            elif self._process != os.getpid():
                raise OctavoError("The engine spoke before this process was forked. Load one after the fork.")
            self._actions.append(action)
            self._wake.notify()

    def try_post(self, action: Callable[[], None]) -> None:
        """The same, and nothing where there is no worker left to act."""
        try:
            self.post(action)
        except OctavoError:
            pass

    def take(self, wait: bool) -> tuple[list[Callable[[], None]], bool]:
        """For the worker: what was posted since, and whether this is the end; waits for either if told to."""
        with self._wake:
            while wait and not (self._actions or self._closed):
                self._wake.wait()
            actions, self._actions = self._actions, []
            return actions, self._closed

    def close(self) -> None:
        """Ends the worker and waits until it has ended."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        thread = self._thread
        if thread and thread is not threading.current_thread() and self._process == os.getpid():
            thread.join()
