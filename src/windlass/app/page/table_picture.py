"""A picture of how tables fit together: boxes in columns, those that refer on the left, what they refer to right."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from markupsafe import Markup

from windlass.app.page.wording import printable
from windlass.lake.table_joins import TableJoin

_WIDTH, _HEIGHT, _ACROSS, _DOWN = 190, 30, 290, 46
_LETTERS = 24


def picture(joins: Sequence[TableJoin]) -> Markup:
    """The joins as one SVG element; empty when there are none."""
    if not joins:
        return Markup()
    layers = _layers(joins)
    columns: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for table in sorted(layers):
        columns[layers[table]].append(table)
    places = {
        table: (10 + layer * _ACROSS, 10 + row * _DOWN)
        for layer, tables in columns.items()
        for row, table in enumerate(tables)
    }
    width = 20 + max(columns) * _ACROSS + _WIDTH
    height = 20 + (max(map(len, columns.values())) - 1) * _DOWN + _HEIGHT
    lines = Markup().join(_line(join, places) for join in joins)
    boxes = Markup().join(_box(table, place) for table, place in places.items())
    return Markup(
        '<svg class="joins" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}{}</svg>'
    ).format(width, height, width, height, f"{len(joins)} joins between {len(places)} tables", lines, boxes)


def _layers(joins: Sequence[TableJoin]) -> dict[tuple[str, str], int]:
    """How far right each table stands: one further than whatever refers to it. Joins close no cycle."""
    layers: dict[tuple[str, str], int] = {}
    for join in joins:
        layers.setdefault((join.child_file, join.child), 0)
        layers.setdefault((join.parent_file, join.parent), 0)
    others = [join for join in joins if (join.child_file, join.child) != (join.parent_file, join.parent)]
    for _ in layers:
        for join in others:
            parent = (join.parent_file, join.parent)
            layers[parent] = max(layers[parent], min(len(layers), layers[join.child_file, join.child] + 1))
    return layers


def _line(join: TableJoin, places: dict[tuple[str, str], tuple[int, int]]) -> Markup:
    x1, y1 = places[join.child_file, join.child]
    x2, y2 = places[join.parent_file, join.parent]
    right, bend = x1 + _WIDTH, (x2 - x1 - _WIDTH) // 2
    y, end = y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
    if (x1, y1) == (x2, y2):  # a table that refers to itself
        path = f"M{right},{y1 + 8} c34,-6 34,{_HEIGHT - 10} 0,{_HEIGHT - 16}"
    else:
        path = f"M{right},{y} C{right + bend},{y} {x2 - bend},{end} {x2},{end}"
    says = f"{', '.join(join.columns)} = {', '.join(join.keys)} ({join.probability:.0%})"
    return Markup('<path d="{}"><title>{}</title></path>').format(path, printable(says))


def _box(table: tuple[str, str], place: tuple[int, int]) -> Markup:
    name = printable(table[1])
    short = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
    return Markup(
        '<g><rect x="{}" y="{}" width="{}" height="{}" rx="6"/><text x="{}" y="{}">{}</text><title>{}</title></g>'
    ).format(*place, _WIDTH, _HEIGHT, place[0] + 10, place[1] + 20, short, printable(table[0]))
