"""Codes of a few bits a number, with bounds: no row is nearer or farther than its code says.

After SQUASH (Oakley and Ferhatosmanoglu, "SQUASH: Serverless and Distributed Quantization-based Attributed Vector
Similarity Search", 2025), which follows the VA+-file. Vectors are turned so that their variance falls from dimension
to dimension; bits go one by one to the dimension with the most left; each dimension is cut into cells by a Lloyd
iteration of its own. Differences: one rotation serves all parts, since on a laptop's parts the matrices would outweigh
the codes; the outermost cells end at the extreme rows, so the bounds hold for every row; codes lie row by row, because
only rows that survived cheaper codes are looked at.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.blas import one_thread_a_product
from windlass.kernels.lookup import field_sums_of, pack_codes

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Bound = Literal["lower", "upper", "middle"]

_MOST_BITS = 8
_ROUNDS = 250
_ARRAYS = ("mean", "basis", "widths", "lows", "highs", "middles")


class OSQ:
    """Optimised scalar quantisation, fitted to a sample.

    Attributes:
        mean, basis: float32 `[d]` and `[d, d]`: a row is coded as `(x - mean) @ basis`.
        widths: int64 `[d]`: bits of each dimension.
        lows, highs, middles: float32 `[cells]`: ends and mean of each cell, dimension after dimension.

    Example:
        >>> points = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
        >>> codes = OSQ.fit(points, 4 * 8)
        >>> packed = codes.encode(points)
        >>> near = codes.sums(points[3], packed, np.arange(500), "lower", product=False)
        >>> packed.shape, int(near.argmin())
        ((500, 5), 3)
    """

    def __init__(self, mean: Floats, basis: Floats, widths: Rows, lows: Floats, highs: Floats, middles: Floats) -> None:
        self.mean, self.basis, self.widths = mean, basis, widths
        self.lows, self.highs, self.middles = lows, highs, middles
        sizes = 1 << widths
        self._firsts = np.cumsum(sizes) - sizes
        self._dim_of = np.repeat(np.arange(len(widths)), sizes)
        coded = np.flatnonzero(widths)
        self._fields = (np.cumsum(widths) - widths)[coded], widths[coded], self._firsts[coded]
        self._fixed = self._firsts[widths == 0]

    @staticmethod
    def fit(points: Floats, bits: int) -> OSQ:
        """Fit to float32 `[n, d]`; a row will take `bits` bits, a byte more for reading, and no dimension over 8."""
        mean = points.mean(axis=0, dtype=np.float64)
        centred = points - mean
        with one_thread_a_product():
            variances, basis = np.linalg.eigh(centred.T @ centred / max(1, len(points)))
        order = np.argsort(-variances, kind="stable")
        basis = basis[:, order].astype(np.float32)
        widths = allocated_bits(np.maximum(variances[order], 0), bits)
        turned = (points - mean.astype(np.float32)) @ basis
        cells = [
            _cells(np.sort(turned[:, dim].astype(np.float64)), 1 << int(widths[dim])) for dim in range(len(widths))
        ]
        lows, highs, middles = (np.concatenate([cell[part] for cell in cells]).astype(np.float32) for part in range(3))
        return OSQ(mean.astype(np.float32), basis, widths, lows, highs, middles)

    @property
    def row_bytes(self) -> int:
        return (int(self.widths.sum()) + 7) // 8 + 1

    @property
    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    def encode(self, points: Floats) -> NDArray[np.uint8]:
        """uint8 `[n, row_bytes]`; cells at the ends grow to hold these rows."""
        turned = self._turned(points)
        codes = np.zeros(turned.shape, np.uint8)
        for dim, (first, width) in enumerate(zip(self._firsts.tolist(), self.widths.tolist(), strict=True)):
            last = first + (1 << width) - 1
            values = turned[:, dim]
            if len(values):
                self.lows[first] = min(self.lows[first], values.min())
                self.highs[last] = max(self.highs[last], values.max())
            if width:
                codes[:, dim] = np.searchsorted(self.lows[first + 1 : last + 1], values, side="right")
        packed = pack_codes(codes, self.widths)
        return np.concatenate([packed.T, np.zeros((len(points), 1), np.uint8)], axis=1)

    def decode(self, packed: NDArray[np.uint8]) -> Floats:
        """float32 `[n, d]`: the middle of each cell, turned back."""
        turned = np.empty((len(packed), len(self.widths)), np.float32)
        bits = np.unpackbits(packed, axis=1, bitorder="little")
        at = 0
        for dim, (first, width) in enumerate(zip(self._firsts.tolist(), self.widths.tolist(), strict=True)):
            code = bits[:, at : at + width].astype(np.int64) @ (1 << np.arange(width))
            turned[:, dim] = self.middles[first + code]
            at += width
        return turned @ self.basis.T + self.mean

    def tables(self, query: Floats, bound: Bound, *, product: bool) -> Floats:
        """float32 `[cells]`: what each cell adds to a row's squared distance, or, for a product, to its negative."""
        if product:
            asked = (query @ self.basis)[self._dim_of]
            ends = -asked * self.lows, -asked * self.highs
            pick = {"lower": np.minimum, "upper": np.maximum}
            return np.asarray(-asked * self.middles if bound == "middle" else pick[bound](*ends))
        asked = self._turned(query[None])[0][self._dim_of]
        if bound == "middle":
            return np.asarray(np.square(asked - self.middles))
        below, above = self.lows - asked, asked - self.highs
        if bound == "lower":
            return np.asarray(np.square(np.maximum(np.maximum(below, above), 0)))
        return np.asarray(np.square(np.maximum(np.abs(below), np.abs(above))))

    def sums(self, query: Floats, packed: NDArray[np.uint8], chosen: Rows, bound: Bound, *, product: bool) -> Floats:
        """float32 `[m]`: for rows of `packed`, a bound of the squared distance to the query or an estimate of it.

        Args:
            product: Of the dot product with its sign turned instead, up to the query's product with `mean`.
        """
        tables = self.tables(query, bound, product=product)
        out = np.empty(len(chosen), np.float32)
        base = np.float32(tables[self._fixed].sum())
        field_sums_of(packed, *self._fields, tables, base, chosen, out)
        return out

    def arrays(self) -> dict[str, Any]:
        """For `packing.pack`."""
        return {name: getattr(self, name) for name in _ARRAYS}

    @staticmethod
    def restored(arrays: Mapping[str, Any]) -> OSQ:
        return OSQ(*(arrays[name] for name in _ARRAYS))

    def _turned(self, points: Floats) -> Floats:
        with one_thread_a_product():
            return np.asarray((points - self.mean) @ self.basis, np.float32)


