"""Who prefills, who decodes, who leaves. Plain Python: no torch, no clock, no threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .config import EngineConfig, SamplingParams
from .errors import CapacityError
from .kv_cache import PagePool
from .prompt import Prompt

PREFILL_ROWS = 2048  # prompt rows of one forward pass, unless a single prompt is longer


@dataclass(eq=False)
class Sequence:
    """One utterance on its way through the model. The caller gives the first fields, the scheduler fills the rest."""

    prompt: Prompt
    sampling: SamplingParams
    voice_key: bytes | None = None  # names the prompt's first `prompt.prefix_length` rows; None: nothing to share

    slot: int = field(default=-1, init=False)  # its row in the runner's state, while it runs
    pages: list[int] = field(default_factory=list, init=False)
    reused_rows: int = field(default=0, init=False)  # rows at the front whose keys and values need not be computed
    copy: tuple[int, int] | None = field(default=None, init=False)  # page to copy for them before the prefill
    rows_done: int = field(default=0, init=False)  # generated rows

    @property
    def max_rows(self) -> int:
        return self.sampling.max_rows

    @property
    def prompt_rows(self) -> int:
        return len(self.prompt.ids)


@dataclass(frozen=True)
class Step:
    """What the runner does next: first the prompts of the newly admitted, then a row of everybody who was running."""

    prefill: list[Sequence]
    decode: list[Sequence]


class Scheduler:
    """First come, first served: a request that does not fit yet waits, and nobody overtakes it."""

    def __init__(self, config: EngineConfig):
        self.config = config
        self.pool = PagePool(config.num_pages, config.page_size)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of their slots' admission
        self._free_slots = list(range(config.max_batch - 1, -1, -1))

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def check(self, sequence: Sequence) -> None:
        """Raises CapacityError for what this engine could never hold, however empty it is."""
        rows, limit = sequence.prompt_rows + sequence.max_rows, self.config.max_context
        if rows > limit:
            raise CapacityError(
                f"The prompt has {sequence.prompt_rows} rows and up to {sequence.max_rows} rows of speech may follow, "
                f"but the engine holds {limit} per request (max_context). Let a long text be split, shorten it or the "
                "reference, or lower max_rows."
            )
        if self.pool.pages_for(rows) > self.pool.num_pages:
            raise CapacityError(
                f"The request needs {rows} rows of KV cache, and the engine has {self.config.kv_rows} in all. "
                "Lower max_rows, or load the engine with more kv_rows."
            )

    def add(self, sequence: Sequence) -> None:
        """Queues it. Raises what `check` raises."""
        self.check(sequence)
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """Admits who fits, oldest first, and returns the next step. Call `finish` for those who end in it."""
        decode = list(self.running)
        prefill: list[Sequence] = []
        new_voices: set[bytes] = set()
        rows = 0
        while self.waiting and self._free_slots:
            sequence = self.waiting[0]
            key = sequence.voice_key
            if key in new_voices:
                break  # its prefix is being computed in this very step: next step it will be there to share
            reserved = self.pool.reserve(sequence.prompt_rows + sequence.max_rows, key)
            if reserved is None:
                break
            rows += sequence.prompt_rows - reserved.reused_rows
            if prefill and rows > PREFILL_ROWS:
                self.pool.release(reserved.pages)
                break
            sequence.pages, sequence.reused_rows, sequence.copy = reserved.pages, reserved.reused_rows, reserved.copy
            sequence.slot = self._free_slots.pop()
            self.waiting.popleft()
            self.running.append(sequence)
            prefill.append(sequence)
            if key is not None and reserved.reused_rows == 0:
                new_voices.add(key)
        return Step(prefill, decode)

    def prefilled(self, sequences: Iterable[Sequence]) -> None:
        """Their prompts' keys and values are in their pages: from now on others may share the voices' part."""
        for sequence in sequences:
            if sequence.voice_key is not None:
                self.pool.keep_prefix(sequence.voice_key, sequence.pages, sequence.prompt.prefix_length)

    def finish(self, sequence: Sequence) -> None:
        """Takes it out, wherever it is; its slot and pages are free for the next step."""
        if sequence.slot >= 0:
            self.running.remove(sequence)
            self.pool.release(sequence.pages)
            self._free_slots.append(sequence.slot)
            sequence.slot, sequence.pages = -1, []
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
