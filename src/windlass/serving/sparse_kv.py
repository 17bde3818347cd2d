"""Which part of a long context a decoding token reads: sparse window attention, after ALISA (Zhao et al., ISCA 2024).

A share of the context is kept for the newest tokens, the rest of the budget for older ones that matter. ALISA tells
those by the attention they had lately; here the current query tells, by a sketch of each page's keys
(`kernels.page_sketch`): what mattered a while ago does not find what is asked for now (see the benchmark for both).
The first page is always read, prompts are computed in full, and no key or value is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np

from windlass.models.key_sketch import KeySketch, SparseReading
from windlass.models.page_pool import PagePool
from windlass.serving.batch import WorkItem
from windlass.serving.sparse_policy import SparsePolicy


class SparseReader:
    """Sparse reading on one engine's memory.

    Args:
        policy: How much is read.
        pool: The memory; its sketch is kept here.
    """

    def __init__(self, policy: SparsePolicy, pool: PagePool) -> None:
        self.policy = policy
        self._sketch = KeySketch(pool)

    def of(self, items: Items[WorkItem]) -> SparseReading | None:
        """What the tokens of a batch read; None when every one reads everything. Prompts do."""
        budgets = [(0, 0)] * len(items)
        for place, item in enumerate(items):
            if item.kind == "decode" and item.n_tokens == 1:
                assert item.seq.view is not None
                budgets[place] = self.policy.pages(len(item.seq.view.runs(1)[0]))
        if not any(budget for budget, _ in budgets):
            return None
        counts = [item.n_tokens for item in items]
        pages, newest = (np.repeat(np.array(column, np.int64), counts) for column in zip(*budgets, strict=True))
        return SparseReading(self._sketch, pages, newest)
