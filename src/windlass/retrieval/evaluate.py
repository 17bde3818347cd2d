"""How good search and answers are on a set of questions with known answers.

A question is one JSON line: `id`, `question`, `answer`, `answers` (accepted forms), `file` (gold file, or a list),
`quote` (gold text in it), `kind`; a question of kind `unanswerable` must be met with "not found".

>>> report = evaluate_questions(pipeline, "questions.jsonl")       # doctest: +SKIP
>>> report.recall, report.accuracy                                  # doctest: +SKIP
(0.97, 0.83)
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from windlass.core.errors import NotFound, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.retrieval.metrics import auroc, contains_answer, exact_match, token_f1
from windlass.retrieval.types import Answer, Citation, Hit, Passage

UNANSWERABLE = "unanswerable"
_WORD = re.compile(r"[^\W_]+(?:[.:/-][^\W_]+)*")


class Asked(Protocol):
    """What is measured: `windlass.retrieval.pipeline.Pipeline`, or anything like it."""

    def search(self, query: str, k: int) -> list[Hit]: ...

    def ask(self, question: str, *, mode: Any) -> Answer: ...

    def document_text(self, doc_id: int) -> str: ...


@dataclass(frozen=True, slots=True)
class GoldQuestion:
    """One line of a question file."""

    id: str
    question: str
    answers: tuple[str, ...]
    files: tuple[str, ...]
    quotes: tuple[str, ...]
    kind: str

    @property
    def answerable(self) -> bool:
        return self.kind != UNANSWERABLE


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one question.

    Attributes:
        rank: Of the first passage that holds a gold quote, None when none of the first `k` does.
        gold_share: Share of the question's gold quotes that the first `k` passages hold.
        file_rank: Of the first passage of a gold file.
        correct: An accepted answer stands in the answer, or "not found" was said where that is right.
        cited_gold: Whether some citation points into a gold file; None when nothing was answered or expected.
        verified: Every citation's quote stands verbatim at its span.
        evidence: How likely the passages answer it, as the answer says; None when it does not.
        seconds: For the answer, search included.
    """

    id: str
    question: str
    kind: str
    answer: str
    expected: str
    mode: str
    found: bool
    rank: int | None
    gold_share: float
    file_rank: int | None
    correct: bool
    exact: float
    f1: float
    cited_gold: bool | None
    verified: bool
    evidence: float | None
    seconds: float


