"""The figures of a chunk, by hand; which tokens are repaired."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.serving.chunk_plan import (
    ReusePlan,
    Taken,
    context_impact,
    fix_overhead,
    order_penalty,
    overlap,
    tokens_to_repair,
)
from windlass.serving.chunk_record import ChunkRecord

A, B, C, D = (bytes([number]) * 16 for number in range(4))


def record(attended: dict[bytes, float], outside: list[float], impact: float = 0.8) -> ChunkRecord:
    tokens = len(outside)
    data = np.zeros((1, 2, 1, tokens, 16), np.uint16)
    return ChunkRecord(b"", b"", 0, attended, np.array(outside, np.float32), impact, data)


def test_impact_is_a_logistic_of_outside_over_inside() -> None:
    assert context_impact(0.0, 0.3) == 0.5
    assert context_impact(0.2, 0.1) == pytest.approx(1 / (1 + math.exp(-2)))
    assert context_impact(0.2, 0.0) == 1.0 and context_impact(0.0, 0.0) == 0.5


def test_order_penalty_counts_pairs_the_other_way_round() -> None:
    assert order_penalty([A, B, C], [A, B, C]) == 0
    assert order_penalty([A, B, C], [C, B, A]) == 1
    assert order_penalty([A, B, C], [B, D, A, C]) == pytest.approx(1 / 3)
    assert order_penalty([A, B], [B]) == order_penalty([], [A]) == 0


def test_overlap_weighs_by_attention() -> None:
    assert overlap({A: 3.0, B: 1.0}, [A]) == 0.75
    assert overlap({A: 3.0, B: 1.0}, [B, A]) == 0.0
    assert overlap({A: 3.0, B: 1.0, C: 4.0}, [A, C, B]) == pytest.approx(1 - 1 / 3)
    assert overlap({}, [A]) == 1.0 and overlap({A: 0.0}, []) == 1.0


def test_overhead_is_what_was_lost_or_what_is_new() -> None:
    known = record({A: 3.0, B: 1.0}, [0.0])
    assert fix_overhead(known, [A, B], 1.0) == 0
    assert fix_overhead(known, [A], 0.5) == pytest.approx(0.5 * 0.8 * 0.25)
    assert fix_overhead(known, [A, C, D], 0.5) == pytest.approx(0.5 * 0.8 * 2 / 3)
    assert fix_overhead(known, [C], 10.0) == 1.0
    assert fix_overhead(record({}, [0.0]), [A], 1.0) == 0.8 and fix_overhead(record({}, [0.0]), [], 1.0) == 0


def test_beginnings_are_repaired_first_then_what_looked_outside() -> None:
    part = Taken(record({}, [0, 0, 0, 0.5, 0.1, 0.9]), 10, 16, np.zeros(0, np.int64), 0.5)
    assert tokens_to_repair([part], None, 1)[0].repaired.tolist() == [10, 13, 15]
    assert tokens_to_repair([part], None, 9)[0].repaired.tolist() == [10, 11, 12]
    assert tokens_to_repair([part], None, 0)[0].repaired.tolist() == [13, 14, 15]


def test_the_questions_look_divides_one_budget_among_all_chunks() -> None:
    looked = np.zeros(30)
    looked[[3, 12, 14, 15, 25]] = [9, 3, 5, 4, 99]
    parts = [
        Taken(record({}, [0.0] * 6), 2, 8, np.zeros(0, np.int64), 1 / 3),
        Taken(record({}, [0.0] * 6), 10, 16, np.zeros(0, np.int64), 1 / 3),
        Taken(record({}, [0.0] * 6), 20, 26, np.zeros(0, np.int64), 0.0),
    ]
    repaired = [part.repaired.tolist() for part in tokens_to_repair(parts, looked, 0)]
    assert repaired == [[3], [12, 14, 15], []]
    assert [part.repaired.tolist() for part in tokens_to_repair(parts, looked, 1)] == [[2, 3], [10, 14], []]


@given(
    known=st.integers(0, 6), starts=st.lists(st.integers(1, 5), min_size=1, max_size=4), share=st.floats(0, 1),
    tail=st.integers(1, 5),
)  # fmt: skip
def test_all_that_is_not_known_or_taken_is_computed(known: int, starts: list[int], share: float, tail: int) -> None:
    at, taken = known, []
    for gap in starts:
        at += gap
        taken.append(Taken(record({}, [0.1] * 4), at, at + 4, np.zeros(0, np.int64), share))
        at += 4
    length = at + tail
    plan = ReusePlan(known, tuple(tokens_to_repair(taken, None, 2)), (), (), 1.0)
    todo = plan.todo(length).tolist()
    inside = {place for part in plan.taken for place in range(part.start, part.stop)}
    repaired = {int(place) for part in plan.taken for place in part.repaired}
    assert todo == sorted(todo) == [n for n in range(known, length) if n not in inside or n in repaired]
    report = plan.report()
    assert report["reused_tokens"] + report["repaired_tokens"] == 4 * len(starts)
    assert report["repaired_tokens"] == len(repaired) == math.ceil(share * 4 - 1e-9) * len(starts)
