"""Who holds which pages of the KV cache. Plain Python; the pages' memory belongs to the runner.

A page holds the keys and values of `page_size` rows in every layer. A sequence holds whole pages, reserved for its
longest possible course when it is admitted, so it can never run out half-way. The pages of a voice's prefix (its
transcript and reference rows) stay when the sequence leaves, and the next sequence with the same voice begins with
them: it shares the pages that the prefix fills, and gets a copy of the one that it fills in part. Pages are counted,
and given back when the last holder lets go.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

DUMMY_PAGE = 0  # belongs to nobody: tables are padded with it


@dataclass(frozen=True)
class Reservation:
    """A sequence's pages, in order. Its first `reused_rows` rows are in them once page `copy` (from, to) is copied."""

    pages: list[int]
    reused_rows: int = 0
    copy: tuple[int, int] | None = None


class PagePool:
    def __init__(self, num_pages: int, page_size: int):
        """`num_pages` usable pages, numbered 1..num_pages."""
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages, 0, -1))  # popped from the end: low numbers first
        self._holders = [0] * (num_pages + 1)
        self._prefixes: OrderedDict[bytes, Reservation] = OrderedDict()  # least recently used first

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def pages_for(self, rows: int) -> int:
        return -(-rows // self.page_size)

    @property
    def kept_pages(self) -> int:
        """Pages of voices' prefixes; of these, what no sequence holds counts as free when it is needed."""
        return sum(len(kept.pages) for kept in self._prefixes.values())

    def reserve(self, rows: int, prefix: bytes | None = None) -> Reservation | None:
        """Pages for `rows` rows, of which the voice `prefix` may fill the first; None if there are not enough.

        Prefixes nobody uses are dropped, the least recently used first, when free pages run short.
        """
        kept = self._prefixes.get(prefix) if prefix else None
        if prefix and kept:
            self._prefixes.move_to_end(prefix)
        # A copy takes a page more than a prompt without it, and then the prefix itself may be what stands in the way.
        return (self._reserve(rows, kept) if kept else None) or self._reserve(rows, Reservation([]))

    def _reserve(self, rows: int, kept: Reservation) -> Reservation | None:
        whole = kept.reused_rows // self.page_size
        shared = kept.pages[:whole]
        self._hold(kept.pages)  # before anything is dropped
        needed = self.pages_for(rows) - whole
        while needed > len(self._free) and self._drop_unused_prefix():
            pass
        self.release(kept.pages)
        if needed > len(self._free):
            return None
        fresh = [self._free.pop() for _ in range(needed)]
        self._hold(shared + fresh)
        copy = (kept.pages[whole], fresh[0]) if len(kept.pages) > whole else None
        return Reservation(shared + fresh, kept.reused_rows, copy)

    def keep_prefix(self, prefix: bytes, pages: list[int], rows: int) -> None:
        """Keeps the pages of a sequence's first `rows` rows, which must be final, under the voice's key."""
        if prefix not in self._prefixes:
            kept = pages[: self.pages_for(rows)]
            self._hold(kept)
            self._prefixes[prefix] = Reservation(kept, rows)

    def has_prefix(self, prefix: bytes) -> bool:
        return prefix in self._prefixes

    def release(self, pages: list[int]) -> None:
        for page in pages:
            self._holders[page] -= 1
            assert self._holders[page] >= 0, page
            if self._holders[page] == 0:
                self._free.append(page)

    def _hold(self, pages: list[int]) -> None:
        for page in pages:
            self._holders[page] += 1

    def _drop_unused_prefix(self) -> bool:
        for prefix, kept in self._prefixes.items():
            if all(self._holders[page] == 1 for page in kept.pages):
                del self._prefixes[prefix]
                self.release(kept.pages)
                return True
        return False
