"""`windlass search`: passages, best first."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from windlass.app.options import AsJson, Folder, Offline


def register(app: typer.Typer) -> None:
    app.command("search")(search)


def search(
    folder: Folder,
    query: Annotated[str, typer.Argument(help="Words or a question.", show_default=False)],
    k: Annotated[int | None, typer.Option(help="How many passages.")] = None,
    mode: Annotated[
        str, typer.Option(help="hybrid, lexical (words), dense (meaning) or hops (meaning, then what that leads to).")
    ] = "hybrid",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Find passages in the files of a folder.

    Example: windlass search reports "crane inspection" --k 5
    """
    from windlass.app import terminal
    from windlass.app.ready import ready

    with ready(folder, offline=offline, quiet=as_json) as pipeline:
        hits = pipeline.search(query, k, mode=mode)  # type: ignore[arg-type]  # checked by search itself
        notices = pipeline.notices
    if as_json:
        terminal.print_json([asdict(hit) for hit in hits])
    else:
        terminal.print_hits(hits)
        terminal.print_notices(notices)
