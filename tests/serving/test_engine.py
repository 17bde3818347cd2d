"""The loop: ends, stops, cancels, deadlines, limits, faults of the executor; all on a script."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serving.conftest import STRICT, request, scripted_engine
from windlass.core.errors import (
    Cancelled,
    ContextLengthError,
    DeadlineError,
    EngineBug,
    NumericsError,
    QueueFull,
    UsageError,
)
from windlass.serving.batch import ExecutorCaps, StepResult
from windlass.serving.engine import EngineConfig
from windlass.serving.request import LEGAL_MOVES, FinishReason, Sequence, State
from windlass.serving.scheduler import StallFree
from windlass.serving.text import Readable

END = 2


class Letters:
    """Token 97 is `a` and so on; a token above 1000 is one byte of a character."""

    def __init__(self) -> None:
        self._held = b""

    def add(self, token: int) -> str:
        self._held += bytes([token - 1000]) if token >= 1000 else chr(token).encode()
        try:
            text, self._held = self._held.decode(), b""
        except UnicodeDecodeError:
            return ""
        return text

    def finish(self) -> str:
        text, self._held = self._held.decode(errors="replace"), b""
        return text


def spell(text: str) -> list[int]:
    return [ord(letter) if ord(letter) < 128 else 0 for letter in text]


def lettered(answers: dict[str, list[int]], **options: Any) -> Any:
    return scripted_engine(
        StallFree(16), answers=answers, text=lambda seq: Readable(Letters(), seq.request.params.stop), end_ids=(END,),
        **options,
    )  # fmt: skip


def text_of(events: list[Any], name: str = "a", index: int = 0) -> str:
    return "".join(event.text for event in events if event.request_id == name and event.index == index)


def end_of(events: list[Any], name: str = "a", index: int = 0) -> Any:
    (last,) = (e for e in events if e.request_id == name and e.index == index and e.finish is not None)
    return last


def test_an_answer_token_by_token() -> None:
    engine = lettered({"a": spell("hello")})
    handle = engine.submit(request("a", 20, 5))
    events = engine.run_until_idle()
    assert text_of(events) == "hello" and end_of(events).finish is FinishReason.LENGTH
    assert handle.done and handle.take() == events and handle.take() == []
    # 20 prompt tokens are two chunks of 16 and 4; the second makes the first token.
    assert [event.time for event in events] == [2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("answer", "params", "text", "finish"),
    [
        ([*spell("hi"), END, *spell("xx")], {}, "hi", FinishReason.EOS),
        ([*spell("hi"), END, *spell("xx")], {"ignore_eos": True}, "hi\x02xx", FinishReason.LENGTH),
        (spell("hello"), {"stop": ("ll",)}, "he", FinishReason.STOP),
        (spell("hello"), {"stop": ("lx", "zz")}, "hello", FinishReason.LENGTH),
        (spell("helll"), {"stop": ("lll",)}, "he", FinishReason.STOP),
        (spell("hello"), {"stop_token_ids": (ord("e"),)}, "h", FinishReason.STOP),
    ],
)
def test_how_answers_end(answer: list[int], params: dict[str, Any], text: str, finish: Any) -> None:
    engine = lettered({"a": answer})
    engine.submit(request("a", 3, len(answer), params=params))
    events = engine.run_until_idle()
    assert (text_of(events), end_of(events).finish) == (text, finish)


def test_half_a_character_is_never_shown() -> None:
    snowman = [1000 + byte for byte in "\u2603".encode()]
    engine = lettered({"a": [*snowman, *snowman[:2]]})
    engine.submit(request("a", 3, 5))
    events = engine.run_until_idle()
    assert [event.text for event in events] == ["", "", "\u2603", "", "\ufffd"]


def test_nothing_to_make_computes_the_prompt_only() -> None:
    engine = lettered({})
    engine.submit(request("a", 20, 0))
    events = engine.run_until_idle()
    assert [(e.finish, e.sampled, e.text) for e in events] == [(FinishReason.LENGTH, None, "")]
    assert engine.metrics.computed_tokens == 20


def test_several_answers_share_one_prompt() -> None:
    engine = lettered({"a": spell("one"), "a#1": spell("two"), "a#2": spell("six")}, pages=200)
    engine.submit(request("a", 40, 3, params={"n": 3}))
    events = engine.run_until_idle()
    assert [text_of(events, index=index) for index in range(3)] == ["one", "two", "six"]
    # The two others compute what does not fill a page: the prompt's last 4 tokens each.
    assert engine.metrics.computed_tokens == 40 + 2 * 4 + 3 * 2


def test_several_answers_end_with_the_first_when_it_never_ran() -> None:
    engine = lettered({})
    handle = engine.submit(request("a", 20, 3, params={"n": 3}))
    engine.cancel("a")
    events = engine.run_until_idle()
    assert [event.finish for event in events] == [FinishReason.CANCELLED] * 3 and handle.done
    assert engine.snapshot().queued_tokens == 0


def test_a_cancelled_request_has_no_pages_after_the_next_step() -> None:
    engine = lettered({"b": spell("other")})
    engine.submit(request("a", 20, 40))
    engine.submit(request("b", 3, 5))
    events = [event for _ in range(4) for event in engine.step()]
    used = engine.kv.stats().used
    assert engine.cancel("a")
    events += engine.step()
    assert end_of(events).finish is FinishReason.CANCELLED and isinstance(end_of(events).error, Cancelled)
    assert engine.kv.stats().used < used and engine.kv.stats().used <= 2
    assert text_of(events, "b") == "othe" and not engine.cancel("a")


def test_a_request_ends_at_its_deadline() -> None:
    engine = lettered({})
    engine.submit(request("a", 4, 40, deadline=5.0))
    events = engine.run_until_idle()
    assert end_of(events).finish is FinishReason.DEADLINE and isinstance(end_of(events).error, DeadlineError)
    assert end_of(events).time == 5.0 and engine.kv.stats().used == 0


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    engine = lettered({})
    engine.submit(request("warm", 32, 1))
    engine.run_until_idle()
    with pytest.raises(DeadlineError):
        engine.submit(request("a", 160, 4, deadline=engine.executor.now() + 2))
    engine.submit(request("b", 16, 1, deadline=engine.executor.now() + 5))


def test_a_deadline_is_compared_with_the_answers_that_are_usual() -> None:
    """Steps of a second: a prompt takes one for each 16 tokens, an answer one for each token."""
    engine = lettered({}, pages=128)
    for number in range(10):
        engine.submit(request(f"short{number}", 16, 3))
        engine.run_until_idle()
    with pytest.raises(DeadlineError):
        engine.submit(request("a", 16, 200, deadline=engine.executor.now() + 3.5))
    handle = engine.submit(request("b", 16, 200, deadline=engine.executor.now() + 5))
    engine.cancel(handle.id)
    engine.run_until_idle()
    engine.submit(request("waits", 160, 1))
    with pytest.raises(DeadlineError):
        engine.submit(request("c", 16, 200, deadline=engine.executor.now() + 5))


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    engine = lettered({}, pages=5)
    with pytest.raises(ContextLengthError, match=r"17 tokens and 4 are to be made, 20 fit"):
        engine.submit(request("a", 17, 4))
    engine.executor.caps = ExecutorCaps("cpu", 64, 10)
    with pytest.raises(ContextLengthError, match="10 fit"):
        engine.submit(request("a", 8, 4))


def test_queues_are_bounded() -> None:
    config = EngineConfig(max_queue=4, max_queue_per_tenant=3, max_queued_tokens=50, strict=True)
    engine = lettered({}, config=config)
    for number in range(3):
        engine.submit(request(f"x{number}", 4, 1, tenant="x"))
    with pytest.raises(QueueFull, match="of this tenant") as caught:
        engine.submit(request("x3", 4, 1, tenant="x"))
    assert 1 <= caught.value.retry_after <= 60
    with pytest.raises(QueueFull, match="12 tokens wait"):
        engine.submit(request("y0", 40, 1, tenant="y"))
    engine.submit(request("y0", 4, 1, tenant="y"))
    with pytest.raises(QueueFull, match="4 requests wait"):
        engine.submit(request("y1", 4, 1, tenant="y"))
    engine.run_until_idle()
    assert engine.snapshot().waiting == engine.snapshot().queued_tokens == 0
    engine.submit(request("y1", 4, 1, tenant="y"))
    with pytest.raises(UsageError, match="under way"):
        engine.submit(request("y1", 4, 1, tenant="z"))


class Faulty:
    """Fails the sequence `bad`, or the whole step."""

    def __init__(self, inner: Any, whole: bool) -> None:
        self.inner, self.whole, self.caps = inner, whole, inner.caps

    def run(self, batch: Any) -> StepResult:
        named = [item.seq.id for item in batch.items]
        if self.whole and "bad" in named:
            raise RuntimeError("the machine is on fire")
        result = self.inner.run(batch)
        if "bad" in named:
            result.tokens.pop("bad", None)
            result.failed["bad"] = NumericsError("NaN")
        return result


def test_numbers_that_are_none_fail_one_request_only() -> None:
    engine = lettered({"good": spell("fine")})
    engine.executor = Faulty(engine.executor, whole=False)
    engine.submit(request("bad", 3, 4))
    engine.submit(request("good", 3, 4))
    events = engine.run_until_idle()
    assert isinstance(end_of(events, "bad").error, NumericsError)
    assert text_of(events, "good") == "fine" and engine.kv.stats().used == 0


def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on() -> None:
    engine = lettered({"good": spell("fine")}, config=EngineConfig(check_every=1))
    engine.executor = Faulty(engine.executor, whole=True)
    engine.submit(request("bad", 3, 4))
    assert end_of(engine.run_until_idle(), "bad").finish is FinishReason.ERROR
    engine.submit(request("good", 3, 4))
    assert text_of(engine.run_until_idle(), "good") == "fine"


def test_time_never_runs_backwards() -> None:
    class Jumping:
        times = iter([5.0, 7.0, 3.0, 4.0, 9.0, 9.5, 9.6, 9.7])

        def now(self) -> float:
            return next(self.times)

    engine = scripted_engine(StallFree(16), clock=Jumping(), config=STRICT)
    engine.submit(request("a", 3, 3))
    assert [event.time for event in engine.run_until_idle()] == [7.0, 7.0, 9.5]


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_only_legal_moves(before: State, after: State) -> None:
    seq = Sequence(request("a", 3))
    seq.state = before
    if after in LEGAL_MOVES[before]:
        seq.move(after)
        assert seq.state is after
    else:
        with pytest.raises(EngineBug):
            seq.move(after)


def test_the_legal_moves_are_these() -> None:
    moves = {(before.value, after.value) for before, targets in LEGAL_MOVES.items() for after in targets}
    ends = {(state.value, "finished") for state in State if state is not State.FINISHED}
    assert moves == ends | {
        ("waiting", "prefill"), ("prefill", "decode"), ("prefill", "waiting"), ("prefill", "swapped"),
        ("decode", "waiting"), ("decode", "swapped"), ("decode", "blocked"), ("blocked", "decode"),
        ("swapped", "prefill"), ("swapped", "decode"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 2}, {"max_tokens": -1}, {"n": 0},
        {"seed": 1 << 64}, {"stop": ("",)}, {"logprobs": -1}, {"repetition_penalty": 0}, {"logit_bias": {3: 1e9}},
        {"temperature": float("nan")},
    ],
)  # fmt: skip
def test_senseless_params_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        request("a", 3, params.pop("max_tokens", 3), params=params)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        request("a", [])
