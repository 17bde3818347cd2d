"""What is asked for, and the sequence that a scheduler moves through the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import EngineBug, UsageError

if TYPE_CHECKING:
    from windlass.serving.batch import Sampled
    from windlass.serving.batch_planner import BatchPlan
    from windlass.serving.chunk_plan import ReusePlan
    from windlass.serving.kv_view import KVView
    from windlass.serving.prefix_tree import Node

Tokens = NDArray[np.int32]


class State(StrEnum):
    """Where a sequence stands. BLOCKED waits for something outside the model, SWAPPED keeps its pages elsewhere."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    BLOCKED = "blocked"
    SWAPPED = "swapped"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended. STOP: a stop string or stop token; EOS: the model ended by itself."""

    STOP = "stop"
    LENGTH = "length"
    EOS = "eos"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


LEGAL_MOVES: Mapping[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILL, State.FINISHED}),
    State.PREFILL: frozenset({State.DECODE, State.WAITING, State.SWAPPED, State.FINISHED}),
    State.DECODE: frozenset({State.BLOCKED, State.WAITING, State.SWAPPED, State.FINISHED}),
    State.BLOCKED: frozenset({State.DECODE, State.FINISHED}),
    State.SWAPPED: frozenset({State.PREFILL, State.DECODE, State.FINISHED}),
    State.FINISHED: frozenset(),
}


class Constraint(Protocol):
    """Which tokens an answer may be made of; `windlass.serving.automaton.Walk` is one. One for each answer."""

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing more can follow."""
        ...

    def allowed(self) -> NDArray[np.bool_]:
        """Tokens that may come next, bool [vocab]; those that end the answer among them when it may end."""
        ...

    def take(self, token: int) -> None:
        """Go on with a token, one that does not end the answer.

        Raises:
            UsageError: it is not allowed here.
        """


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn, and when to stop.

    Attributes:
        max_tokens: Most tokens to make; 0 computes the prompt only.
        temperature: 0 takes the likeliest token, ties to the lower id.
        top_p, top_k, min_p: Keep the likeliest tokens up to this mass, this many (0: all), those at least this
            share of the likeliest.
        seed: Same seed, same tokens, whatever else is in the batch.
        stop: Texts that end the answer and are not part of it.
        stop_token_ids: Tokens that end it.
        ignore_eos: Go on when the model ends.
        logprobs: How many alternatives to report for each token; 0 for the token alone, None for nothing.
        prompt_logprobs: The same for the tokens of the prompt, from its second on; its pages are then not shared.
        presence_penalty, frequency_penalty: Taken from the logits of tokens of the answer so far, once and for
            each time.
        repetition_penalty: Divides positive and multiplies negative logits of tokens seen in prompt or answer.
        logit_bias: Added to the logits of single tokens.
        n: Answers to make from one prompt.
        constraint: Makes what each answer is held to; None: any tokens.

    Raises:
        UsageError: a value is out of range; the message names it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    n: int = 1
    constraint: Callable[[], Constraint] | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _within("max_tokens", self.max_tokens, 0, 1 << 40)
        _within("temperature", self.temperature, 0, 100)
        _within("top_p", self.top_p, math.nextafter(0, 1), 1)
        _within("top_k", self.top_k, 0, 1 << 40)
        _within("min_p", self.min_p, 0, 1)
        _within("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        _within("logprobs", self.logprobs or 0, 0, 1 << 20)
        _within("prompt_logprobs", self.prompt_logprobs or 0, 0, 1 << 20)
        _within("presence_penalty", self.presence_penalty, -100, 100)
        _within("frequency_penalty", self.frequency_penalty, -100, 100)
        _within("repetition_penalty", self.repetition_penalty, math.nextafter(0, 1), 100)
        _within("n", self.n, 1, 1024)
        if any(not text for text in self.stop):
            raise UsageError("a stop string is empty")
        for token, bias in self.logit_bias.items():
            _within(f"logit_bias of token {token}", bias, -1e4, 1e4)

    @property
    def plain_greedy(self) -> bool:
        """Whether the likeliest token by the bare logits is all that is wanted."""
        return self.temperature == 0 and not self.reshapes and self.constraint is None

    @property
    def reshapes(self) -> bool:
        """Whether logits are changed before tokens are drawn from them."""
        return bool(
            self.logit_bias
            or self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
        )  # fmt: skip


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UsageError(f"{name} is {value}, expected {least:g} to {most:g}")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt: tokens `start` to `stop`. Chunks that come again under one `content_id` are the same."""

    start: int
    stop: int
    kind: Literal["system", "chunk", "user"]
    content_id: bytes | None = None


class PlannedMember(NamedTuple):
    """One prompt of a batch whose shared beginnings were planned."""

    plan: BatchPlan
    member: int


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One call.

    Attributes:
        id: Unique among the requests that are under way.
        prompt: int32 [T], T >= 1.
        tenant: Whose it is: shares no cached prefix with other tenants, and is what fairness is between.
        shared: Its place in a planned batch, which says what it has in common with the others.
        arrival: When it was made, on the engine's clock.
        deadline: When it must be done, on the same clock.
        priority: Larger goes first, among the requests of its tenant where tenants share fairly.
        cache: Whether its prompt may take pages from earlier requests and leave its own to later ones.
        reuse_chunks: Whether chunks among its segments may be taken from where they were computed in another context
            (`chunk_cache`): faster, and not exact.

    Raises:
        UsageError: the prompt is empty, a segment lies outside it, or it is not the one that was planned.
    """

    id: str
    prompt: Tokens
    params: SamplingParams = field(default_factory=SamplingParams)
    tenant: str = ""
    segments: tuple[Segment, ...] = ()
    adapter: str | None = None
    priority: int = 0
    cache: bool = True
    reuse_chunks: bool = False
    shared: PlannedMember | None = None
    arrival: float = 0.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        if self.prompt.ndim != 1 or len(self.prompt) == 0:
            raise UsageError("the prompt is empty: at least one token is needed")
        if self.params.prompt_logprobs is not None and self.cache:
            raise UsageError("what is taken from the cache has no logprobs", hint="prompt_logprobs needs cache=False")
        if self.shared is not None and not self.shared.plan.holds(self.shared.member, self.prompt):
            raise UsageError("the prompt is not the one that was planned at its place in the batch")
        for segment in self.segments:
            if not 0 <= segment.start <= segment.stop <= len(self.prompt):
                raise UsageError(f"segment {segment.start}-{segment.stop} is outside a prompt of {len(self.prompt)}")


class Sequence:
    """What is scheduled: the tokens of one answer to a request, and the pages that hold their keys and values.

    Attributes:
        id: The request's, with `#i` behind it from the second answer on.
        tokens: Prompt and answer so far.
        computed: How many of them have keys and values in `view`.
        view: Its context; None while it waits.
        preemptions: How often it had to give its pages back.
        node, published: How far its pages are known to the prefix tree.
        constraint: What its answer is held to.
        rated: Tokens of the prompt by place, with their chances; None where these are not wanted.
        reuse: What of its prompt was taken from chunks; None: nothing.
        todo: Which known tokens are left to compute, ascending, where others between them were taken from chunks;
            None: all from `computed` on.
    """

    __slots__ = (
        "added", "computed", "constraint", "error", "finish", "id", "index", "node", "preemptions", "prompt_length",
        "published", "rated", "request", "reuse", "state", "todo", "tokens", "view",
    )  # fmt: skip

    def __init__(self, request: Request, index: int = 0) -> None:
        self.request = request
        self.index = index
        self.id = request.id if index == 0 else f"{request.id}#{index}"
        self.tokens: list[int] = request.prompt.tolist()
        self.prompt_length = len(self.tokens)
        self.computed = 0
        self.view: KVView | None = None
        self.node: Node | None = None
        self.published = 0
        self.reuse: ReusePlan | None = None
        self.todo: NDArray[np.int64] | None = None
        self.state = State.WAITING
        self.finish: FinishReason | None = None
        self.error: Exception | None = None
        self.preemptions = 0
        self.added = request.arrival
        self.rated: dict[int, Sampled] | None = None
        self.constraint = None if request.params.constraint is None else request.params.constraint()

    def __repr__(self) -> str:
        return f"Sequence({self.id!r}, {self.state}, {self.computed}/{len(self.tokens)})"

    @property
    def pending(self) -> int:
        """Known tokens that are to be computed: 1 while decoding."""
        return len(self.tokens) - self.computed if self.todo is None else len(self.todo)

    @property
    def made(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def longest(self) -> int:
        """Tokens it has when it makes as many as it may."""
        return self.prompt_length + self.request.params.max_tokens

    @property
    def budget_left(self) -> int:
        """Tokens it may still make."""
        return self.request.params.max_tokens - self.made

    @property
    def next_position(self) -> int:
        """Rotary position of the next token to be computed."""
        return self.computed if self.view is None else self.view.next_position

    @property
    def exact(self) -> int:
        """Tokens from the first on whose keys and values are those of this very context."""
        return self.computed if self.reuse is None else min(self.computed, self.reuse.exact)

    def set_todo(self, todo: NDArray[np.int64]) -> None:
        """Have these tokens computed next, ascending; those before the first of them stand in its pages."""
        assert self.view is not None
        first = int(todo[0])
        if self.reuse is not None and self.reuse.probing:
            first = min(first, self.reuse.exact)
        self.view.advance(first - self.computed)
        self.computed, self.todo = first, todo

    def advance(self, count: int) -> None:
        """The next `count` tokens to compute were computed."""
        reached = self.computed + count
        if self.todo is not None:
            left = self.todo[count:]
            reached, self.todo = (int(left[0]), left) if len(left) else (int(self.todo[-1]) + 1, None)
            if self.reuse is not None and self.reuse.probing:
                # What looks at copies is computed again, and so is some of the copies: nothing behind counts yet.
                reached = min(reached, self.reuse.exact)
        assert self.view is not None
        self.view.advance(reached - self.computed)
        self.computed = reached

    def move(self, state: State) -> None:
        """Change state.

        Raises:
            EngineBug: there is no such move.
        """
        if state not in LEGAL_MOVES[self.state]:
            raise EngineBug(f"sequence {self.id} cannot go from {self.state} to {state}")
        self.state = state


def sequences_of(request: Request) -> list[Sequence]:
    """One sequence for each answer wanted."""
    return [Sequence(request, index) for index in range(request.params.n)]


def tokens_of(ids: Items[int]) -> Tokens:
    """Token ids as the engine keeps them.

    Raises:
        UsageError: an id is negative or does not fit 31 bits.
    """
    wide = np.asarray(ids, np.int64)
    if wide.size and (wide.min() < 0 or wide.max() >= 1 << 31):
        raise UsageError("a token id is outside 0 to 2147483647")
    return wide.astype(np.int32)
