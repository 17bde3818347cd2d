"""`windlass serve`: the page and the API over a folder that is indexed, without watching it."""

from __future__ import annotations

from typing import Annotated

import typer

from windlass.app.options import Folder


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)


def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a key.")] = "",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: any.")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the web page beside the API.")] = True,
    scheduler: Annotated[
        str, typer.Option(help="stall-free, prefill-first, hybrid or decode-first; by default as set.")
    ] = "",
    tbt_slo: Annotated[
        str, typer.Option(help="Time that may lie between two tokens of an answer, as 100ms; by default as set.")
    ] = "",
    kv_sparsity: Annotated[
        float, typer.Option(min=0, max=0.95, help="Share of a long context that new tokens do not read, as 0.8.")
    ] = 0.0,
) -> None:
    """Serve search, answers and an OpenAI-compatible API over an indexed folder.

    Routes: /v1/chat/completions, /v1/embeddings, /v1/models, /api/search, /api/ask, /health. The model `windlass`
    answers from the folder with citations, any other name is the plain model.

    Example: windlass serve reports --port 9000
    """
    from windlass.app.http import server
    from windlass.app.lift import warm_up
    from windlass.app.terminal import print_started
    from windlass.core.errors import NotFound
    from windlass.core.workspace import Workspace
    from windlass.retrieval.pipeline import Pipeline

    if folder.is_dir() and not Workspace.exists(folder):
        raise NotFound(f"{folder} is not indexed", hint=f"run `windlass up {folder}` first")
    overrides = {
        "server.host": host or None,
        "server.port": port,
        "server.scheduler": scheduler or None,
        "server.tbt_slo_ms": _milliseconds(tbt_slo) if tbt_slo else None,
        "server.kv_sparsity_percent": round(100 * kv_sparsity) or None,
    }
    with Pipeline.open(folder, overrides=overrides) as pipeline:
        warm_up(pipeline)
        server.serve(pipeline, page=page, on_ready=print_started)


def _milliseconds(text: str) -> int:
    """100ms, 0.1s, or a number of milliseconds."""
    from windlass.core.errors import UsageError

    number, factor = text.strip().lower(), 1.0
    for unit, size in (("ms", 1.0), ("s", 1000.0)):
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), size
            break
    try:
        return round(float(number) * factor)
    except (ValueError, OverflowError):
        raise UsageError(f"--tbt-slo is {text!r}", hint="write it as 100ms or 0.1s") from None