@dataclass(frozen=True)
class EvaluationReport:
    """Averages over a question file, and every outcome they are made of.

    Attributes:
        questions, answerable: How many.
        recall: Share of gold quotes in the first `k` passages, averaged over answerable questions. A question over
            two files that finds one of them counts half.
        any_recall: Share of answerable questions with at least one gold quote in the first `k` passages.
        file_recall: The same for the gold file.
        accuracy: Share of all questions that are `correct`.
        answered_accuracy: Share of answerable questions that are `correct`.
        abstained: Share of unanswerable questions met with "not found"; NaN when there are none.
        wrongly_abstained: Share of answerable questions met with "not found".
        f1, exact: SQuAD measures over answerable questions.
        citation_precision: Share of answers to answerable questions with a citation into a gold file.
        citation_recall: Of the correct answers, the share citing a gold file.
        abstention_auroc: Answerable against unanswerable by evidence; NaN when it is not known.
        all_verified: No citation anywhere whose quote is not verbatim at its span.
        by_kind: Kind -> (questions, correct).
        seconds: Median and 95th percentile of one answer.
    """

    k: int
    mode: str
    questions: int
    answerable: int
    recall: float
    any_recall: float
    file_recall: float
    accuracy: float
    answered_accuracy: float
    abstained: float
    wrongly_abstained: float
    f1: float
    exact: float
    citation_precision: float
    citation_recall: float
    abstention_auroc: float
    all_verified: bool
    by_kind: dict[str, tuple[int, int]]
    seconds: tuple[float, float]
    outcomes: tuple[Outcome, ...] = field(repr=False, default=())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form; what is not known is null."""
        plain = asdict(self)
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in plain.items()}


def read_questions(path: str | Path) -> list[GoldQuestion]:
    """The questions of a JSONL file.

    Raises:
        NotFound: There is no such file.
        UsageError: A line is no JSON object or lacks a field; the message names the line.
    """
    return list(_parse_lines(Path(path)))


def evaluate_questions(
    pipeline: Asked,
    questions_path: str | Path,
    *,
    k: int = 5,
    mode: str = "auto",
    limit: int | None = None,
    progress: Progress | None = None,
) -> EvaluationReport:
    """Search and ask every question of the file.

    Args:
        pipeline: An indexed folder.
        questions_path: JSON lines, see the module.
        k: Depth at which a gold passage counts as found.
        mode: Answer mode.
        limit: Only the first so many questions.
        progress: Hears of the stage `questions`.

    Raises:
        NotFound, UsageError: As `read_questions`.
        Cancelled: Stopped through `progress`.
    """
    progress = progress or Silent()
    questions = read_questions(questions_path)[:limit]
    progress.start("questions", len(questions), "questions")
    outcomes = []
    for question in questions:
        check_cancelled(progress)
        outcomes.append(_outcome(pipeline, question, k, mode))
        progress.advance("questions", 1, question.id)
    progress.finish("questions")
    return summarise(outcomes, k, mode)


def summarise(outcomes: Sequence[Outcome], k: int, mode: str) -> EvaluationReport:
    """The averages over outcomes."""
    gold = [item for item in outcomes if item.kind != UNANSWERABLE]
    hopeless = [item for item in outcomes if item.kind == UNANSWERABLE]
    answered = [item for item in gold if item.found]
    right = [item for item in answered if item.correct]
    by_kind: dict[str, tuple[int, int]] = {}
    for item in outcomes:
        total, correct = by_kind.get(item.kind, (0, 0))
        by_kind[item.kind] = (total + 1, correct + item.correct)
    times = sorted(item.seconds for item in outcomes)
    return EvaluationReport(
        k=k,
        mode=mode,
        questions=len(outcomes),
        answerable=len(gold),
        recall=_mean([item.gold_share for item in gold]),
        any_recall=_mean([item.rank is not None for item in gold]),
        file_recall=_mean([item.file_rank is not None for item in gold]),
        accuracy=_mean([item.correct for item in outcomes]),
        answered_accuracy=_mean([item.correct for item in gold]),
        abstained=_mean([not item.found for item in hopeless]),
        wrongly_abstained=_mean([not item.found for item in gold]),
        f1=_mean([item.f1 for item in gold]),
        exact=_mean([item.exact for item in gold]),
        citation_precision=_mean([bool(item.cited_gold) for item in answered]),
        citation_recall=_mean([bool(item.cited_gold) for item in right]),
        abstention_auroc=auroc(_evidence(gold), _evidence(hopeless)),
        all_verified=all(item.verified for item in outcomes),
        by_kind=dict(sorted(by_kind.items())),
        seconds=(times[len(times) // 2], times[min(len(times) - 1, int(0.95 * len(times)))]) if times else (0.0, 0.0),
        outcomes=tuple(outcomes),
    )


def holds_quote(passage: Passage, question: GoldQuestion, span: str = "") -> bool:
    """Whether the passage is of a gold file (or a copy of it) and holds a gold text of the question."""
    return bool(held_quotes(passage, question, span))


def held_quotes(passage: Passage, question: GoldQuestion, span: str = "") -> set[int]:
    """Which of the question's gold texts the passage holds, by number; empty when it is of no gold file.

    Args:
        passage: A found passage.
        question: One without a quote asks for the file alone, which counts as its only gold text.
        span: The passage's stretch of the document, which for table rows is written otherwise than its text.

    Only words and figures are compared: how a table's cells are set apart is the reader's affair.
    """
    if not is_gold_file(passage, question):
        return set()
    if not question.quotes:
        return {0}
    texts = [_plain(passage.text), _plain(span)]
    return {number for number, quote in enumerate(question.quotes) if any(_plain(quote) in text for text in texts)}


def gold_share(held: Sequence[set[int]], question: GoldQuestion) -> float:
    """The share of the question's gold texts that some of the found passages hold."""
    return len(set().union(*held)) / max(1, len(question.quotes))


