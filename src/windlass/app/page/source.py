"""The text behind a citation or a search result: the exact span, marked, in its surroundings."""

from __future__ import annotations

import re

from markupsafe import Markup

from windlass.app.http.services import Services
from windlass.app.page import wording
from windlass.app.page.rendering import kind_title, render
from windlass.core.errors import WindlassError
from windlass.retrieval.pipeline import SourceView

AROUND = 1_500
_MOST_AROUND = 20_000
# A long line that does not end a sentence, followed by more text; the replacement keeps every position.
_INSIDE_PARAGRAPH = re.compile(r"([^\n]{50}[^\n.:;])\n(?=[^\W_])")
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
    before, quote, after = _unwrapped(view)
    return render(
        "source",
        view=view,
        before=before,
        quote=quote,
        after=after,
        where=_where(view),
        mono=view.kind in _MONOSPACED,
        more=more,
    )


def _where(view: SourceView) -> str:
    parts = [kind_title(view.kind)]
    if view.page is not None:
        parts.append(wording.place(view.page, None, None))
    if view.faithful:
        parts.append(f"line {view.line:,}")
    return ", ".join(parts)


def _unwrapped(view: SourceView) -> tuple[str, str, str]:
    """The three texts; the line ends that a PDF has inside a paragraph become spaces, so that it reads as one."""
    if view.kind != "pdf":
        return view.text_before, view.quote, view.text_after
    whole = _INSIDE_PARAGRAPH.sub(r"\1 ", view.text_before + view.quote + view.text_after)
    start, end = len(view.text_before), len(view.text_before) + len(view.quote)
    return whole[:start], whole[start:end], whole[end:]
