"""`windlass up`: the main job."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from windlass.app.options import AsJson, Folder, Offline

if TYPE_CHECKING:
    from windlass.app.terminal import TerminalProgress
    from windlass.retrieval.pipeline import IndexReport, Pipeline

DEMO_QUESTION = "How much under-keel clearance does a vessel need in the approach channel?"


def register(app: typer.Typer) -> None:
    app.command("up")(up)


def up(
    folder: Folder,
    ask: Annotated[str, typer.Option("--ask", help="Ask this once the folder is indexed.")] = "",
    web: Annotated[bool, typer.Option("--web/--no-web", help="Serve the page and the API; without: exit.")] = True,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a key.")] = "",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the page and the API; 0: any.")] = None,
    embed: Annotated[bool, typer.Option("--embed/--no-embed", help="Make vectors for search by meaning.")] = True,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Index files again when they change.")] = True,
    offline: Offline = False,
    demo: Annotated[bool, typer.Option("--demo", hidden=True)] = False,
    as_json: AsJson = False,
) -> None:
    """Clean, index and serve a folder.

    Reads every file, finds duplicates and tables, makes the folder searchable, fetches the two default models when
    they are missing, and opens a page with search and answers at localhost. Files stay where they are; all that is
    kept about them is in FOLDER/.windlass. Run it again at any time: it goes on where it stopped.

    Example: windlass up reports --ask "Who approves travel?"
    """
    from windlass.app.terminal import TerminalProgress
    from windlass.core.errors import UsageError
    from windlass.retrieval.pipeline import Pipeline

    overrides = {"server.host": host or None, "server.port": port}
    if as_json and web:
        raise UsageError("--json prints the summary of one run", hint="add --no-web")
    progress = TerminalProgress(quiet=as_json)
    with Pipeline.open(folder, overrides=overrides) as pipeline:
        question = ask or (DEMO_QUESTION if demo else "")
        if not web:
            report = _lift(pipeline, progress, offline, embed)
            _show(pipeline, report, question, as_json)
            return
        _serve(pipeline, progress, question, offline=offline, embed=embed, watch=watch)


def _lift(pipeline: Pipeline, progress: TerminalProgress, offline: bool, embed: bool) -> IndexReport:
    from windlass.app.lift import lift

    try:
        return lift(pipeline, progress, offline=offline, embed=embed)
    finally:
        progress.close()


def _show(pipeline: Pipeline, report: IndexReport, question: str, as_json: bool) -> None:
    from windlass.app import terminal

    overview = pipeline.overview()
    answer = pipeline.ask(question) if question else None
    if as_json:
        card = terminal.overview_json(overview, report)
        terminal.print_json({**card, "answer": answer.to_dict() if answer else None})
        return
    terminal.print_card(overview, report)
    terminal.print_notices(report.notices)
    if answer is not None:
        print(f"\n? {question}\n")
        terminal.print_answer(answer)


def _serve(
    pipeline: Pipeline, progress: TerminalProgress, question: str, *, offline: bool, embed: bool, watch: bool
) -> None:
    """The page is up at once and shows the progress of the work behind it."""
    from windlass.app.http.server import Started, serve
    from windlass.app.lift import FanOut, keep_up, lift, warm_up
    from windlass.app.progress_state import PageProgress
    from windlass.app.terminal import print_started
    from windlass.core.errors import WindlassError

    page_progress = PageProgress()
    both = FanOut(progress, page_progress)
    stop = threading.Event()

    def work() -> None:
        try:
            report = lift(pipeline, both, offline=offline, embed=embed)
            progress.close()
            _show(pipeline, report, question, as_json=False)
            warm_up(pipeline)
            if watch:
                keep_up(pipeline, both, stop, on_change=_tell_change, on_error=_tell_error)
        except WindlassError as error:
            _tell_error(error)
        finally:
            page_progress.job_over()

    worker = threading.Thread(target=work, name="lift", daemon=True)

    def announce(started: Started) -> None:
        print_started(started)
        worker.start()

    try:
        serve(
            pipeline,
            progress=page_progress,
            on_ready=announce,
        )
    finally:
        stop.set()
        progress.cancel()
        if worker.is_alive():
            worker.join(timeout=10)


def _tell_change(report: IndexReport) -> None:
    from windlass.app.terminal import run_line

    print(f"indexed: {run_line(report)}", flush=True)


def _tell_error(error: Exception) -> None:
    print(f"windlass: {error}", file=sys.stderr, flush=True)
