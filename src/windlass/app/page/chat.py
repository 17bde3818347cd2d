"""Questions and answers: every sentence numbered to its source, and "not found" said plainly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from markupsafe import Markup

from windlass.app.http.generation import Generation
from windlass.app.http.search_api import LONGEST_QUESTION
from windlass.app.http.services import Services
from windlass.app.page.rendering import render
from windlass.core.errors import Cancelled, WindlassError
from windlass.retrieval.types import Answer, Citation, Sentence

_REDRAW_SECONDS = 0.12
_NEAREST = 3
_ITEM_MARK = 6
_HOW = {
    "extract": "quoted from the files",
    "generate": "written by the model, checked against the files",
    "table": "computed from the table",
}


@dataclass(frozen=True, slots=True)
class _Part:
    text: str
    citations: tuple[Citation, ...]
    break_before: bool


@dataclass(frozen=True, slots=True)
class _Source:
    citation: Citation
    heading: str
    quote: str  # empty when the answer itself is the quote


class Conversation:
    """The chat of one browser tab: one question at a time.

    Args:
        services: The folder's services.
        add_turn: Makes room for a new turn and returns how to fill it.
        on_busy: Told when a question begins and ends.
    """

    def __init__(
        self, services: Services, add_turn: Callable[[], Callable[[Markup], None]], on_busy: Callable[[bool], None]
    ) -> None:
        self._services = services
        self._add_turn = add_turn
        self._on_busy = on_busy
        self._running: Generation[Answer] | None = None

    async def ask(self, question: str) -> None:
        """Ask, and show what comes. Ignored while another answer is being made."""
        question = question.strip()[:LONGEST_QUESTION]
        if not question or self._running is not None:
            return
        show = self._add_turn()
        show(running(question, "", waiting=self._services.queue.depth > 0))
        try:
            self._running = generation = self._services.queue.submit(self._work(question))
            self._on_busy(True)
            started = time.perf_counter()
            await self._follow(generation, question, show)
            answer = await generation.result()
            show(answered(answer, time.perf_counter() - started))
        except Cancelled:
            show(failed(question, "Stopped."))
        except WindlassError as error:
            show(failed(question, str(error)))
        finally:
            self._running = None
            self._on_busy(False)

    def stop(self) -> None:
        """End the running answer, if any."""
        if self._running is not None:
            self._running.cancel()

    def _work(self, question: str) -> Callable[[Generation[Answer]], Answer]:
        def work(generation: Generation[Answer]) -> Answer:
            return self._services.pipeline.ask(question, on_token=generation.emit)

        return work

    async def _follow(self, generation: Generation[Answer], question: str, show: Callable[[Markup], None]) -> None:
        draft = ""
        async for piece in generation.pieces(silence=1.0):
            draft += piece
            show(running(question, draft, waiting=False))
            if piece:
                await asyncio.sleep(_REDRAW_SECONDS)


def running(question: str, draft: str, *, waiting: bool) -> Markup:
    """A turn whose answer is being made."""
    text = "Waiting for another answer to end" if waiting else "Looking for it in your files"
    return render("turn", question=question, error="", answer=None, draft=draft, waiting=text)


def failed(question: str, error: str) -> Markup:
    """A turn that ended without an answer."""
    return render("turn", question=question, error=error, answer=None, draft="", waiting="")


def answered(answer: Answer, seconds: float) -> Markup:
    """A turn with its answer."""
    cited: dict[int, Citation] = {}
    for sentence in answer.sentences:
        for citation in sentence.citations:
            cited.setdefault(citation.number, citation)
    return render(
        "turn",
        question=answer.question,
        error="",
        answer=answer,
        parts=_parts(answer.sentences),
        sources=[_source(cited[number], answer) for number in sorted(cited)],
        nearest=[hit.passage for hit in answer.hits[:_NEAREST]],
        verdict=_verdict(answer),
        how=_HOW.get(answer.mode, answer.mode),
        seconds=seconds,
    )


def _parts(sentences: tuple[Sentence, ...]) -> list[_Part]:
    """Sentences as they are set: list items and table rows on lines of their own."""
    parts: list[_Part] = []
    for sentence in sentences:
        text = sentence.text.strip()
        alone = text.startswith(("- ", "* ")) or any(citation.rows for citation in sentence.citations)
        parts.append(_Part(text, sentence.citations, alone and bool(parts)))
    return parts


def _source(citation: Citation, answer: Answer) -> _Source:
    heading = next(
        (
            hit.passage.title
            for hit in answer.hits
            if hit.passage.doc_id == citation.doc_id and hit.passage.start <= citation.start < hit.passage.end
        ),
        "",
    )
    quote = " ".join(citation.quote.split())
    # An item's number or bullet aside, a quoting answer would only say the same again.
    said = any(
        text in quote and len(quote) - len(text) <= _ITEM_MARK
        for text in (" ".join(sentence.text.split()) for sentence in answer.sentences)
    )
    if citation.rows or heading == PurePath(citation.file).stem:
        heading = ""
    return _Source(citation, heading, "" if said else citation.quote)


def _verdict(answer: Answer) -> str:
    looked = answer.passages_found
    if not looked:
        return "No passage has anything to do with the question."
    passages = "The nearest passage was" if looked == 1 else f"The {looked} nearest passages were"
    return f"{passages} read, and none holds an answer that could be cited."