def is_gold_file(passage: Passage, question: GoldQuestion) -> bool:
    return bool({passage.source, *passage.also} & set(question.files))


def _outcome(pipeline: Asked, question: GoldQuestion, k: int, mode: str) -> Outcome:
    hits = pipeline.search(question.question, k)
    begun = time.perf_counter()
    answer = pipeline.ask(question.question, mode=mode)
    seconds = time.perf_counter() - begun
    said = " ".join(sentence.text for sentence in answer.sentences)
    citations = [citation for sentence in answer.sentences for citation in sentence.citations]
    if question.answerable:
        correct = answer.found and contains_answer(said, question.answers)
    else:
        correct = not answer.found
    passages = [hit.passage for hit in hits]
    spans = [pipeline.document_text(passage.doc_id)[passage.start : passage.end] for passage in passages]
    held = [held_quotes(passage, question, span) for passage, span in zip(passages, spans, strict=True)]
    return Outcome(
        id=question.id,
        question=question.question,
        kind=question.kind,
        answer=answer.text,
        expected=question.answers[0] if question.answers else "",
        mode=answer.mode,
        found=answer.found,
        rank=next((rank for rank, numbers in enumerate(held, 1) if numbers), None),
        gold_share=gold_share(held, question),
        file_rank=next((rank for rank, passage in enumerate(passages, 1) if is_gold_file(passage, question)), None),
        correct=correct,
        exact=exact_match(said, question.answers),
        f1=token_f1(said, question.answers),
        cited_gold=_cites_gold(citations, answer, question),
        verified=all(_is_verbatim(pipeline, citation) for citation in citations),
        evidence=answer.evidence,
        seconds=seconds,
    )


def _cites_gold(citations: list[Citation], answer: Answer, question: GoldQuestion) -> bool | None:
    if not question.answerable or not answer.found:
        return None
    copies = {path: {hit.passage.source, *hit.passage.also} for hit in answer.hits for path in [hit.passage.source]}
    gold = set(question.files)
    return any(copies.get(citation.file, {citation.file}) & gold for citation in citations)


def _is_verbatim(pipeline: Asked, citation: Citation) -> bool:
    return pipeline.document_text(citation.doc_id)[citation.start : citation.end] == citation.quote


def _parse_lines(path: Path) -> Iterator[GoldQuestion]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise NotFound(f"no such file: {path}", hint="give a JSONL file of questions") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            answers = [fields.get("answer"), *(fields.get("answers") or [])]
            yield GoldQuestion(
                id=str(fields.get("id", number)),
                question=fields["question"],
                answers=tuple(dict.fromkeys(str(answer) for answer in answers if answer not in (None, ""))),
                files=_texts([*(fields.get("files") or _texts(fields.get("file"))), *(fields.get("also") or [])]),
                quotes=_texts(fields.get("quotes") or fields.get("quote")),
                kind=str(fields.get("kind") or "plain"),
            )
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise UsageError(
                f"{path}, line {number}: not a question ({error})", hint="each line is an object with `question`"
            ) from error


def _evidence(outcomes: Sequence[Outcome]) -> list[float]:
    return [item.evidence for item in outcomes if item.evidence is not None]


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(str(item) for item in values if item)


def _plain(text: str) -> str:
    return " " + " ".join(_WORD.findall(text.casefold())) + " "


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
