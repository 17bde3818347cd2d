"""The development questions, over small documents of many kinds, through the whole pipeline.

Half ask in the words of the documents, half in others; the unanswerable ones are about things the documents speak
of. The floors are a little under what was measured when the weights were fitted (see docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from windlass.retrieval.evaluate import EvaluationReport, Outcome, evaluate_questions
from windlass.retrieval.metrics import auroc
from windlass.retrieval.pipeline import Pipeline

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def by_words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvaluationReport]:
    state = tmp_path_factory.mktemp("state")
    with Pipeline.open(HERE / "dev_folder", state=state, encoder=None, model=None) as pipeline:
        pipeline.index(embed=False)
        yield evaluate_questions(pipeline, HERE / "dev_questions.jsonl", mode="extract")


def _plain(report: EvaluationReport) -> list[Outcome]:
    return [outcome for outcome in report.outcomes if outcome.kind not in ("paraphrase", "unanswerable")]


def _separation(report: EvaluationReport, *, plain_only: bool = False) -> float:
    answerable = _plain(report) if plain_only else [item for item in report.outcomes if item.kind != "unanswerable"]
    hopeless = [item for item in report.outcomes if item.kind == "unanswerable"]
    return auroc([item.evidence or 0.0 for item in answerable], [item.evidence or 0.0 for item in hopeless])


def test_questions_in_the_words_of_the_files_are_answered_without_any_model(by_words: EvaluationReport) -> None:
    right = [outcome.correct for outcome in _plain(by_words)]
    assert sum(right) / len(right) >= 0.85
    assert by_words.all_verified


def test_evidence_separates_answerable_from_unanswerable(by_words: EvaluationReport) -> None:
    assert _separation(by_words, plain_only=True) >= 0.80
    assert _separation(by_words) >= 0.68


@pytest.mark.models
def test_with_an_encoder_paraphrases_are_found_and_the_evidence_is_better(tmp_path: Path) -> None:
    with Pipeline.open(HERE / "dev_folder", state=tmp_path, model=None) as pipeline:
        if pipeline.encoder is None:
            pytest.skip("the default encoder is not installed")
        pipeline.index()
        report = evaluate_questions(pipeline, HERE / "dev_questions.jsonl", mode="extract")
    assert report.answered_accuracy >= 0.75
    assert _separation(report) >= 0.75
    assert _separation(report, plain_only=True) >= 0.85
    assert report.all_verified
