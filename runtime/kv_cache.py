"""Who holds which pages of the KV cache. Plain Python; the pages' memory belongs to the runner.

A page holds the keys and values of `page_size` rows in every layer. A sequence holds whole pages, reserved for its
longest possible course when it is admitted, so it can never run out half-way. The pages of a voice's prefix (its
transcript and reference rows) stay when the sequence leaves, and the next sequence with the same voice begins with
them: pages are counted, and given back when the last holder lets go.
"""

from __future__ import annotations

from collections import OrderedDict

DUMMY_PAGE = 0  # belongs to nobody: tables are padded with it


class PagePool:
    def __init__(self, num_pages: int, page_size: int):
        """`num_pages` usable pages, numbered 1..num_pages."""
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages, 0, -1))  # popped from the end: low numbers first
        self._holders = [0] * (num_pages + 1)
        self._prefixes: OrderedDict[bytes, list[int]] = OrderedDict()  # least recently used first

    @property
    def free_pages(self) -> int:
        return len(self._free)

    def pages_for(self, rows: int) -> int:
        return -(-rows // self.page_size)

    def reserve(self, rows: int, prefix: bytes | None = None) -> tuple[list[int], int] | None:
        """Pages for `rows` rows and how many of the rows are there already, from the voice `prefix`; or None.

        Prefixes nobody uses are dropped, the least recently used first, when free pages run short.
        """
        shared = self._prefixes.get(prefix, []) if prefix else []
        self._hold(shared)  # before anything is dropped
        needed = self.pages_for(rows) - len(shared)
        while needed > len(self._free) and self._drop_unused_prefix():
            pass
        if needed > len(self._free):
            self.release(shared)
            return None
        if prefix and shared:
            self._prefixes.move_to_end(prefix)
        fresh = [self._free.pop() for _ in range(needed)]
        self._hold(fresh)
        return shared + fresh, len(shared) * self.page_size

    def keep_prefix(self, prefix: bytes, pages: list[int], rows: int) -> None:
        """Keeps the pages that `rows` rows fill wholly, under the voice's key. Their contents must be final."""
        whole = pages[: rows // self.page_size]
        if whole and prefix not in self._prefixes:
            self._hold(whole)
            self._prefixes[prefix] = whole

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
        for prefix, pages in self._prefixes.items():
            if all(self._holders[page] == 1 for page in pages):
                del self._prefixes[prefix]
                self.release(pages)
                return True
        return False
