"""`windlass batch`: a file of requests, answered without a server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from windlass.app.options import AsJson


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Many requests at once.\n\nExample: windlass batch run questions.jsonl --out answers.jsonl",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("run")(run)
    app.add_typer(group, name="batch")


def run(
    source: Annotated[Path, typer.Argument(help="Lines as for /v1/batches.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Where the answers go, in the order of the lines.", show_default=False)],
    model: Annotated[str, typer.Option(help="A name, a folder or a .gguf file.")] = "smollm2-135m-instruct",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Of one answer, where a line does not say.")] = 1024,
    as_json: AsJson = False,
) -> None:
    """Answer every line of a file of chat requests.

    What prompts begin with in common is computed once. Answers are kept as they are made, so a run that was stopped
    goes on with --resume.

    Example: windlass batch run questions.jsonl --out answers.jsonl
    """
    from windlass.app import terminal
    from windlass.app.batch_file import run_file
    from windlass.models import store
    from windlass.models.generate import LocalModel

    loaded = LocalModel.load(store.locate(model), engine="compiled")
    progress = terminal.TerminalProgress(quiet=as_json)
    try:
        report = run_file(loaded, source, out, progress, resume=resume, most_tokens=max_tokens)
    finally:
        progress.close()
    if as_json:
        terminal.print_json(asdict(report))
        return
    share = report.saved_tokens / report.prompt_tokens if report.prompt_tokens else 0.0
    terminal.stdout().print(
        f"{report.answered} answered, {report.known} known from before, {report.failed} with errors; "
        f"{share:.0%} of {report.prompt_tokens:,} prompt tokens needed no computing"
    )
