"""`windlass ask`: one question, one answer with citations."""

from __future__ import annotations

from typing import Annotated

import typer

from windlass.app.options import AsJson, Folder, Offline


def register(app: typer.Typer) -> None:
    app.command("ask")(ask)


def ask(
    folder: Folder,
    question: Annotated[str, typer.Argument(help="In plain words.", show_default=False)],
    k: Annotated[int | None, typer.Option(help="How many passages to look at.")] = None,
    mode: Annotated[str, typer.Option(help="auto, extract (quote the files) or generate (the model writes).")] = "",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question from the files of a folder.

    Every sentence carries a number that stands for a span of a file. When the files do not hold the answer, it says
    so. A folder that is not indexed yet is indexed first.

    Example: windlass ask reports "When was the crane inspected?"
    """
    from windlass.app import terminal
    from windlass.app.ready import ready

    with ready(folder, offline=offline, quiet=as_json) as pipeline:
        answer = pipeline.ask(question, k=k, mode=mode or None)
    if as_json:
        terminal.print_json(answer.to_dict())
    else:
        terminal.print_answer(answer)
