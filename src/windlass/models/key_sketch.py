"""What sparse reading keeps beside a page pool: for each page, layer and key head the range of its keys' channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.models.page_pool import PagePool
from windlass.models.token_batch import TokenBatch


class KeySketch:
    """Sketches of the pages of one pool with a budget; a sixteenth of the pool's bytes.

    A page is sketched when it is first passed over or chosen, and again when it was written since.

    Args:
        pool: Whose pages.

    Raises:
        UsageError: the pool grows, so its pages have no fixed number.
    """

    def __init__(self, pool: PagePool) -> None:
        if pool.budget is None:
            raise UsageError("pages are sketched in pools with a budget only")
        layers, _, key_heads, page_tokens, head_dim = pool.shape
        self.pool = pool
        self.page_tokens = page_tokens
        self.data = np.zeros((pool.count, layers, key_heads, 2 * head_dim), np.uint16)
        self.seen = np.full((pool.count, layers, key_heads), -1, np.int64)


@dataclass(frozen=True, slots=True)
class SparseReading:
    """Which tokens of a batch read a part of their context.

    Attributes:
        sketch: Of the pool that the batch is computed over.
        budgets: int64 [tokens], pages a token reads; 0: all of them. Others read the first page, the `newest` last
            ones, and the best of the rest.
        newest: int64 [tokens], at least 1 where there is a budget.
    """

    sketch: KeySketch
    budgets: NDArray[np.int64]
    newest: NDArray[np.int64]

    def require_valid(self, batch: TokenBatch, pool: PagePool) -> None:
        """Compiled code trusts every index, so each is checked here.

        Raises:
            UsageError: another pool, other lengths, or a token with a budget that is too small or does not see its
                whole context.
        """
        tokens = len(batch.ids)
        if self.sketch.pool is not pool:
            raise UsageError("the sketch is of another pool")
        for name in ("budgets", "newest"):
            array = getattr(self, name)
            if array.dtype != np.int64 or array.shape != (tokens,) or not array.flags.c_contiguous:
                raise UsageError(f"{name} is {array.dtype} {array.shape}, expected contiguous int64 ({tokens},)")
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(batch.context_lengths)))
        rows, runs = batch.rows, np.diff(batch.context_offsets)[batch.rows]
        stored = (before[batch.context_offsets[1:]] - before[batch.context_offsets[:-1]])[rows]
        chosen = self.budgets != 0
        fits = (self.newest >= 1) & (self.budgets >= self.newest + 1) & (self.newest + 1 < runs)
        wrong = np.flatnonzero(chosen & ~(fits & (batch.visible == stored)))
        if len(wrong):
            token = int(wrong[0])
            raise UsageError(
                f"token {token} cannot read {self.budgets[token]} of {runs[token]} pages, {self.newest[token]} of them "
                "the newest"
            )
