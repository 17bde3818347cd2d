"""The CPU engine's cache of keys and values, in pages of 16 positions that sequences share when they are forked."""

from __future__ import annotations

import weakref

import numpy as np

from windlass.core.errors import UsageError
from windlass.kernels.cpu_attention import PAGE


class PagePool:
    """Half-precision pages of all layers, `[layer][page][key head][16 * head_dim]`, grown by doubling.

    A page is owned by as many sequences as `owners` says; a page with more than one owner is never written.
    """

    def __init__(self, layers: int, key_heads: int, head_dim: int) -> None:
        self._shape = (layers, key_heads * PAGE * head_dim)
        self.count = 0
        self.keys = np.zeros(0, np.uint16)
        self.values = np.zeros(0, np.uint16)
        self.owners: list[int] = []
        self._free: list[int] = []

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers, keys and values."""
        return 4 * self._shape[0] * self._shape[1]

    def take(self) -> int:
        """A page with one owner."""
        if not self._free:
            self._grow()
        page = self._free.pop()
        self.owners[page] = 1
        return page

    def share(self, page: int) -> None:
        self.owners[page] += 1

    def release(self, page: int) -> None:
        """One owner less; the page is free again after the last."""
        self.owners[page] -= 1
        if self.owners[page] == 0:
            self._free.append(page)

    def copy(self, page: int) -> int:
        """A page of one's own with the same content."""
        fresh = self.take()
        for stored in (self.keys, self.values):
            view = stored.reshape(self._shape[0], self.count, self._shape[1])
            view[:, fresh] = view[:, page]
        return fresh

    def check_integrity(self) -> None:
        """Raise `AssertionError` when a page is both free and owned, or lost."""
        assert len(self._free) == len(set(self._free))
        assert all(self.owners[page] == 0 for page in self._free)
        assert len(self._free) + sum(owners > 0 for owners in self.owners) == self.count

    def _grow(self) -> None:
        layers, size = self._shape
        count = max(16, 2 * self.count)
        for name in ("keys", "values"):
            grown = np.zeros((layers, count, size), np.uint16)
            grown[:, : self.count] = getattr(self, name).reshape(layers, self.count, size)
            setattr(self, name, grown.reshape(-1))
        self._free += range(count - 1, self.count - 1, -1)
        self.owners += [0] * (count - self.count)
        self.count = count


class SequenceCache:
    """One sequence's pages. `fork` shares the full ones; the last, half-filled one is copied.

    Pages go back to the pool when the cache is dropped.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self.pages: list[int] = []
        self.length = 0
        weakref.finalize(self, _release_all, pool, self.pages)

    @property
    def nbytes(self) -> int:
        return len(self.pages) * self._pool.page_bytes

    def reserve(self, length: int) -> None:
        """Own enough pages for `length` positions, and the one that is written next alone."""
        if self.length % PAGE and self._pool.owners[self.pages[self.length // PAGE]] > 1:
            last = self.length // PAGE
            shared, self.pages[last] = self.pages[last], self._pool.copy(self.pages[last])
            self._pool.release(shared)
        while len(self.pages) * PAGE < length:
            self.pages.append(self._pool.take())

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on.

        Raises:
            UsageError: `length` is negative or beyond what is stored.
        """
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length
        keep = -(-length // PAGE)
        for page in self.pages[keep:]:
            self._pool.release(page)
        del self.pages[keep:]

    def fork(self) -> SequenceCache:
        """A sequence with the same past that goes on independently; costs no copy until one of them writes."""
        twin = SequenceCache(self._pool)
        twin.pages.extend(self.pages)
        twin.length = self.length
        for page in self.pages:
            self._pool.share(page)
        return twin


def _release_all(pool: PagePool, pages: list[int]) -> None:
    for page in pages:
        pool.release(page)
    pages.clear()
