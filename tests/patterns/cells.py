"""A symbolic normal form of the cells: what the numeric hash must agree with."""

from __future__ import annotations

from collections import Counter

from windlass.patterns.search_space import AVG_POOL, NONE, SKIP, Cell, CellSpace


def normal_form(space: CellSpace, cell: Cell) -> frozenset:
    """The output as a sum of terms; pooling goes into sums, convolutions do not, zeros vanish."""
    values: list[Counter] = [Counter({("input",): 1})]
    for target in range(1, space.nodes):
        total: Counter = Counter()
        for (source, to), op in zip(space.edges, cell, strict=True):
            value = values[source] if to == target else None
            if not value or op == NONE:
                continue
            if op == SKIP:
                total += value
            elif op == AVG_POOL:
                total += Counter({("pool", term): count for term, count in value.items()})
            else:
                total[(op, frozenset(value.items()))] += 1
        values.append(total)
    return frozenset(values[-1].items())
