"""The text behind a citation or a search result: the exact span, marked, in its surroundings."""

from __future__ import annotations

from markupsafe import Markup

from windlass.app.page import wording
from windlass.app.page.templates import kind_title, render
from windlass.app.services import Services
from windlass.core.errors import WindlassError
from windlass.retrieval.pipeline import SourceView

AROUND = 1_500
_MOST_AROUND = 20_000
_MONOSPACED = frozenset({"code", "csv", "tsv", "json", "jsonl", "parquet", "xlsx"})


async def panel(services: Services, doc_id: int, start: int, end: int, around: int = AROUND) -> Markup:
    """The panel's content; a problem (the file is gone by now) is shown in its place."""
    around = max(0, min(around, _MOST_AROUND))
    try:
        view = await services.call(services.pipeline.context, doc_id, start, end, around=around)
    except WindlassError as error:
        return render("source_gone", error=str(error))
    whole = len(view.text_before) < around and len(view.text_after) < around
    more = "" if whole or around >= _MOST_AROUND else f"{doc_id} {start} {end} {min(around * 4, _MOST_AROUND)}"
    return render("source", view=view, where=_where(view), mono=view.kind in _MONOSPACED, more=more)


def _where(view: SourceView) -> str:
    parts = [kind_title(view.kind)]
    if view.page is not None:
        parts.append(wording.place(view.page, None, None))
    if view.faithful:
        parts.append(f"line {view.line:,}")
    return ", ".join(parts)
