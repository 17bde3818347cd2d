"""Measures against hand-computed values and brute force; the evaluation of a question file."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import NotFound, UsageError
from windlass.retrieval.evaluate import evaluate_questions, read_questions
from windlass.retrieval.metrics import (
    all_gold_at,
    auroc,
    average_precision,
    contains_answer,
    exact_match,
    ndcg_at,
    normalise,
    paired_bootstrap,
    recall_at,
    reciprocal_rank,
    token_f1,
)
from windlass.retrieval.types import Answer, Citation, Hit, Passage, Sentence

RANKING = ["d", "a", "x", "b", "y"]
RELEVANT = {"a": 3.0, "b": 1.0, "c": 2.0, "x": 0.0}


def test_rankings_by_hand() -> None:
    assert recall_at(RANKING, RELEVANT, 2) == 1 / 3
    assert recall_at(RANKING, RELEVANT, 5) == 2 / 3
    assert all_gold_at(RANKING, RELEVANT, 5) == 0.0
    assert all_gold_at(["a", "b", "c"], RELEVANT, 3) == 1.0
    assert reciprocal_rank(RANKING, RELEVANT) == 0.5
    assert average_precision(RANKING, RELEVANT) == pytest.approx((1 / 2 + 2 / 4) / 3)
    gain = 3 / math.log2(3) + 1 / math.log2(5)
    assert ndcg_at(RANKING, RELEVANT, 5) == pytest.approx(gain / (3 + 2 / math.log2(3) + 1 / math.log2(4)))
    assert recall_at(RANKING, {}, 5) == ndcg_at(RANKING, {}, 5) == average_precision(RANKING, {}) == 0.0


@given(st.dictionaries(st.sampled_from("abcde"), st.integers(0, 3), max_size=5))
def test_the_best_order_has_the_best_measures(grades: dict[str, int]) -> None:
    ideal = sorted("abcde", key=lambda item: -grades.get(item, 0))
    relevant: dict[Any, float] = {item: float(grade) for item, grade in grades.items()}
    for measure in (lambda r: ndcg_at(r, relevant, 3), lambda r: average_precision(r, relevant)):
        assert measure(ideal) == pytest.approx(max(measure(order) for order in permutations("abcde")))


def test_answers_are_compared_as_squad_does() -> None:
    assert normalise("The  Harbour-Master, (an) old man!") == "harbourmaster old man"
    assert exact_match("the quay.", ["Quay"]) == 1.0
    assert token_f1("the north quay wall", ["north quay"]) == pytest.approx(0.8)
    assert token_f1("", ["x"]) == 0.0


@pytest.mark.parametrize(
    ("text", "accepted", "expected"),
    [
        ("It is 12.50 m deep. [3]", "12.5 m", True),
        ("112.5 m", "12.5 m", False),
        ("12.55 m", "12.5 m", False),
        ("It costs 1,250 euros", "1250 euros", True),
        ("€1,250", "€ 1250", True),
        ("at 9 a.m.", "9 a.m.", True),
        ("the Oslo Quay", "oslo quay", True),
        ("cat", "category", False),
        ("see [42]", "42", False),
        ("anything", "", False),
    ],
)
def test_containment_respects_words_and_numbers(text: str, accepted: str, expected: bool) -> None:
    assert contains_answer(text, [accepted]) is expected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_auroc_equals_counting_pairs(high: list[float], low: list[float]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in high for b in low]
    assert auroc(high, low) == pytest.approx(sum(pairs) / len(pairs))


def test_bootstrap_tells_a_real_difference_from_none() -> None:
    same = [float(i % 2) for i in range(60)]
    assert paired_bootstrap(same, same).mean == 0.0 and paired_bootstrap(same, same).p == 1.0
    better = paired_bootstrap([1.0] * 50 + [0.0] * 10, [0.0] * 20 + [1.0] * 30 + [0.0] * 10)
    assert better.low > 0 and better.p < 0.01 and better.mean == pytest.approx(20 / 60)
    with pytest.raises(ValueError, match="compare"):
        paired_bootstrap([], [])


TEXT = "Berth 4 is 12.5 m deep. Nobody swims."
ROWS = "berth,depth\n4,12.5\n"


class Canned:
    """Two documents; answers by script."""

    hits = (
        Hit(Passage(1, 1, "copy.txt", 0, len(TEXT), "", TEXT, also=("gold.txt",)), 1.0, {}),
        Hit(Passage(2, 2, "table.csv", 12, 18, "", "berth: 4; depth: 12.5", "rows"), 0.5, {}),
    )

    def search(self, query: str, k: int) -> list[Hit]:
        return list(self.hits[:k])

    def ask(self, question: str, *, mode: str) -> Answer:
        if "unknown" in question:
            return Answer(question, False, "Not found in your files.", (), mode, self.hits, 2, 2, evidence=0.1)
        quote = "tampered" if "tampered" in question else TEXT[:23]
        sentence = Sentence(TEXT[:23], (Citation(1, "copy.txt", 1, 0, 23, quote, 1.0),))
        return Answer(question, True, f"{TEXT[:23]} [1]", (sentence,), mode, self.hits, 2, 2, evidence=0.9)

    def document_text(self, doc_id: int) -> str:
        return TEXT if doc_id == 1 else ROWS


def _write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_evaluation_of_a_question_file(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "q.jsonl",
        {
            "id": 1,
            "question": "How deep?",
            "answer": "12.5 m",
            "file": "gold.txt",
            "quote": "is  12.5 m",
            "kind": "fact",
        },
        {"id": 2, "question": "Row?", "answers": ["13 m"], "file": "table.csv", "quote": "4 | 12.5", "kind": "row"},
        {"id": 3, "question": "Elsewhere?", "answer": "12.5 m", "file": "none.txt", "quote": "no", "kind": "fact"},
        {"id": 4, "question": "unknown?", "kind": "unanswerable"},
        {"id": 5, "question": "known after all?", "kind": "unanswerable"},
    )
    report = evaluate_questions(Canned(), path, k=5, mode="extract")
    assert (report.questions, report.answerable) == (5, 3)
    assert [outcome.rank for outcome in report.outcomes] == [1, 2, None, None, None]
    assert report.recall == report.file_recall == pytest.approx(2 / 3)
    assert [outcome.correct for outcome in report.outcomes] == [True, False, True, True, False]
    assert report.accuracy == pytest.approx(3 / 5) and report.answered_accuracy == pytest.approx(2 / 3)
    assert report.abstained == 0.5 and report.wrongly_abstained == 0.0
    assert report.citation_precision == pytest.approx(1 / 3) and report.citation_recall == pytest.approx(1 / 2)
    assert report.abstention_auroc == pytest.approx(3 * 1.5 / 6)
    assert report.by_kind == {"fact": (2, 2), "row": (1, 0), "unanswerable": (2, 1)}
    assert report.all_verified
    json.dumps(report.to_dict(), allow_nan=False)
    assert evaluate_questions(Canned(), path, k=1).recall == pytest.approx(1 / 3)
    assert evaluate_questions(Canned(), path, limit=2).questions == 2


def test_a_question_over_two_files_counts_half_for_each(tmp_path: Path) -> None:
    both = {"question": "Both?", "files": ["gold.txt", "table.csv"], "quotes": ["is 12.5 m", "4 | 12.5"], "answer": "x"}
    path = _write(tmp_path / "q.jsonl", both)
    assert [evaluate_questions(Canned(), path, k=k).recall for k in (1, 2)] == [0.5, 1.0]
    assert [evaluate_questions(Canned(), path, k=k).any_recall for k in (1, 2)] == [1.0, 1.0]


def test_a_citation_that_is_not_verbatim_is_noticed(tmp_path: Path) -> None:
    path = _write(tmp_path / "q.jsonl", {"question": "tampered?", "answer": "12.5 m"})
    assert not evaluate_questions(Canned(), path).all_verified


def test_unreadable_question_files_name_their_line(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "q.jsonl").write_text('{"question": "a?"}\n\n{"answer": 3}\n', encoding="utf-8")
    with pytest.raises(UsageError, match="line 3"):
        read_questions(tmp_path / "q.jsonl")
