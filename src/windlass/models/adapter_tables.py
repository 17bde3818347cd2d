"""Adapters in the page pool: how one is laid out over pages, and the tables by which a step finds those it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import AdapterError, UsageError
from windlass.models.adapter import MODULES, Adapter, Shapes, module_shapes
from windlass.models.config import ModelConfig

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the vectors of an adapter lie in a run of pages: no vector crosses from one page to the next.

    Attributes:
        page_of, offsets: int64 [vectors], which of its pages, and which element in it.
        begins: int64 [pages + 1], where in `Adapter.values` each page's content begins.
    """

    page_of: Integers
    offsets: Integers
    begins: Integers

    @property
    def pages(self) -> int:
        return len(self.begins) - 1

    @staticmethod
    def of(adapter: Adapter, page_elements: int) -> Layout:
        """Fill pages of `page_elements` numbers one after the other.

        Raises:
            AdapterError: a single row is longer than a page.
        """
        ends = np.cumsum(adapter.lengths)
        if int(adapter.lengths.max()) > page_elements:
            raise AdapterError(
                f"a row of {int(adapter.lengths.max())} numbers does not fit a page of {page_elements}",
                hint="give the engine's memory larger pages",
            )
        begins, first = [0], 0
        while first < len(ends):
            first = int(np.searchsorted(ends, begins[-1] + page_elements, side="right"))
            begins.append(int(ends[first - 1]))
        starts, borders = ends - adapter.lengths, np.array(begins, np.int64)
        page_of = np.searchsorted(borders, starts, side="right") - 1
        return Layout(page_of, starts - borders[page_of], borders)


@dataclass(frozen=True, slots=True)
class PlacedAdapter:
    """An adapter and the pages that it lies in, in the order of its layout."""

    adapter: Adapter
    layout: Layout
    pages: tuple[int, ...]

    def write(self, data: NDArray[np.uint16]) -> None:
        """Copy it to its pages of `data`, uint16 [pages, page elements]."""
        for number, page in enumerate(self.pages):
            low, high = self.layout.begins[number : number + 2]
            data[page, : high - low] = self.adapter.values[low:high]


@dataclass(frozen=True, slots=True)
class AdapterTables:
    """All adapters that lie in a pool, as a compiled step reads them.

    Attributes:
        tables: int64 [adapters, layers, 7, 3], as `Adapter.tables`, counted in `cells`.
        scales: float32 [adapters, layers, 7].
        cells: int64, the element of the pool where each row or column begins.
        shapes: Of the model they are for.
        end: One past the last element of the pool that they use.
    """

    tables: Integers
    scales: NDArray[np.float32]
    cells: Integers
    shapes: Shapes
    end: int

    @staticmethod
    def of(placed: Sequence[PlacedAdapter], page_elements: int, config: ModelConfig) -> AdapterTables:
        """The tables of `placed`; an adapter's number is its place among them.

        Raises:
            UsageError: one of them is for another model.
        """
        tables = np.zeros((len(placed), config.n_layers, len(MODULES), 3), np.int64)
        scales = np.zeros(tables.shape[:3], np.float32)
        cells: list[Integers] = []
        known, end = 0, 0
        for number, one in enumerate(placed):
            if one.adapter.shapes != module_shapes(config) or len(one.adapter.tables) != config.n_layers:
                raise UsageError("the adapter is for a model of another shape")
            tables[number] = one.adapter.tables
            tables[number, ..., 1:] += known
            scales[number] = one.adapter.scales
            where = np.asarray(one.pages, np.int64)[one.layout.page_of] * page_elements + one.layout.offsets
            cells.append(where)
            known, end = known + len(where), max(end, int((where + one.adapter.lengths).max()))
        joined = np.concatenate(cells) if cells else np.zeros(0, np.int64)
        return AdapterTables(tables, scales, joined, module_shapes(config), end)

    @property
    def rank(self) -> int:
        """The highest rank among them."""
        return int(self.tables[..., 0].max(initial=0))


@dataclass(frozen=True, slots=True)
class TokenAdapters:
    """Which adapter each token of a batch has: `slots` int64 [tokens] counts in `resident`, -1 for none."""

    slots: Integers
    resident: AdapterTables

    def require_valid(self, *, tokens: int, config: ModelConfig, elements: int) -> None:
        """Compiled code trusts every index, so each is checked here, or was when the tables were made.

        Args:
            tokens: Of the batch.
            elements: Numbers in the pool.

        Raises:
            UsageError: the wrong number of tokens, an adapter that is not there, another model or pool.
        """
        slots, resident = self.slots, self.resident
        if slots.dtype != np.int64 or slots.shape != (tokens,) or not slots.flags.c_contiguous:
            raise UsageError(
                f"adapters of tokens are {slots.dtype} {slots.shape}, expected contiguous int64 ({tokens},)"
            )
        if tokens and not -1 <= int(slots.min()) <= int(slots.max()) < len(resident.tables):
            raise UsageError(f"a token has adapter {slots.max()}, there are {len(resident.tables)}")
        if resident.shapes != module_shapes(config) or resident.tables.shape[1] != config.n_layers:
            raise UsageError("the adapters are for a model of another shape")
        if resident.end > elements:
            raise UsageError(f"the adapters end at element {resident.end} of a pool of {elements}")
