"""What a cell of `CellSpace` computes before any training.

Weights are drawn by the operation and by the hash of what goes into it, never by the number of a node or an edge, so
cells that are the same function after renumbering, with edges that carry nothing, or with sums taken in another order,
give the same output. Two convolutions of the same kind and input are taken for one: telling them apart would split
cells that differ only in which of the two is used.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from windlass.core.randomness import uniform
from windlass.patterns.functional_hash import mix, mix_text
from windlass.patterns.search_space import AVG_POOL, CONV_1X1, NONE, SKIP, Cell, CellSpace

Values = NDArray[np.float64]
_IMAGES, _CHANNELS, _SIDE, _VIEWS = 10, 4, 6, 12
_KEY_BITS = 24


class CellProbe:
    """Runs cells on eight random images, one of zeros and one of ones, in float64.

    Outputs of an operation are kept by the input they came from, so a space of cells costs little more than its
    different parts.

    Args:
        space: Which cells.
    """

    def __init__(self, space: CellSpace) -> None:
        self.space = space
        self._done: dict[tuple[int, int, int], tuple[Values, int]] = {}

    def run(self, candidate: Cell, seed: int) -> Iterable[float]:
        values: list[tuple[Values, int] | None] = [self._input(seed)]
        for target in range(1, self.space.nodes):
            arriving = [
                self._apply(op, values[source], seed)  # type: ignore[arg-type]
                for (source, to), op in zip(self.space.edges, candidate, strict=True)
                if to == target and op != NONE and values[source] is not None
            ]
            values.append(self._sum(arriving, seed))
        last = values[-1]
        return [0.0] * _VIEWS if last is None else _views(last[0], seed).tolist()

    def _input(self, seed: int) -> tuple[Values, int]:
        images = uniform(seed, "images", size=(_IMAGES, _CHANNELS, _SIDE, _SIDE)) * 4 - 2
        images[-2], images[-1] = 0, 1
        return images, _key(images, seed)

    def _sum(self, arriving: list[tuple[Values, int]], seed: int) -> tuple[Values, int] | None:
        """None is a value of zeros; a single value keeps its key."""
        if len(arriving) < 2:
            return arriving[0] if arriving else None
        ordered = sorted(arriving, key=lambda each: each[1])
        total = np.sum([each[0] for each in ordered], axis=0)
        return total, _key(total, seed)

    def _apply(self, op: int, value: tuple[Values, int], seed: int) -> tuple[Values, int]:
        if op == SKIP:
            return value
        place = (op, value[1], seed)
        if place not in self._done:
            made = _pool(value[0]) if op == AVG_POOL else _convolve(value[0], op, value[1], seed)
            self._done[place] = (made, _key(made, seed))
        return self._done[place]


def _views(values: Values, seed: int) -> Values:
    """float64 `[12]`: weighted sums of everything, which differ when anything does."""
    weights = uniform(seed, "views", size=(_VIEWS, values.size)) - 0.5
    made: Values = weights @ values.ravel()
    return made


def _key(values: Values, seed: int) -> int:
    state = 0
    for number in _views(values, seed)[:3]:
        state = mix(state, float(number), _KEY_BITS)
    return state


def _convolve(values: Values, op: int, key: int, seed: int) -> Values:
    """ReLU, convolution, normalisation over the batch."""
    size = 1 if op == CONV_1X1 else 3
    weights = uniform(mix_text(seed, f"{op} {key}"), "weights", size=(_CHANNELS, _CHANNELS, size, size)) - 0.5
    rectified = np.maximum(values, 0)
    if size == 1:
        made = np.einsum("oi,nihw->nohw", weights[:, :, 0, 0], rectified)
    else:
        padded = np.pad(rectified, ((0, 0), (0, 0), (1, 1), (1, 1)))
        made = np.zeros_like(values)
        for down in range(3):
            for right in range(3):
                part = padded[:, :, down : down + _SIDE, right : right + _SIDE]
                made += np.einsum("oi,nihw->nohw", weights[:, :, down, right], part)
    centred = made - made.mean(axis=(0, 2, 3), keepdims=True)
    result: Values = centred / np.sqrt((centred**2).mean(axis=(0, 2, 3), keepdims=True) + 1e-5)
    return result


def _pool(values: Values) -> Values:
    """Mean over 3 x 3, of what is inside the image."""
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
    inside = np.pad(np.ones((_SIDE, _SIDE)), 1)
    total, count = np.zeros_like(values), np.zeros((_SIDE, _SIDE))
    for down in range(3):
        for right in range(3):
            total += padded[:, :, down : down + _SIDE, right : right + _SIDE]
            count += inside[down : down + _SIDE, right : right + _SIDE]
    return total / count
