"""`windlass eval`: how good search and answers are on your own questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from windlass.app.options import AsJson, Folder, Offline


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    folder: Folder,
    questions: Annotated[Path, typer.Option("--questions", help="JSON lines, see below.", show_default=False)],
    k: Annotated[int, typer.Option(min=1, max=100, help="Depth at which a passage counts as found.")] = 5,
    mode: Annotated[str, typer.Option(help="auto, extract or generate.")] = "auto",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Ask every question of a file and compare with the answers in it.

    Each line is one object with: id, question, answer, answers (accepted forms), file, quote (the supporting text),
    kind. Questions of kind "unanswerable" must be met with "not found".

    Example: windlass eval examples/harbour --questions examples/harbour_questions.jsonl
    """
    from windlass.app import terminal
    from windlass.app.ready import ready
    from windlass.retrieval.evaluate import evaluate_questions

    progress = terminal.TerminalProgress(quiet=as_json)
    with ready(folder, offline=offline, quiet=as_json) as pipeline:
        try:
            report = evaluate_questions(pipeline, questions, k=k, mode=mode, progress=progress)
        finally:
            progress.close()
    if as_json:
        terminal.print_json(report.to_dict())
        return
    print(f"questions                {report.questions} ({report.answerable} answerable), mode {report.mode}")
    print(f"recall@{k:<17} {report.recall:.3f} (file {report.file_recall:.3f})")
    print(f"answer accuracy          {report.accuracy:.3f} (answerable {report.answered_accuracy:.3f})")
    print(f"abstained when it should {report.abstained:.3f}, when it should not {report.wrongly_abstained:.3f}")
    print(f"citation precision       {report.citation_precision:.3f}, all verbatim: {report.all_verified}")
    print(f"seconds an answer        {report.seconds[0]:.2f} median, {report.seconds[1]:.2f} p95")
    for outcome in report.outcomes:
        if not outcome.correct:
            rank = "not found" if outcome.rank is None else f"rank {outcome.rank}"
            print(f"  wrong: {outcome.id} {outcome.question} (passage {rank})")
