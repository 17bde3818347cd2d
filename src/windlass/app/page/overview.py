"""The first screen: what the folder holds, what was twice, what could not be read, and how far the work is."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from windlass.app.http.services import Services
from windlass.app.page import wording
from windlass.app.page.rendering import render
from windlass.app.page.table_picture import picture
from windlass.app.progress_state import ProgressView, StageView
from windlass.retrieval.overview import Overview

_LISTED = 100
_STAGE_TITLES = {
    "scan": "Looking through the folder",
    "hash": "Looking for copies",
    "read": "Reading files",
    "profile": "Profiling tables",
    "contain": "Looking for tables in tables",
    "compare": "Looking for near-copies",
    "join": "Looking for joins",
    "group": "Grouping files by meaning",
    "overlap": "Looking for shared rows",
    "embed": "Indexing by meaning",
    "pull": "Fetching models",
}
_MEANINGS = {
    "indexed": "found by words and meaning",
    "parsed": "found by words",
    "seen": "waiting to be read",
    "failed": "not readable",
}


def heading(services: Services) -> Markup:
    """The folder's name and path."""
    folder = services.pipeline.workspace.folder
    return Markup('<h1 class="folder-title">{}</h1><p class="folder-path">{}</p>').format(
        wording.printable(folder.name or str(folder)), wording.printable(str(folder))
    )


def body(overview: Overview, *, working: bool) -> Markup:
    """Everything below the heading and the progress."""
    return render(
        "overview",
        overview=overview,
        working=working,
        passages_note=passages_note(overview),
        table_rows=sum(table.rows for table in overview.tables),
        copies=sum(len(group) - 1 for group in overview.duplicates),
        largest=max((count for count, _ in overview.by_kind.values()), default=1),
        states=[(state, overview.by_state[state]) for state in _MEANINGS if overview.by_state.get(state)],
        meanings=_MEANINGS,
        limit=_LISTED,
        picture=picture(overview.joins),
    )


def passages_note(overview: Overview) -> str:
    """How the passages can be found by now."""
    done, wanted = overview.embedded
    if not overview.passages:
        return "nothing searchable yet"
    if overview.encoder is None:
        return "by words"
    if done >= wanted:
        return "by words and meaning"
    return f"by meaning: {100 * done // wanted} %"


def progress(view: ProgressView) -> Markup:
    """The running job, empty when there is none."""
    return render("progress", stages=[_stage(stage) for stage in view.stages] if view.active else [])


def status(overview: Overview, view: ProgressView) -> Markup:
    """One line that is always in sight."""
    current = view.current
    percent = _percent(current) if current else None
    title = stage_title(current.name) if current else ""
    sentence = f"{overview.passages:,} passages ready" if overview.passages else "Nothing to search yet"
    return render("status", current=current, title=title, percent=percent, overview=overview, sentence=sentence)


def stage_title(name: str) -> str:
    return _STAGE_TITLES.get(name, name.capitalize())


def _stage(stage: StageView) -> dict[str, Any]:
    in_bytes = stage.unit == "bytes"
    return {
        "title": stage_title(stage.name),
        "running": stage.running,
        "done_text": wording.size(stage.done) if in_bytes else f"{stage.done:,}",
        "total": stage.total,
        "total_text": wording.size(stage.total or 0) if in_bytes else f"{stage.total or 0:,} {stage.unit}",
        "percent": _percent(stage),
        "eta": wording.duration(stage.eta_seconds) if stage.eta_seconds else "",
        "detail": stage.detail,
    }


def _percent(stage: StageView) -> int | None:
    if stage.total is None:
        return None if stage.running else 100
    return 100 if not stage.total else min(100, 100 * stage.done // stage.total)
