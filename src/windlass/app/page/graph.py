"""Graphs as pictures: the folder's passages by meaning, and every graph kept in the folder; what is near a node."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from markupsafe import Markup

from windlass.app.http.services import Services
from windlass.app.page import graph_chart
from windlass.app.page.rendering import render
from windlass.core.errors import NotFound
from windlass.graphs.graph import Graph
from windlass.graphs.pagerank import personalized_pagerank
from windlass.graphs.picture import Picture, draw
from windlass.retrieval.passage_map import group_words, passage_map

PASSAGES = "passages"
"""The graph of the folder itself; one that somebody imported has the name of its folder behind a slash."""
_NEAR = 12
_GROUPS = 12
_KEPT = 4


@dataclass(frozen=True)
class Shown:
    """A graph with its picture; `names` and `opens` (which text to open, or "") are those of the drawn nodes."""

    graph: Graph
    picture: Picture
    names: list[str]
    opens: list[str]
    titles: list[str]

    @property
    def options(self) -> dict[str, Any]:
        return graph_chart.options(self.picture, self.names, self.titles)


class Shelf:
    """The graphs of one folder; those that were drawn last are kept."""

    def __init__(self, services: Services) -> None:
        self._pipeline = services.pipeline
        self._folder = services.pipeline.workspace.state / "graphs"
        self._drawn: dict[tuple[str, object], Shown] = {}
        self._lock = threading.Lock()

    def names(self) -> list[tuple[str, str]]:
        """Name and title of each graph, that of the passages first."""
        own = [(PASSAGES, "Passages by meaning")] if self._pipeline.encoder is not None else []
        stored = sorted(path.parent.name for path in self._folder.glob("*/manifest.json"))
        return [*own, *((f"/{name}", name) for name in stored)]

    def shown(self, name: str) -> Shown:
        """One graph, drawn anew when it has changed.

        Raises:
            NotFound: There is none of that name.
            GraphFormatError: It is damaged.
        """
        if name not in dict(self.names()):
            raise NotFound(f"no graph {name!r} in this folder", hint="choose one of those shown")
        path = self._folder / name.removeprefix("/")
        version: object = self._pipeline.generation()
        if name != PASSAGES:
            version = (path / "manifest.json").stat().st_mtime_ns
        with self._lock:
            if (name, version) not in self._drawn:
                made = self._passages() if name == PASSAGES else shown_graph(Graph.open(path))
                while len(self._drawn) >= _KEPT:
                    del self._drawn[next(iter(self._drawn))]
                self._drawn[name, version] = made
            return self._drawn[name, version]

    def _passages(self) -> Shown:
        encoder = self._pipeline.encoder
        assert encoder is not None
        found = passage_map(self._pipeline.workspace, encoder.fingerprint)
        picture = draw(found.graph)
        texts = [f"{passage.title} {passage.text}" for passage in found.passages]
        return Shown(
            found.graph,
            picture,
            [f"{PurePath(passage.source).name}: {passage.text[:80]}" for passage in found.passages],
            [f"{passage.doc_id} {passage.start} {passage.end}" for passage in found.passages],
            group_words(texts, picture.group),
        )


_SHELVES: WeakKeyDictionary[Services, Shelf] = WeakKeyDictionary()


def shelf_of(services: Services) -> Shelf:
    """The one shelf of these services."""
    return _SHELVES.setdefault(services, Shelf(services))


def heading(services: Services, chosen: str) -> Markup:
    """The view's title and the choice of graphs."""
    shelf = shelf_of(services)
    folder = services.pipeline.workspace.state / "graphs"
    return render("graph_head", names=shelf.names(), chosen=chosen, folder=str(folder))


def near(shown: Shown, node: int) -> list[tuple[int, float]]:
    """The drawn nodes that matter most to a drawn node, by personalised PageRank: places in the picture, and scores."""
    picture = shown.picture
    ids, scores = personalized_pagerank(
        shown.graph, int(picture.nodes[node]), tol=1e-4, method="push", top=4 * _NEAR
    )[0]  # fmt: skip
    places = np.minimum(np.searchsorted(picture.nodes, ids), len(picture.nodes) - 1)
    drawn = (picture.nodes[places] == ids) & (places != node)
    return list(zip(places[drawn].tolist(), scores[drawn].tolist(), strict=True))[:_NEAR]


def about(shown: Shown, node: int | None = None, near: Sequence[tuple[int, float]] = ()) -> Markup:
    """What stands below the picture: what is near `node` (a place in the picture), and the groups."""
    picture = shown.picture
    groups = []
    for group, size in enumerate(np.bincount(picture.group)[:_GROUPS].tolist()):
        members = np.flatnonzero(picture.group == group)
        greatest = members[np.argsort(-picture.degree[members], kind="stable")[:3]]
        groups.append((_title(shown, group), size, "; ".join(shown.names[at][:60] for at in greatest)))
    return render(
        "graph_about",
        error="",
        described=graph_chart.described(picture),
        passages=any(shown.opens),
        chosen=None if node is None else (shown.names[node], shown.opens[node], _title(shown, picture.group[node])),
        near=[(place, shown.names[place], score, shown.opens[place]) for place, score in near],
        groups=groups,
    )


def problem(error: str) -> Markup:
    """In place of what stands below the picture."""
    return render("graph_about", error=error)


def _title(shown: Shown, group: Any) -> str:
    return shown.titles[group] if group < len(shown.titles) else f"group {group + 1}"


def shown_graph(graph: Graph) -> Shown:
    """A graph with its own names."""
    picture = draw(graph)
    names = [str(name) for name in graph.ids(picture.nodes)]
    return Shown(graph, picture, names, [""] * len(names), [])
