"""How much of a long context is read: the numbers of sparse attention, without a model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from windlass.core.errors import UsageError

LEAST_PAGES = 16
"""Contexts of fewer pages are read in full: there is next to nothing to save."""


@dataclass(frozen=True, slots=True)
class SparsePolicy:
    """How many pages of a context are read.

    Args:
        ratio: Share of the pages, 1 for all.
        local_share: Share of these that are the newest.

    Raises:
        UsageError: a share is outside (0, 1].

    Example:
        >>> SparsePolicy(0.2).pages(100), SparsePolicy(0.2).pages(10)
        ((20, 5), (0, 0))
    """

    ratio: float = 0.2
    local_share: float = 0.25

    def __post_init__(self) -> None:
        for name in ("ratio", "local_share"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(
                    f"{name} of sparse attention is {getattr(self, name)}, expected more than 0 and at most 1"
                )

    def pages(self, stored: int) -> tuple[int, int]:
        """Pages that a token reads of `stored` ones, and how many of them are the newest; (0, 0) for all of them."""
        budget = math.ceil(self.ratio * stored)
        newest = max(2, round(self.local_share * budget))  # the last page may hold a single token
        if stored < LEAST_PAGES or budget >= stored or newest + 1 > budget:
            return 0, 0
        return budget, newest

    def applies(self, tokens: int, page_tokens: int = 16) -> bool:
        """Whether the newest of so many tokens reads a part only."""
        return self.pages(-(-tokens // page_tokens))[0] > 0
