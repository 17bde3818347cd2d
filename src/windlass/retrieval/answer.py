"""From found passages to an answer in which every sentence is tied to a span of a file, or to none at all.

>>> answer = Answerer(settings).answer(question, hits, document_text=text_of)      # doctest: +SKIP
>>> answer.text                                                                     # doctest: +SKIP
'The harbour master approves dredging works. [1]'
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from windlass.core.errors import ModelError, UsageError
from windlass.core.settings import Settings
from windlass.retrieval.candidates import Candidate, DocumentText
from windlass.retrieval.confidence import evidence, features
from windlass.retrieval.extract import Scored, choose, rank_candidates
from windlass.retrieval.generate import Carried, ChatModel, check, pack, write
from windlass.retrieval.questions import Question
from windlass.retrieval.support import SentenceEncoder
from windlass.retrieval.terms import Idf, local_idf
from windlass.retrieval.types import Answer, Citation, Hit, Sentence

NOT_FOUND = "Not found in your files."
MODES = ("auto", "extract", "generate")


class Answerer:
    """Answers questions from passages. Holds no state but its settings; safe to share between threads.

    Args:
        settings: `answer.min_evidence` and `answer.max_context_tokens` are read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.answer

    def answer(
        self,
        question: str,
        hits: Sequence[Hit],
        *,
        document_text: DocumentText,
        encoder: SentenceEncoder | None = None,
        model: ChatModel | None = None,
        mode: str = "auto",
        idf: Idf | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """An answer from `hits`, or "not found" with the nearest passages when they hold none.

        Args:
            question: In plain words.
            hits: Found passages, best first.
            document_text: The text of a document by id; every citation is verified against it.
            encoder: Judges nearness of meaning; None: words alone.
            model: Writes in mode `generate`.
            mode: `extract` quotes; `generate` lets the model write and checks every sentence; `auto` lets the model
                write when one is given and quotes when more than half of its sentences are not carried by the files.
            idf: Rarity of words in the whole index; None estimates it from `hits`.
            on_token: Hears what the model writes as it comes, before it is checked.

        Raises:
            UsageError: The question is empty, or the mode unknown.
        """
        if not question.strip():
            raise UsageError("the question is empty", hint="write what you want to know")
        if mode not in MODES:
            raise UsageError(f"unknown answer mode {mode!r}", hint=f"use one of {', '.join(MODES)}")
        run = _Run(question, hits, document_text, idf)
        parsed = Question.parse(question, run.idf)
        scored = rank_candidates(parsed, hits, run.document_text, encoder)
        run.lap("rank")
        run.evidence = evidence(features(parsed, scored, encoder), has_encoder=encoder is not None)
        if run.evidence < self._settings.min_evidence:
            return run.not_found()
        if mode != "extract":
            written = self._generate(run, parsed, encoder, model, mode, on_token)
            if written is not None:
                return written
        return run.finish([_quoted(item) for item in choose(parsed, scored)], "extract", len(hits))

    def _generate(
        self,
        run: _Run,
        question: Question,
        encoder: SentenceEncoder | None,
        model: ChatModel | None,
        mode: str,
        on_token: Callable[[str], None] | None,
    ) -> Answer | None:
        """The model's checked answer; None when quoting should answer instead (the notices say why)."""
        if model is None:
            if mode == "generate":
                run.notices.append("no language model is at hand: the answer is quoted, not written")
            return None
        packed = pack(question.text, run.hits, run.document_text, model, self._settings.max_context_tokens)
        if packed is None:
            run.notices.append("no passage fits the model's window with this question: the answer is quoted")
            return None
        try:
            draft = write(packed, model, on_token, reuse=self._settings.reuse == "chunks")
        except ModelError as error:
            run.notices.append(f"{error} (the answer is quoted, not written)")
            return None
        run.usage = {"prompt_tokens": packed.tokens, "completion_tokens": draft.pieces}
        run.approximations = draft.approximations
        run.lap("generate")
        sentences = check(draft.text, question, packed.hits, run.document_text, run.idf, encoder)
        run.lap("check")
        carried = [item for item in sentences if item.candidate is not None]
        if mode == "auto" and 2 * len(carried) <= len(sentences):
            return None
        if len(packed.hits) < len(run.hits):
            run.notices.append(f"used {len(packed.hits)} of {len(run.hits)} passages; the others did not fit")
        if len(carried) < len(sentences):
            dropped = len(sentences) - len(carried)
            run.notices.append(f"{dropped} of {len(sentences)} written sentences dropped: the files do not carry them")
        return run.finish(carried, "generate", len(packed.hits))


class _Run:
    """One question on its way: the texts it read, its clock, its notices."""

    def __init__(self, question: str, hits: Sequence[Hit], document_text: DocumentText, idf: Idf | None) -> None:
        self.question = question
        self.hits = tuple(hits)
        self.idf = idf or local_idf([hit.passage.text for hit in hits])
        self.evidence: float | None = None
        self.notices: list[str] = []
        self.usage: dict[str, int] = {}
        self.approximations: Mapping[str, Mapping[str, float]] = {}
        self.timings: dict[str, float] = {}
        self._load = document_text
        self._texts: dict[int, str] = {}
        self._last = time.perf_counter()

    def document_text(self, doc_id: int) -> str:
        if doc_id not in self._texts:
            self._texts[doc_id] = self._load(doc_id)
        return self._texts[doc_id]

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.timings[stage] = now - self._last
        self._last = now

    def not_found(self, mode: str = "extract") -> Answer:
        return self._answer(False, NOT_FOUND, (), mode, len(self.hits))

    def finish(self, carried: Sequence[Carried], mode: str, passages_used: int) -> Answer:
        """Number the citations in order of appearance; a sentence without a verified one is dropped."""
        numbers: dict[tuple[int, int, int], int] = {}
        sentences = []
        for item in carried:
            citation = self._verified(item, numbers)
            if citation is not None:
                sentences.append(Sentence(item.text, (citation,)))
        if not sentences:
            return self.not_found(mode)
        text = " ".join(f"{sentence.text} [{sentence.citations[0].number}]" for sentence in sentences)
        return self._answer(True, text, tuple(sentences), mode, passages_used)

    def _verified(self, item: Carried, numbers: dict[tuple[int, int, int], int]) -> Citation | None:
        candidate = item.candidate
        if candidate is None:
            return None
        passage = candidate.passage
        quote = self.document_text(passage.doc_id)[candidate.start : candidate.end]
        if len(quote) != candidate.end - candidate.start or not quote.strip():
            return None
        number = numbers.setdefault((passage.doc_id, candidate.start, candidate.end), len(numbers) + 1)
        return Citation(
            number=number,
            file=passage.source,
            doc_id=passage.doc_id,
            start=candidate.start,
            end=candidate.end,
            quote=quote,
            support=round(item.support, 3),
            page=passage.page,
            rows=_rows(candidate),
            table=passage.table,
            via=candidate.hit.via,
        )

    def _answer(self, found: bool, text: str, sentences: tuple[Sentence, ...], mode: str, used: int) -> Answer:
        return Answer(
            question=self.question,
            found=found,
            text=text,
            sentences=sentences,
            mode=mode,
            hits=self.hits,
            passages_used=used,
            passages_found=len(self.hits),
            notices=tuple(self.notices),
            timings=self.timings,
            usage=self.usage,
            approximations=self.approximations,
            evidence=self.evidence,
        )


def _quoted(item: Scored) -> Carried:
    """A quotation carries itself."""
    return Carried(item.text, item.candidate, 1.0)


def _rows(candidate: Candidate) -> tuple[int, int] | None:
    return candidate.passage.rows if candidate.row is None else (candidate.row, candidate.row)
