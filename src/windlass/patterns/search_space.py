"""Spaces that a search walks in: what a candidate is, how one is drawn, and what is one change away.

`CellSpace` is that of NAS-Bench-201 (Dong and Yang, 2020): a cell of four nodes, every earlier node joined to every
later one by one of five operations, the values that arrive at a node added up.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from windlass.core.errors import UsageError
from windlass.core.randomness import integers

C = TypeVar("C")
Cell = tuple[int, ...]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV_1X1, CONV_3X3, AVG_POOL = range(5)


class SearchSpace(Protocol[C]):
    """What a search needs of a space. Both draws are functions of the seed alone."""

    def sample(self, seed: int) -> C:
        """Any candidate."""
        ...

    def mutate(self, candidate: C, seed: int) -> C:
        """A candidate that differs in one place."""
        ...


class CellSpace:
    """All cells of some nodes.

    Attributes:
        edges: (from, to) in the order of a cell's numbers: those into node 1, into node 2, ...

    Example:
        >>> space = CellSpace()
        >>> cell = space.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|skip_connect~0|none~1|avg_pool_3x3~2|")
        >>> cell
        (3, 0, 1, 1, 0, 4)
    """

    def __init__(self, nodes: int = 4) -> None:
        if nodes < 2:
            raise UsageError(f"a cell of {nodes} nodes has no edge")
        self.nodes = nodes
        self.edges = tuple((i, j) for j in range(1, nodes) for i in range(j))

    @property
    def size(self) -> int:
        """How many cells there are."""
        return int(len(OPERATIONS) ** len(self.edges))

    def cell(self, number: int) -> Cell:
        """The cell of a number below `size`, the first edge its highest digit."""
        digits = []
        for _ in self.edges:
            number, digit = divmod(number, len(OPERATIONS))
            digits.append(digit)
        return tuple(reversed(digits))

    def parse(self, text: str) -> Cell:
        """The cell of a NAS-Bench-201 string.

        Raises:
            UsageError: It is none of this space.
        """
        found: dict[tuple[int, int], int] = {}
        for target, part in enumerate(text.split("+"), start=1):
            for edge in part.strip("|").split("|"):
                name, _, source = edge.partition("~")
                if name not in OPERATIONS or not source.isdecimal():
                    raise UsageError(f"no cell: {edge!r} in {text!r}", hint="an edge is written operation~node")
                found[int(source), target] = OPERATIONS.index(name)
        if tuple(sorted(found, key=lambda edge: (edge[1], edge[0]))) != self.edges:
            raise UsageError(f"no cell of {self.nodes} nodes: {text!r}")
        return tuple(found[edge] for edge in self.edges)

    def text(self, cell: Cell) -> str:
        """The NAS-Bench-201 string of a cell."""
        parts = []
        for target in range(1, self.nodes):
            into = [(edge, op) for edge, op in zip(self.edges, cell, strict=True) if edge[1] == target]
            parts.append("|" + "|".join(f"{OPERATIONS[op]}~{source}" for (source, _), op in into) + "|")
        return "+".join(parts)

    def sample(self, seed: int) -> Cell:
        return tuple(int(op) for op in integers(seed, "cell", size=len(self.edges), high=len(OPERATIONS)))

    def mutate(self, candidate: Cell, seed: int) -> Cell:
        place = int(integers(seed, "edge", size=1, high=len(self.edges))[0])
        step = 1 + int(integers(seed, "operation", size=1, high=len(OPERATIONS) - 1)[0])
        changed = (candidate[place] + step) % len(OPERATIONS)
        return (*candidate[:place], changed, *candidate[place + 1 :])