def allocated_bits(variances: NDArray[np.float64], bits: int) -> Rows:
    """int64 `[d]`: bits one by one to where the most variance is left; each takes three quarters of it away.

    Example:
        >>> allocated_bits(np.array([16.0, 1.0, 0.0]), 4).tolist()
        [3, 1, 0]
    """
    widths = np.zeros(len(variances), np.int64)
    waiting = [(-float(variance), dim) for dim, variance in enumerate(variances) if variance > 0]
    heapq.heapify(waiting)
    for _ in range(bits):
        if not waiting:
            break
        energy, dim = heapq.heappop(waiting)
        widths[dim] += 1
        if widths[dim] < _MOST_BITS:
            heapq.heappush(waiting, (energy / 4, dim))
    return widths


def _cells(values: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], ...]:
    """Low ends, high ends and means of `count` cells over sorted values: quantiles, then Lloyd's iteration."""
    sums, squares = np.concatenate([[0], np.cumsum(values)]), np.concatenate([[0], np.cumsum(values**2)])
    inner = np.quantile(values, np.arange(1, count) / count)
    before = np.inf
    for _ in range(_ROUNDS):
        ends = np.concatenate([[0], np.searchsorted(values, inner), [len(values)]])
        sizes = np.diff(ends)
        # A cell without values, among equal ones, has no width and its border as its mean.
        borders = np.concatenate([[values[0]], inner, [values[-1]]])
        middles = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), borders[:-1])
        middles = np.maximum.accumulate(middles)
        error = float((np.diff(squares[ends]) - sizes * middles**2).sum())
        if count == 1 or before - error < 0.005 * before:
            break
        inner, before = (middles[:-1] + middles[1:]) / 2, error
    # In float32 from here on: a border is the same number where a row is coded and where a bound is computed.
    borders = np.concatenate([[values[0]], inner, [values[-1]]]).astype(np.float32).astype(np.float64)
    return borders[:-1], borders[1:], middles
