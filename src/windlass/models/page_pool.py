"""The one memory for keys and values: pages of a few positions, shared by every sequence that has them in its past.

A page is one row of `data`, so that it moves with one copy; inside it lie all layers, `[layers, 2, key heads,
page_tokens, head_dim]` in half precision, keys (rotated) before values. Pages are numbered; a sequence is a list of
numbers. The engine reads and writes pages, whoever owns sequences (a `SequenceCache`, the serving engine) takes and
releases them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import PoolExhausted, UsageError

PAGE_TOKENS = 16
"""Positions in a page unless asked otherwise."""


class PagePool:
    """Half-precision pages of all layers, with a count of owners each.

    A page with more than one owner is never written. Memory of a fixed budget is reserved at once and becomes real
    when pages are first written; without a budget the pool doubles when it runs out.

    Args:
        layers, key_heads, head_dim: Shape of what one position stores.
        page_tokens: Positions in a page.
        pages: The budget; None grows as needed.

    Attributes:
        data: uint16 `[pages, page_elements]`, bits of float16; another array after `take` had to grow the pool.
        owners: How many own each page; 0 is free.
        versions: int64, another number whenever a page may hold something else than before.

    Raises:
        UsageError: a size is not positive, or the budget is more than the machine can promise.

    Example:
        >>> pool = PagePool(layers=2, key_heads=1, head_dim=16, pages=4)
        >>> page = pool.take()
        >>> pool.view().shape, pool.free_pages
        ((4, 2, 2, 1, 16, 16), 3)
    """

    def __init__(
        self, layers: int, key_heads: int, head_dim: int, *, page_tokens: int = PAGE_TOKENS, pages: int | None = None
    ) -> None:
        self.shape = (layers, 2, key_heads, page_tokens, head_dim)
        if min(self.shape) < 1 or (pages is not None and pages < 1):
            raise UsageError(f"a pool of {pages} pages of shape {self.shape}: every size must be at least 1")
        self.page_tokens = page_tokens
        self.budget = pages
        self.data = self._zeros(pages or 0)
        self.owners = [0] * len(self.data)
        self.versions = np.zeros(len(self.data), np.int64)
        self._free = list(range(len(self.data) - 1, -1, -1))
        # Caches give their pages back when the garbage collector finds them, in whichever thread that happens.
        self._lock = threading.RLock()

    @property
    def count(self) -> int:
        """Pages there are, free ones included."""
        return len(self.data)

    @property
    def free_pages(self) -> int:
        """Pages that can be taken without growing."""
        return len(self._free)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in all layers, keys and values."""
        return int(2 * self.data.shape[1])

    def view(self) -> NDArray[np.uint16]:
        """`data` as `[pages, layers, 2, key_heads, page_tokens, head_dim]`; not a copy."""
        return self.data.reshape(-1, *self.shape)

    def take(self) -> int:
        """A page with one owner; what it holds is left over from its last one.

        Raises:
            PoolExhausted: the budget is used up.
        """
        return self.take_many(1)[0]

    def take_many(self, count: int) -> list[int]:
        """`count` pages with one owner each, or none at all.

        Raises:
            PoolExhausted: fewer are free and the pool must not grow.
        """
        with self._lock:
            while len(self._free) < count:
                if self.budget is not None:
                    raise PoolExhausted(
                        f"{count} pages of keys and values are needed, {len(self._free)} of {self.count} are free",
                        hint="finish or drop a sequence, or give the pool more pages",
                    )
                self._grow()
            taken = [self._free.pop() for _ in range(count)]
            for page in taken:
                self.owners[page] = 1
            self.versions[taken] += 1
            return taken

    def share(self, page: int) -> None:
        """One owner more.

        Raises:
            UsageError: the page is free.
        """
        with self._lock:
            self._require_owned(page)
            self.owners[page] += 1

    def release(self, page: int) -> None:
        """One owner less; the page is free again after the last.

        Raises:
            UsageError: the page is free already.
        """
        with self._lock:
            self._require_owned(page)
            self.owners[page] -= 1
            if self.owners[page] == 0:
                self._free.append(page)

    def copy(self, page: int) -> int:
        """A page of one's own with the same content."""
        fresh = self.take()
        self.data[fresh] = self.data[page]
        return fresh

    def check_integrity(self) -> None:
        """Raise `AssertionError` when a page is both free and owned, or lost."""
        with self._lock:
            assert len(self._free) == len(set(self._free)), "a page is free twice"
            assert all(self.owners[page] == 0 for page in self._free), "a free page has an owner"
            assert len(self._free) + sum(owners > 0 for owners in self.owners) == self.count, "a page is lost"

    def _require_owned(self, page: int) -> None:
        if not 0 <= page < self.count or self.owners[page] == 0:
            raise UsageError(f"page {page} of {self.count} is not in use")

    def _zeros(self, count: int) -> NDArray[np.uint16]:
        elements = int(np.prod(self.shape))
        try:
            return np.zeros((count, elements), np.uint16)
        except (MemoryError, ValueError) as error:
            raise UsageError(
                f"{count} pages of keys and values take {2 * count * elements:,} bytes, more than this machine can give"
            ) from error

    def _grow(self) -> None:
        before, count = self.count, max(16, 2 * self.count)
        grown = self._zeros(count)
        grown[:before] = self.data
        self.data = grown
        self._free += range(count - 1, before - 1, -1)
        self.owners += [0] * (count - before)
        self.versions = np.concatenate((self.versions, np.zeros(count - before, np.int64)))


class SequenceCache:
    """One sequence's pages. `fork` shares the full ones; the last, half-filled one is copied when it is written.

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
        """Own enough pages for `length` positions, and the one that is written next alone.

        Raises:
            PoolExhausted: the pool has a budget, and it is used up; nothing has changed.
        """
        pool, size = self._pool, self._pool.page_tokens
        last, missing = self.length // size, max(0, -(-length // size) - len(self.pages))
        alone = not (self.length % size and length > self.length and pool.owners[self.pages[last]] > 1)
        fresh = pool.take_many(missing + (not alone))
        if not alone:
            shared, self.pages[last] = self.pages[last], fresh.pop()
            pool.data[self.pages[last]] = pool.data[shared]
            pool.release(shared)
        self.pages += fresh

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on.

        Raises:
            UsageError: `length` is negative or beyond what is stored.
        """
        if not 0 <= length <= self.length:
            raise UsageError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length
        keep = -(-length // self._pool.page_tokens)
        _release_all(self._pool, self.pages, keep)

    def fork(self) -> SequenceCache:
        """A sequence with the same past that goes on independently; costs no copy until one of them writes."""
        twin = SequenceCache(self._pool)
        for page in self.pages:
            self._pool.share(page)
            twin.pages.append(page)
        twin.length = self.length
        return twin


def _release_all(pool: PagePool, pages: list[int], keep: int = 0) -> None:
    released: Iterable[int] = pages[keep:]
    del pages[keep:]
    for page in released:
        pool.release(page)
