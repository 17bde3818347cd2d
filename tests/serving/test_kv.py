"""Memory: views, the prefix tree and the books, against a model that copies everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.serving.conftest import request
from windlass.core.errors import EngineBug, PoolExhausted, UsageError
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.kv_view import KVView, Span
from windlass.serving.prefix_tree import PrefixKey, PrefixTree
from windlass.serving.request import Sequence

SIZE = 4


class NotedPages(PageCounts):
    """Pages that hold what was written to them, so that contexts can be read back."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[int, Any] = {}

    def copy(self, page: int) -> int:
        fresh = self.take()
        for slot in range(SIZE):
            self.slots[fresh * SIZE + slot] = self.slots.get(page * SIZE + slot)
        return fresh


def read(view: KVView, pool: NotedPages) -> list[Any]:
    """What a context holds, by its runs."""
    pages, starts, lengths = view.runs()
    return [
        pool.slots[int(page) * SIZE + slot]
        for page, start, length in zip(pages, starts, lengths, strict=True)
        for slot in range(start, start + length)
    ]


class Memory(RuleBasedStateMachine):
    """Sequences come, write, fork, join and go; each must read back exactly what it, or its past, wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = NotedPages()
        self.kv = KVManager(self.pool, 30, page_tokens=SIZE, watermark=0.0)
        self.live: list[tuple[Sequence, list[Any]]] = []
        self.count = 0

    def pick(self, number: int) -> tuple[Sequence, list[Any]]:
        return self.live[number % len(self.live)]

    @rule(beginning=st.integers(0, 2), shared=st.integers(0, 20), own=st.integers(1, 6), cache=st.booleans())
    def admit(self, beginning: int, shared: int, own: int, cache: bool) -> None:
        self.count += 1
        tokens = [beginning] * shared + [100 + self.count] * own
        seq = Sequence(request(f"s{self.count}", tokens, cache=cache))
        if not self.kv.can_admit(seq):
            with pytest.raises(PoolExhausted):
                self.kv.admit(seq)
            return
        seq.computed = self.kv.admit(seq)
        assert seq.computed % SIZE == 0 and seq.computed < len(tokens)
        # Cached pages hold the very same tokens at the same positions.
        assert read(seq.view, self.pool) == [(token, at) for at, token in enumerate(tokens[: seq.computed])]
        self.live.append((seq, read(seq.view, self.pool)))

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 100), count=st.integers(1, 9))
    def write(self, number: int, count: int) -> None:
        seq, past = self.pick(number)
        if not self.kv.grow(seq, count):
            return
        tokens = (seq.tokens[len(past) :] + [7] * count)[:count]
        seq.tokens[len(past) :] = tokens + seq.tokens[len(past) + count :]
        for slot, token in zip(seq.view.slots(np.arange(count)), tokens, strict=True):
            page = int(slot) // SIZE
            assert self.pool.owners[page] == 1, "a page with two owners is written"
            self.pool.slots[int(slot)] = (token, len(past))
            past.append((token, len(past)))
        seq.view.advance(count)
        seq.computed += count
        self.kv.publish(seq)

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 100))
    def fork(self, number: int) -> None:
        seq, past = self.pick(number)
        self.count += 1
        twin = Sequence(request(f"f{self.count}", list(seq.tokens), cache=False))
        twin.view, twin.computed = seq.view.fork(), seq.computed
        self.live.append((twin, list(past)))

    @precondition(lambda self: len(self.live) > 1)
    @rule(first=st.integers(0, 100), second=st.integers(0, 100))
    def join(self, first: int, second: int) -> None:
        (one, past), (two, other) = self.pick(first), self.pick(second)
        self.count += 1
        joined = Sequence(request(f"j{self.count}", list(one.tokens), cache=False))
        joined.view, joined.computed = one.view.join([two.view]), len(past) + len(other)
        joined.tokens = [token for token, _ in past + other] or [0]
        assert joined.view.n_tokens == len(past) + len(other)
        self.live.append((joined, past + other))

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 100), keep=st.integers(0, 30))
    def truncate(self, number: int, keep: int) -> None:
        seq, past = self.pick(number)
        if seq.request.cache or keep > len(past):
            return
        seq.view.truncate(keep)
        del past[keep:]
        seq.computed = keep

    @precondition(lambda self: self.live)
    @rule(number=st.integers(0, 100), keep=st.booleans())
    def release(self, number: int, keep: bool) -> None:
        seq, _ = self.live.pop(number % len(self.live))
        self.kv.release(seq, keep=keep)
        assert seq.view is None

    @rule(until=st.integers(1, 50))
    def pin(self, until: int) -> None:
        self.kv.pin([0] * 12, self.count + until)

    @rule()
    def unpin(self) -> None:
        self.kv.unpin(self.count)

    @invariant()
    def books_are_right(self) -> None:
        self.kv.check()
        for seq, past in self.live:
            assert seq.view.n_tokens == len(past)
            assert read(seq.view, self.pool) == past

    def teardown(self) -> None:
        for seq, _ in self.live:
            self.kv.release(seq)
        self.kv.unpin(1e9)
        self.kv.clear()
        assert self.kv.free_pages == 30 and not any(self.pool.owners)


Memory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemory = Memory.TestCase


def admitted(kv: KVManager, name: str, tokens: list[int], **fields: Any) -> Sequence:
    seq = Sequence(request(name, tokens, **fields))
    seq.computed = kv.admit(seq)
    return seq


def computed(kv: KVManager, seq: Sequence) -> None:
    count = seq.pending
    assert kv.grow(seq, count)
    seq.view.advance(count)
    seq.computed += count
    kv.publish(seq)


def manager(pages: int = 20, **options: Any) -> KVManager:
    return KVManager(PageCounts(), pages, page_tokens=SIZE, **{"watermark": 0.0, **options})


def test_a_second_prompt_finds_the_pages_of_the_first() -> None:
    kv = manager()
    first = admitted(kv, "a", [1] * 8 + [2, 3])
    computed(kv, first)
    assert admitted(kv, "b", [1] * 8 + [4]).computed == 8
    assert admitted(kv, "c", [1] * 4 + [5] * 8).computed == 4
    # Two prompts that are the same leave the last token to be computed.
    assert admitted(kv, "d", [1] * 8).computed == 4


@pytest.mark.parametrize(
    "other", [{"tenant": "z"}, {"adapter": "lora"}, {"cache": False}], ids=["tenant", "adapter", "cache off"]
)
def test_what_never_matches(other: dict[str, Any]) -> None:
    kv = manager()
    computed(kv, admitted(kv, "a", [1] * 9))
    assert admitted(kv, "b", [1] * 9, **other).computed == 0


def test_prompts_computed_side_by_side_end_up_on_the_same_pages() -> None:
    kv = manager()
    one, two = admitted(kv, "a", [1] * 8 + [2]), admitted(kv, "b", [1] * 8 + [3])
    computed(kv, one)
    computed(kv, two)
    assert one.view.pages[:2] == two.view.pages[:2]
    kv.check()


def test_least_recently_used_goes_first_and_leaves_before_roots() -> None:
    kv = manager(pages=6)
    for name, token in (("a", 1), ("b", 2)):
        seq = admitted(kv, name, [token] * 8 + [9])
        computed(kv, seq)
        kv.release(seq)
    kv.release(admitted(kv, "again", [1] * 8 + [9]))
    admitted(kv, "c", [3] * 11)
    assert kv.tree.match(PrefixKey("", None, ""), [1] * 8).n_tokens == 8
    assert kv.tree.match(PrefixKey("", None, ""), [2] * 8).n_tokens in (0, 4)


def test_least_often_used_goes_first() -> None:
    kv = manager(pages=6, eviction="lfu")
    for name in ("a", "a2", "a3"):
        seq = admitted(kv, name, [1] * 8 + [9])
        computed(kv, seq)
        kv.release(seq)
    seq = admitted(kv, "b", [2] * 8 + [9])
    computed(kv, seq)
    kv.release(seq)
    admitted(kv, "c", [3] * 15)
    assert kv.tree.match(PrefixKey("", None, ""), [1] * 8).n_tokens == 8
    assert kv.tree.match(PrefixKey("", None, ""), [2] * 8).n_tokens == 0


def test_cheap_pages_go_first_under_cost() -> None:
    kv = manager(pages=8, eviction="cost")
    for name, tokens in (("deep", [1] * 16 + [9]), ("flat", [2] * 4 + [9])):
        seq = admitted(kv, name, tokens)
        computed(kv, seq)
        kv.release(seq)
    admitted(kv, "c", [3] * 15)
    assert kv.tree.match(PrefixKey("", None, ""), [2] * 4).n_tokens == 0
    assert kv.tree.match(PrefixKey("", None, ""), [1] * 16).n_tokens == 16


def test_what_is_pinned_stays_until_its_time() -> None:
    kv = manager(pages=6)
    seq = admitted(kv, "a", [1] * 8 + [9])
    computed(kv, seq)
    kv.release(seq)
    assert kv.pin([1] * 8, until=5.0) == 8
    assert not kv.can_admit(Sequence(request("big", 20)))
    kv.unpin(4.0)
    assert not kv.can_admit(Sequence(request("big", 20)))
    kv.unpin(5.0)
    assert kv.can_admit(Sequence(request("big", 20)))


def test_eviction_does_not_look_at_the_whole_tree() -> None:
    looked_at = 0

    def is_idle(page: int) -> bool:
        nonlocal looked_at
        looked_at += 1
        return True

    tree = PrefixTree(1, is_idle)
    for page in range(5_000):
        tree.insert(tree.root(PrefixKey("", None, "")), [page], page)
        tree.idle(page)
    assert len(tree.evict(10)) == 10
    assert looked_at <= 20 and len(tree) == 4_990


def test_runs_of_a_context_that_begins_inside_a_page() -> None:
    kv = manager()
    pages = [kv.pool.take() for _ in range(3)]
    kv._taken += 3
    view = KVView(kv)
    view.append(Span(tuple(pages), 2, 7, 40))
    view.begin(100)
    view.extend([kv.pool.take()])
    kv._taken += 1
    assert [part.tolist() for part in view.runs(3)] == [[0, 1, 2, 3], [2, 0, 0, 0], [2, 4, 1, 3]]
    assert view.slots(np.arange(3)).tolist() == [12, 13, 14] and view.next_position == 100
    assert view.slots(np.arange(3)).dtype == np.int64


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 3), length=st.integers(1, 30), ahead=st.integers(0, 9))
def test_runs_name_every_slot_once(start: int, length: int, ahead: int) -> None:
    kv = manager(pages=40)
    view = KVView(kv)
    view.spans = [Span(tuple(range(12)), start, length, 0)]
    pages, starts, lengths = view.runs(ahead)
    slots = [p * SIZE + s for p, b, n in zip(pages, starts, lengths, strict=True) for s in range(b, b + n)]
    assert slots == list(range(start, start + length + ahead))
    if ahead:
        assert view.slots(np.arange(ahead)).tolist() == slots[length:]


def test_bugs_are_noticed() -> None:
    kv = manager()
    seq = admitted(kv, "a", [1] * 9)
    with pytest.raises(EngineBug, match="admitted twice"):
        kv.admit(seq)
    with pytest.raises(EngineBug, match="written where"):
        seq.view.advance(100)
    kv.pool.release(seq.view.pages[0])
    with pytest.raises(EngineBug, match="owners on the books"):
        kv.check()


def test_a_memory_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError):
        manager(pages=0)


def test_a_memory_that_never_fills_up_does_not_grow() -> None:
    """The same prompt, again and again: pages become idle each time, and nothing is ever evicted."""
    kv = KVManager(PageCounts(), 64, page_tokens=SIZE)
    for number in range(500):
        seq = Sequence(request(f"r{number}", list(range(20))))
        kv.admit(seq)
        assert seq.view is not None
        seq.view.advance(len(seq.tokens) - seq.view.n_tokens)
        seq.computed = len(seq.tokens)
        kv.release(seq)
    assert len(kv.tree) == 5
    assert len(kv.tree._leaves) <= 2 * 5 + 64 + 1
