"""`spine-answer`: is the right passage among the first five, is the answer right, is every citation true?

Workload: the 40 questions of `examples/harbour_questions.jsonl` over `examples/harbour`, read with the default
models. The peer is bm25s alone (its own tokenizer, English stop words and Snowball stemmer) over the very same
passages. Extractive and generative answering are measured side by side; `--quick` leaves the generative one out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import windlass
from windlass.bench.harness import BenchContext, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.errors import ModelError, NotFound
from windlass.retrieval.evaluate import GoldQuestion, evaluate_questions, gold_share, held_quotes, read_questions
from windlass.retrieval.pipeline import Pipeline
from windlass.retrieval.types import Passage

_DEPTH = 5
_PEER = "bm25s"


def run(context: BenchContext) -> BenchReport:
    examples = _examples()
    folder = context.workdir / "harbour"
    shutil.copytree(examples / "harbour", folder, ignore=shutil.ignore_patterns(".windlass"))
    questions = examples / "harbour_questions.jsonl"
    with Pipeline.open(folder) as pipeline:
        if pipeline.encoder is None:
            raise ModelError("spine-answer measures the default encoder", hint="run `windlass models pull`")
        pipeline.index(progress=context.progress)
        extract = evaluate_questions(pipeline, questions, k=_DEPTH, mode="extract", progress=context.progress)
        gold = [question for question in read_questions(questions) if question.answerable]
        peer = _peer_recall(pipeline, gold)
        metrics = [
            metric(
                "recall@5, share of gold passages", "share", extract.recall, better="higher", peer=peer and peer[0],
                peer_name=_PEER, least=0.90,
                note="a question over two files counts half for each",
            ),
            metric(
                "recall@5, any gold passage", "share", extract.any_recall, better="higher", peer=peer and peer[1],
                peer_name=_PEER, note=f"gold file alone {extract.file_recall:.3f}",
            ),
            *_answer_metrics("extractive", extract.accuracy, extract.abstained, extract.seconds[0]),
            metric("citations verbatim, extractive", "share", float(extract.all_verified), better="higher", least=1.0),
            metric("citation precision, extractive", "share", extract.citation_precision, better="higher"),
        ]  # fmt: skip
        if not context.quick and pipeline.model is not None:
            written = evaluate_questions(pipeline, questions, k=_DEPTH, mode="generate", progress=context.progress)
            metrics += _answer_metrics("generative", written.accuracy, written.abstained, written.seconds[0])
            metrics.append(
                metric(
                    "citations verbatim, generative", "share", float(written.all_verified), better="higher", least=1.0
                )
            )
    return context.report(
        mode="measured", workload="40 questions over examples/harbour, default models", metrics=metrics
    )


def _answer_metrics(name: str, accuracy: float, abstained: float, seconds: float) -> list[Metric]:
    return [
        metric(f"answer accuracy, {name}", "share", accuracy, better="higher"),
        metric(f"abstains when unanswerable, {name}", "share", abstained, better="higher"),
        metric(f"median answer time, {name}", "s", seconds, better="lower"),
    ]


def _peer_recall(pipeline: Pipeline, questions: Sequence[GoldQuestion]) -> tuple[float, float] | None:
    """Share of gold passages among the peer's first five, and share of questions with any; None without the peer."""
    bm25s, stemming = peer_module("bm25s"), peer_module("Stemmer")
    if bm25s is None or stemming is None:
        return None
    with pipeline.workspace.reading() as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM chunks ORDER BY id")]
    passages: list[Passage] = [pipeline.passage(passage_id) for passage_id in ids]
    stemmer = stemming.Stemmer("english")

    def tokens(texts: list[str]) -> object:
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)

    index = bm25s.BM25()
    index.index(tokens([f"{passage.title}\n{passage.text}" for passage in passages]), show_progress=False)
    found, _ = index.retrieve(tokens([question.question for question in questions]), k=_DEPTH, show_progress=False)

    def span(passage: Passage) -> str:
        return pipeline.document_text(passage.doc_id)[passage.start : passage.end]

    shares = []
    for numbers, question in zip(found, questions, strict=True):
        held = [held_quotes(passages[int(n)], question, span(passages[int(n)])) for n in numbers]
        shares.append(gold_share(held, question))
    return sum(shares) / len(shares), sum(share > 0 for share in shares) / len(shares)


def _examples() -> Path:
    folder = Path(windlass.__file__).parents[2] / "examples"
    if not (folder / "harbour").is_dir():
        raise NotFound(
            "the example folder is not part of an installed package",
            hint="run this benchmark from a checkout of the repository",
        )
    return folder
