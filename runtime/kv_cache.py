"""Who holds which pages of the KV cache. Plain Python; the pages' memory belongs to the runner.

A page holds the keys and values of `page_size` rows in every layer. A sequence holds whole pages, reserved for its
longest possible course when it is admitted, so it can never run out half-way. The pages of a voice's prefix (its
transcript and reference rows) stay when the sequence leaves, and the next sequence with the same voice begins with
them: it shares the pages that the prefix fills, and gets a copy of the one that it fills in part. Pages are counted,
and given back when the last holder lets go.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np

DUMMY_PAGE = 0  # belongs to nobody: tables are padded with it


class Reservation(NamedTuple):
    """A sequence's pages [n] int32, in order. Its first `reused_rows` rows are in them once page `copy` (from, to) is
    copied."""

    pages: np.ndarray
    reused_rows: int = 0
    copy: tuple[int, int] | None = None


NOTHING = Reservation(np.zeros(0, np.int32))


class PagePool:
    """A reservation costs a few numpy calls, however many pages it takes."""

    def __init__(self, num_pages: int, page_size: int):
        """`num_pages` usable pages, numbered 1..num_pages."""
        self.num_pages, self.page_size = num_pages, page_size
        self._free = np.arange(num_pages, 0, -1, dtype=np.int32)  # a stack: low numbers first
        self.free_pages = num_pages  # its height
        self._holders = np.zeros(num_pages + 1, np.int32)
        self._prefixes: OrderedDict[bytes, Reservation] = OrderedDict()  # least recently used first

    def pages_for(self, rows: int) -> int:
        return -(-rows // self.page_size)

    @property
    def kept_pages(self) -> int:
        """Pages of voices' prefixes; of these, what no sequence holds counts as free when it is needed."""
        return sum(len(kept.pages) for kept in list(self._prefixes.values()))  # asked by other threads

    def reserve(self, rows: int, prefix: bytes | None = None) -> Reservation | None:
        """Pages for `rows` rows, of which the voice `prefix` may fill the first; None if there are not enough.

        Prefixes nobody uses are dropped, the least recently used first, when free pages run short.
        """
        kept = self._prefixes.get(prefix) if prefix else None
        if prefix and kept:
            self._prefixes.move_to_end(prefix)
        # A copy takes a page more than a prompt without it, and then the prefix itself may be what stands in the way.
        return (self._reserve(rows, kept) if kept else None) or self._reserve(rows, NOTHING)

    def _reserve(self, rows: int, kept: Reservation) -> Reservation | None:
        whole = kept.reused_rows // self.page_size
        shared = kept.pages[:whole]
        needed = self.pages_for(rows) - whole
        if needed > self.free_pages:
            self._holders[kept.pages] += 1  # it must not be dropped itself
            while needed > self.free_pages and self._drop_unused_prefix():
                pass
            self._holders[kept.pages] -= 1
            if needed > self.free_pages:
                return None
        self.free_pages -= needed
        fresh = self._free[self.free_pages : self.free_pages + needed][::-1]
        pages = np.concatenate((shared, fresh))
        self._holders[pages] += 1
        copy = (int(kept.pages[whole]), int(fresh[0])) if len(kept.pages) > whole else None
        return Reservation(pages, kept.reused_rows, copy)

    def keep_prefix(self, prefix: bytes, pages: np.ndarray, rows: int) -> None:
        """Keeps the pages of a sequence's first `rows` rows, which must be final, under the voice's key."""
        if prefix not in self._prefixes:
            kept = pages[: self.pages_for(rows)]
            self._holders[kept] += 1
            self._prefixes[prefix] = Reservation(kept, rows)

    def release(self, pages: np.ndarray) -> None:
        """pages: all different."""
        self._holders[pages] -= 1
        left = self._holders[pages]
        assert (left >= 0).all(), pages
        gone = pages[left == 0]
        self._free[self.free_pages : self.free_pages + len(gone)] = gone
        self.free_pages += len(gone)

    def _drop_unused_prefix(self) -> bool:
        for prefix, kept in self._prefixes.items():
            if (self._holders[kept.pages] == 1).all():
                del self._prefixes[prefix]
                self.release(kept.pages)
                return True
        return False
