"""What a batch shares: against a dictionary of all prefixes, and against every choice of heads there is."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.serving.batch_planner import BatchPlan, forest, plan_batch

Prompts = list[list[int]]
batches = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9)


def arrays(prompts: Prompts) -> list[np.ndarray]:
    return [np.array(prompt, np.int32) for prompt in prompts]


def distinct_prefixes(prompts: Prompts) -> int:
    return len({tuple(prompt[:length]) for prompt in prompts for length in range(1, len(prompt) + 1)})


@given(prompts=batches)
@settings(max_examples=300, deadline=None)
def test_every_level_saves_what_a_dictionary_of_prefixes_says(prompts: Prompts) -> None:
    plan = plan_batch(arrays(prompts))
    assert plan.saved_tokens == plan.ideal_saved_tokens == plan.total_tokens - distinct_prefixes(prompts)
    assert sorted(member for group in plan.groups for member in group) == list(range(len(prompts)))
    assert sorted(plan.rank.tolist()) == list(range(len(prompts)))


@given(prompts=batches)
@settings(max_examples=300, deadline=None)
def test_prefixes_are_what_their_prompts_begin_with(prompts: Prompts) -> None:
    plan = plan_batch(arrays(prompts))
    beginnings: dict[int, list[int]] = {}
    users = [0] * len(plan.depth)
    for member, prompt in enumerate(prompts):
        depths = []
        for prefix in plan.path(member):
            users[prefix] += 1
            depths.append(int(plan.depth[prefix]))
            beginning = prompt[: depths[-1]]
            assert beginnings.setdefault(prefix, beginning) == beginning and len(beginning) == depths[-1]
        assert depths == sorted(depths, reverse=True)
    assert users == plan.users.tolist()


def one_level(prompts: Prompts, heads: tuple[tuple[int, ...], ...]) -> int:
    """Tokens saved when each prompt uses the longest of these beginnings and each is computed once."""
    used = [
        max((head for head in heads if tuple(prompt[: len(head)]) == head), key=len, default=()) for prompt in prompts
    ]
    return sum(map(len, used)) - sum(map(len, set(used)))


@given(prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_one_level_is_the_best_of_all_choices_of_heads(prompts: Prompts) -> None:
    tree = forest(arrays(prompts))
    nodes = [tuple(prompts[tree.order[tree.first[node]]][: tree.depth[node]]) for node in range(1, len(tree.depth))]
    choices = (chosen for count in range(len(nodes) + 1) for chosen in combinations(nodes, count))
    best = max(one_level(prompts, chosen) for chosen in choices)
    exact, flat = plan_batch(arrays(prompts), mode="exact"), plan_batch(arrays(prompts), mode="flat")
    assert exact.saved_tokens == best
    assert 0 <= flat.saved_tokens <= exact.saved_tokens <= exact.ideal_saved_tokens


def heads_of(plan: BatchPlan) -> list[int]:
    return [
        int(plan.depth[plan.prefix_of[member]]) if plan.prefix_of[member] >= 0 else 0 for member in range(len(plan))
    ]


def test_a_group_leaves_when_its_own_run_is_worth_more() -> None:
    shared, more = [7] * 4, [8] * 10
    prompts = [[*shared, 1], [*shared, 2], [*shared, *more, 3], [*shared, *more, 4]]
    assert heads_of(plan_batch(arrays(prompts), mode="flat")) == [4, 4, 14, 14]
    assert heads_of(plan_batch(arrays(prompts), mode="multilevel")) == [4, 4, 14, 14]
    little = [[*shared, 1], [*shared, 2], [*shared, 8, 3], [*shared, 8, 4]]
    assert heads_of(plan_batch(arrays(little), mode="flat")) == [4, 4, 4, 4]
    assert heads_of(plan_batch(arrays(little), mode="multilevel")) == [4, 4, 5, 5]


def test_groups_that_write_much_go_first() -> None:
    prompts = [[1, 1, 1, 1, member] for member in range(3)] + [[2, 2, member] for member in range(3)]
    plan = plan_batch(arrays(prompts), made=[1, 1, 1, 9, 9, 9])
    assert plan.groups == ((3, 4, 5), (0, 1, 2))
    assert plan.rank.tolist() == [3, 4, 5, 0, 1, 2]


def test_negative_ids_and_equal_prompts_are_no_trouble() -> None:
    plan = plan_batch(arrays([[5, 300, 70_000], [5, 300, 70_000], [5, 300], [5]]))
    assert plan.saved_tokens == 3 + 2 + 1
    assert plan.depth.tolist() == [1, 2, 3] and plan.parent.tolist() == [-1, 0, 1]


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        plan_batch(arrays([[1], []]))
    with pytest.raises(UsageError, match="expected lengths"):
        plan_batch(arrays([[1]]), made=[1, 2])
    with pytest.raises(UsageError, match="no way"):
        plan_batch(arrays([[1]]), mode="deep")  # type: ignore[arg-type]
    assert plan_batch([]).groups == ()
