"""Questions that fit the folder, made from the headings of its own files."""

from __future__ import annotations

import re

from windlass.app.http.services import Services

_WANTED = 4
_SHORTEST, _LONGEST = 6, 44
_TELLING = re.compile(r"[A-Za-z]{4}")
_ODD = re.compile(r"[:?!/\\|<>{}#*]")
_QUESTION_WORDS = ("What is ", "What are ", "Who is ", "Who may ", "Where is ", "When is ")


def examples(services: Services) -> list[str]:
    """Up to four questions, each about another file; call it in a thread."""
    with services.pipeline.workspace.reading() as connection:
        rows = connection.execute(
            "SELECT document_id, heading, count(*) FROM chunks WHERE kind = 'prose' AND heading LIKE '% > %'"
            " GROUP BY document_id, heading ORDER BY document_id, count(*) DESC, min(start) LIMIT 2000"
        ).fetchall()
    chosen: dict[int, str] = {}
    for document, heading, _ in rows:
        first, *_, last = str(heading).split(" > ")
        if document not in chosen and _fits(first) and _fits(last) and last not in first:
            chosen[document] = _question(first, last)
    # Files apart from one another, so that the questions show the width of the folder.
    spread = list(dict.fromkeys(chosen.values()))
    step = max(1, len(spread) // _WANTED)
    return spread[::step][:_WANTED]


def _fits(heading: str) -> bool:
    return _SHORTEST <= len(heading) <= _LONGEST and bool(_TELLING.search(heading)) and not _ODD.search(heading)


def _question(document: str, section: str) -> str:
    if section.startswith(_QUESTION_WORDS):
        return f"{section}?"
    return f"What does \u201c{document}\u201d say about \u201c{section}\u201d?"
