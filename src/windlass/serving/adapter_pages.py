"""Which adapters stand in the page pool: the books of S-LoRA's unified paging (Sheng et al., MLSys 2024).

Adapters and keys and values take pages from one pool. An adapter is held by the sequences that run with it; one that
nobody holds stays until its pages are needed, the longest unused going first. Different from the paper: a page is a
number of bytes and not one row of keys, so models whose keys are narrower than their queries work; idle adapters go
before cached prefixes, because copying one back takes a thousandth of computing a prefix again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from windlass.core.errors import EngineBug


class ResidentAdapter:
    """An adapter that has pages, or is about to get them. `users` are the sequences that run with it."""

    __slots__ = ("key", "pages", "users")

    def __init__(self, key: str) -> None:
        self.key = key
        self.pages: tuple[int, ...] = ()
        self.users = 0


class AdapterPages:
    """The books only: which adapter has which pages, and who holds it. `KVManager` takes and gives the pages.

    Args:
        pages_of: How many pages an adapter needs, by its key.

    Attributes:
        pages, idle_pages: Of all adapters, and of those that nobody holds.
        loads, evictions: How many adapters were given pages, and lost them.

    Example:
        >>> books = AdapterPages(lambda key: 2)
        >>> books.missing("a"), books.hold("a"), books.settle("a", [7, 3]), books.missing("a")
        (2, None, None, 0)
        >>> books.drop("a"), books.idle_pages, books.evict(1)
        (None, 2, [7, 3])
    """

    def __init__(self, pages_of: Callable[[str], int]) -> None:
        self.pages_of = pages_of
        self.pages = 0
        self.idle_pages = 0
        self.loads = 0
        self.evictions = 0
        self._known: OrderedDict[str, ResidentAdapter] = OrderedDict()

    def missing(self, key: str | None) -> int:
        """Pages that a sequence with this adapter would need for it."""
        return 0 if key is None or key in self._known else self.pages_of(key)

    def revived(self, key: str | None) -> int:
        """Idle pages that would not be idle any more if a sequence with this adapter ran."""
        known = self._known.get(key) if key is not None else None
        return len(known.pages) if known is not None and known.users == 0 else 0

    def hold(self, key: str | None) -> None:
        """One user more. Without pages yet, `settle` must follow."""
        if key is None:
            return
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = ResidentAdapter(key)
        elif known.users == 0:
            self.idle_pages -= len(known.pages)
        known.users += 1
        self._known.move_to_end(key)

    def settle(self, key: str, pages: list[int]) -> None:
        """The pages of an adapter that is held."""
        self._known[key].pages = tuple(pages)
        self.pages += len(pages)
        self.loads += 1

    def drop(self, key: str | None) -> None:
        """One user less.

        Raises:
            EngineBug: nobody holds it.
        """
        if key is None:
            return
        known = self._known.get(key)
        if known is None or known.users == 0:
            raise EngineBug(f"adapter {key} is dropped and nobody holds it")
        known.users -= 1
        if known.users == 0:
            if known.pages:
                self.idle_pages += len(known.pages)
            else:
                del self._known[key]

    def evict(self, count: int) -> list[int]:
        """Pages of idle adapters, the longest unused first: at least `count`, or all there are."""
        freed: list[int] = []
        for key in [key for key, known in self._known.items() if known.users == 0]:
            if len(freed) >= count:
                break
            freed += self._known.pop(key).pages
            self.evictions += 1
        self.idle_pages -= len(freed)
        self.pages -= len(freed)
        return freed

    def resident(self) -> list[ResidentAdapter]:
        """All that have pages, the longest unused first."""
        return [known for known in self._known.values() if known.pages]

    def get(self, key: str) -> ResidentAdapter:
        """One that is held.

        Raises:
            EngineBug: it has no pages.
        """
        known = self._known.get(key)
        if known is None or not known.pages:
            raise EngineBug(f"adapter {key} runs and has no pages")
        return known
