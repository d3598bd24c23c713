"""Who runs the loop: a worker thread, or whoever calls `pump`. And what becomes of everybody when something breaks."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch

from .codec import CodecStream
from .errors import EngineError
from .loop import Loop
from .mailbox import Mailbox
from .runner import Runner
from .streams import cancelled

Action = Callable[[], None]


class Driver:
    """Its methods may be called from any thread; actions and steps run one after the other, in the loop's thread."""

    def __init__(self, loop: Loop, runner: Runner, sounds: CodecStream, worker: bool):
        self.loop, self.worker = loop, worker
        self.failure: str | None = None  # why the device is lost, if it is
        self._runner = runner
        self._stepping = threading.Lock()  # without a worker: one thread at a time
        this = weakref.ref(self)
        mailbox: Mailbox
        self._mailbox = mailbox = Mailbox((lambda: _work(this, mailbox)) if worker else None)
        # Also when the interpreter ends: a worker must not be cut off in torch, nor memory be freed that a GPU writes.
        self._shut = weakref.finalize(self, _shut, mailbox, runner, sounds)

    def post(self, action: Action) -> None:
        """Raises OctavoError when closed, EngineError when the device is lost."""
        if self.failure:
            raise EngineError(self.failure)
        self._mailbox.post(action)

    def try_post(self, action: Action) -> None:
        """The same, and nothing where there is nobody left to act."""
        self._mailbox.try_post(action)

    def pump(self) -> bool:
        """One turn in the calling thread. False when there is nothing to do."""
        with self._stepping:
            return self.turn(*self._mailbox.take(wait=False))

    def close(self) -> None:
        """Cancels what runs; returns when nothing does any more."""
        self._mailbox.close()
        if not self.worker:
            self.pump()
        self._shut()

    def turn(self, actions: list[Action], closed: bool) -> bool:
        """What was posted, then one step; whether there is more to do. Nothing may end the worker but the end."""
        loop = self.loop
        try:
            _act(actions)
            if self.failure:
                raise EngineError(self.failure)
            if closed:
                raise cancelled()
            if loop.working:
                loop.step()
        except Exception as error:  # a bug, the device's memory, the end: nobody may wait for ever
            loop.abandon(EngineError(self.failure) if self._is_lost(error) else error)
        except BaseException as error:  # Ctrl-C, where a host steps: a step in the middle is no state to go on from
            loop.abandon(cancelled())
            raise error
        return loop.working

    def _is_lost(self, error: Exception) -> bool:
        """Whether the device is: it says so itself, or kernels fail and it does not answer any more."""
        lost = isinstance(error, torch.AcceleratorError)
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            try:
                self._runner.synchronize()
            except RuntimeError:
                lost = True
        if lost:
            self.failure = f"The GPU reported an error, and the engine has stopped: {error}"
        return lost


def _act(actions: list[Action]) -> None:
    """All of them, whatever one does; then raises the first error."""
    errors = []
    for action in actions:
        try:
            action()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _work(reference: weakref.ref[Driver], mailbox: Mailbox) -> None:
    """The worker. While it waits it holds no driver: an engine dropped without `close` gives its memory back."""
    busy = False
    while True:
        actions, closed = mailbox.take(wait=not busy)
        driver = reference()
        if driver is None:
            return
        busy = driver.turn(actions, closed)
        del driver, actions
        if closed:
            return


def _shut(mailbox: Mailbox, *streams: Runner | CodecStream) -> None:
    """The end: of the thread, then of what the streams still do."""
    mailbox.close()
    for stream in streams:
        try:
            stream.synchronize()
        except RuntimeError:  # a lost device has nothing to wait for
            pass
