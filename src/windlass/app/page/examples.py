"""Questions that fit the folder, made from the headings of its own files."""

from __future__ import annotations

import re

from windlass.app.services import Services

_WANTED = 4
_SHORTEST, _LONGEST = 8, 48
_TELLING = re.compile(r"[A-Za-z]{4}")


def examples(services: Services) -> list[str]:
    """Up to four questions, each about another file; call it in a thread."""
    with services.pipeline.workspace.reading() as connection:
        rows = connection.execute(
            "SELECT document_id, heading, count(*) FROM chunks WHERE kind = 'prose' AND heading <> ''"
            " GROUP BY document_id, heading ORDER BY document_id, count(*) DESC, min(start) LIMIT 2000"
        ).fetchall()
    chosen: dict[int, str] = {}
    for document, heading, _ in rows:
        last = str(heading).rsplit(" > ", 1)[-1].strip(" .:#*0123456789")
        fits = _SHORTEST <= len(last) <= _LONGEST and _TELLING.search(last) and ">" in str(heading)
        if document not in chosen and fits and last not in chosen.values():
            chosen[document] = last
    # Files apart from one another, so that the questions show the width of the folder.
    spread = list(chosen.values())
    step = max(1, len(spread) // _WANTED)
    return [f"What do the files say about {_inside_a_sentence(topic)}?" for topic in spread[::step][:_WANTED]]


def _inside_a_sentence(topic: str) -> str:
    first = topic.split()[0]
    return topic if any(letter.isupper() for letter in first[1:]) else topic[0].lower() + topic[1:]
