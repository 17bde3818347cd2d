"""A picture of a graph as options of ECharts, for the page and for a file that stands alone."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
from markupsafe import Markup

from windlass.app.page.rendering import render
from windlass.core.errors import UsageError
from windlass.core.paths import printable
from windlass.graphs.picture import Picture

COLOURS = (
    "#2f7f8f", "#d0873a", "#7a68b8", "#5f9e4a", "#c25a6a", "#4a7fc1", "#a58a2a", "#b066a8", "#3f9f83", "#8f6b4c",
    "#7f96a8", "#c9705a",
)  # fmt: skip
POINTED_OUT = "pointed out"
_REST, _QUIET = "#9aa3a5", "#7d888a"
_SIZED = 600
_LONGEST = 60


def options(picture: Picture, names: Sequence[str], titles: Sequence[str] = ()) -> dict[str, Any]:
    """The chart: the edges, the nodes of each of the twelve largest groups and of all others, and what is pointed out.

    Args:
        names: Of the drawn nodes; cut where they are long.
        titles: Of the largest groups; numbers stand in for missing ones.
    """
    legend = [_legend(picture, group, titles) for group in range(len(_members(picture)))]
    return {
        "animation": False,
        "aria": {"enabled": True, "label": {"description": described(picture)}},
        "grid": {"left": 14, "right": 14, "top": 40, "bottom": 44},
        "legend": {
            "type": "scroll", "bottom": 4, "icon": "circle", "data": legend, "textStyle": {"color": _QUIET},
            "pageTextStyle": {"color": _QUIET},
        },
        "tooltip": {"renderMode": "richText", "formatter": "{b}\n{a}", "confine": True},
        "toolbox": {"right": 8, "feature": {"restore": {"title": "Show all"}, "saveAsImage": {"title": "Save"}}},
        "xAxis": {"type": "value", "show": False, "min": 0, "max": 1},
        "yAxis": {"type": "value", "show": False, "min": 0, "max": 1},
        "dataZoom": [
            {"type": "inside", axis: 0, "filterMode": "none", "minSpan": 1, "throttle": 16}
            for axis in ("xAxisIndex", "yAxisIndex")
        ],
        "series": [
            _lines(picture),
            *_dots(picture, names, legend),
            {"id": POINTED_OUT, "type": "scatter", "silent": True, "z": 4, "data": []},
        ],
    }  # fmt: skip


def pointed_out(picture: Picture, names: Sequence[str], node: int, near: Sequence[int]) -> dict[str, Any]:
    """What changes in the options to point out a node and those near it, all by their places in the picture."""
    points = [
        {
            "name": _short(names[at]), "value": _value(picture, at), "symbolSize": 18 if at == node else 11,
            "itemStyle": {"color": "transparent", "borderColor": "#d0492f", "borderWidth": 3 if at == node else 1.5},
            "label": {"show": at == node, "formatter": "{b}", "position": "top", "color": "#d0492f"},
        }
        for at in (*near, node)
    ]  # fmt: skip
    return {"series": [{"id": POINTED_OUT, "data": points}]}


def described(picture: Picture) -> str:
    """What is drawn, in one sentence."""
    groups = int(picture.group.max()) + 1 if len(picture.group) else 0
    part = "" if len(picture.nodes) == picture.num_nodes else f"{len(picture.nodes):,} of "
    return f"{part}{picture.num_nodes:,} nodes, {picture.num_edges:,} edges, {groups:,} groups"


def page_file(picture: Picture, names: Sequence[str], title: str) -> str:
    """An HTML file that shows the picture anywhere: the library is inside it, nothing is loaded."""
    library, name = _library()
    data = json.dumps({"options": options(picture, names), "export": name})
    return str(
        render(
            "graph_file",
            title=printable(title),
            described=described(picture),
            data=Markup(data.replace("<", "\\u003c")),
            library=Markup(library.replace("</script", "<\\/script")),
        )
    )


def _members(picture: Picture) -> list[np.ndarray]:
    """Places of the nodes of each series, the seeds not told apart."""
    shown = np.minimum(picture.group, len(COLOURS))
    return [np.flatnonzero(shown == group) for group in range(int(shown.max()) + 1 if len(shown) else 0)]


def _legend(picture: Picture, group: int, titles: Sequence[str]) -> str:
    count = len(_members(picture)[group])
    if group == len(COLOURS):
        return f"all other groups ({count:,})"
    return f"{_short(titles[group]) if group < len(titles) else f'group {group + 1}'} ({count:,})"


def _lines(picture: Picture) -> dict[str, Any]:
    """All edges, drawn in portions so that moving never waits for them."""
    points = np.round(np.stack([picture.x, picture.y], axis=1).astype(np.float64), 4)
    return {
        "type": "lines", "coordinateSystem": "cartesian2d", "silent": True, "large": True, "largeThreshold": 1,
        "progressive": 1000, "progressiveThreshold": 1000, "z": 1, "data": points[picture.edges].tolist(),
        "lineStyle": {"color": "#8b979a", "opacity": 0.25, "width": 0.6},
    }  # fmt: skip


def _dots(picture: Picture, names: Sequence[str], legend: Sequence[str]) -> list[dict[str, Any]]:
    """Of each group two series: its nodes with the most around them, sized by it, and all others, drawn in one go."""
    rank = np.lexsort((np.arange(len(picture.degree)), -picture.degree))
    sized, labelled, seeds = set(rank[:_SIZED].tolist()), _labelled(picture, rank), set(picture.seeds.tolist())
    spread = np.sqrt(picture.degree / max(1e-9, float(picture.degree.max(initial=0))))
    base = 3.9 if len(picture.nodes) > _SIZED else 6.0
    series: list[dict[str, Any]] = []
    for group, members in enumerate(_members(picture)):
        colour = COLOURS[group] if group < len(COLOURS) else _REST
        many = [node for node in members.tolist() if node not in sized and node not in seeds]
        few = []
        for node in members.tolist():
            if node in seeds or node in sized:
                point: dict[str, Any] = {"name": _short(names[node]), "value": _value(picture, node)}
                point["symbolSize"] = round(base + 10 * float(spread[node]), 1)
                if node in seeds:
                    point |= {"symbol": "diamond", "symbolSize": 20}
                if node in labelled:
                    point["label"] = {"show": True}
                few.append(point)
        common = {"type": "scatter", "name": legend[group], "itemStyle": {"color": colour}}
        rows = [[*_value(picture, node), _short(names[node])] for node in many]
        series += [
            common | {
                "z": 2, "large": True, "largeThreshold": 1, "symbolSize": base, "data": rows,
                "dimensions": ["x", "y", "node", "name"], "encode": {"x": 0, "y": 1, "itemName": 3},
            },
            common | {
                "z": 3, "data": few, "labelLayout": {"hideOverlap": True}, "emphasis": {"scale": 1.5},
                "label": {
                    "formatter": "{b}", "position": "right", "fontSize": 11, "color": _QUIET, "width": 130,
                    "overflow": "truncate",
                },
            },
        ]  # fmt: skip
    return series


def _value(picture: Picture, node: int) -> list[float]:
    return [round(float(picture.x[node]), 4), round(float(picture.y[node]), 4), node]


def _labelled(picture: Picture, rank: np.ndarray) -> set[int]:
    """The greatest node of each of the largest groups, and the seeds."""
    _, first = np.unique(picture.group[rank], return_index=True)
    return {*rank[first[: len(COLOURS)]].tolist(), *picture.seeds.tolist()}


def _short(name: str) -> str:
    clean = printable(" ".join(name.split()))
    return clean if len(clean) <= _LONGEST else clean[: _LONGEST - 1] + "…"


def _library() -> tuple[str, str]:
    """The source of ECharts as the page framework ships it, and under which name it is exported."""
    try:
        folder = resources.files("nicegui.elements.echart") / "dist"
        entry = (folder / "index.js").read_text("utf-8")
        bundle = re.search(r'import\{(\w+) as \w+,.*?\}from"\./([^"]+)"', entry)
        if bundle is not None:
            return (folder / bundle[2]).read_text("utf-8"), bundle[1]
    except (ModuleNotFoundError, FileNotFoundError):
        pass
    raise UsageError("the installed NiceGUI ships no ECharts", hint="install nicegui 3.0 or later")
