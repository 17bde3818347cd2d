"""Search: a line for the query, then the passages with their place and the rank that each list gave them."""

from __future__ import annotations

import time

from markupsafe import Markup

from windlass.app.http.search_api import LONGEST_QUESTION
from windlass.app.http.services import Services
from windlass.app.page.rendering import render
from windlass.core.errors import WindlassError
from windlass.retrieval.pipeline import SearchMode

MODES: tuple[SearchMode, ...] = ("hybrid", "lexical", "dense", "hops")
_SHOWN = 12


def form(query: str, mode: str) -> Markup:
    """The query line."""
    return render("search_form", query=query, mode=mode, longest=LONGEST_QUESTION)


async def results(services: Services, query: str, mode: str) -> Markup:
    """What was found for `query`; a problem is shown in its place."""
    query = query.strip()[:LONGEST_QUESTION]
    known: SearchMode = next((name for name in MODES if name == mode), "hybrid")
    hits, error, started = None, "", time.perf_counter()
    if query:
        try:
            hits = await services.call(services.pipeline.search, query, _SHOWN, mode=known)
        except WindlassError as problem:
            error = str(problem)
    return render(
        "results",
        hits=hits,
        error=error,
        query=query,
        mode=known,
        seconds=time.perf_counter() - started,
        both=any(len(hit.ranks) > 1 for hit in hits or ()),
        notices=services.pipeline.notices,
    )
