"""The chat model behind HTTP when it runs on the serving engine: from a request's body to a call on the engine."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence

from windlass.app.http.engine_call import EngineCall
from windlass.app.http.metrics import Metrics
from windlass.app.http.openai_schema import SamplingBody, WindlassOptions
from windlass.app.http.replies import ApiError
from windlass.app.http.structured import Grammars
from windlass.app.http.tenants import Tenant
from windlass.core.errors import AdapterNotFound
from windlass.serving.engine_chat import EngineChat
from windlass.serving.request import Constraint, PlannedMember, Request, SamplingParams, Segment, tokens_of

# No tokenizer makes tokens longer than this on average: a longer prompt is refused before it is tokenized.
LONGEST_TOKEN = 64
LONGEST_RATED = 2048
"""Each needs a row of logits: as many numbers as there are tokens."""


class EngineModel:
    """The model of a folder for the clients of one server. Ending the server leaves the model to its owner.

    Args:
        chat: The model and its engine, running.
        weights: Shares of tenants.
        waiting: Answers of one tenant that may wait.
    """

    def __init__(self, chat: EngineChat, *, weights: Mapping[str, float], waiting: int) -> None:
        self.chat, self.model, self.engine = chat, chat.model, chat.engine
        self._waiting = waiting
        self._closing = False
        self._open: set[EngineCall] = set()
        chat.serve_tenants(weights, waiting)

    def start(
        self,
        prompts: Sequence[list[int]],
        body: SamplingBody,
        tenant: Tenant,
        metrics: Metrics,
        *,
        most_tokens: int,
        answers: int | None = None,
        constraint: Callable[[], Constraint] | None = None,
        adapter: str | None = None,
        planned: PlannedMember | None = None,
        segments: tuple[Segment, ...] = (),
    ) -> EngineCall:
        """Put a call in the engine's queue.

        Args:
            prompts: Token ids.
            body: How to draw tokens.
            tenant: For whom.
            metrics: Where its times are counted.
            most_tokens: Most tokens of one answer, and how many there are when the body does not say.
            answers: For each prompt; None: what the body says.
            constraint: What each answer is held to.
            adapter: Of the model, by name.
            planned: The place of the only prompt in a batch's plan.
            segments: Of the only prompt.

        Raises:
            AdapterNotFound: The tenant has no such adapter.
            ApiError: A prompt and its answer do not fit the context, a token is not one, or the server is stopping.
            QueueFull: Too many wait.
        """
        if self._closing:
            raise ApiError(503, "the server is stopping", code="stopping", headers={"retry-after": "5"})
        room, size = self.model.context_length, self.model.tokenizer.size
        key, requests = self._adapter(adapter, tenant), []
        for prompt in prompts:
            wanted = body.token_limit
            if len(prompt) + (1 if wanted is None else wanted) > room:
                raise too_long(f"{len(prompt):,}", wanted or 1, room)
            if not prompt or max(prompt) >= size:
                raise ApiError(400, "prompt: it is empty, or a token is not the model's", param="prompt")
            if body.rates_prompt and len(prompt) > LONGEST_RATED:
                raise ApiError(
                    400, f"logprobs of more than {LONGEST_RATED:,} prompt tokens are not offered", param="echo",
                    code="unsupported_value",
                )  # fmt: skip
            limit = min(most_tokens if wanted is None else wanted, room - len(prompt), most_tokens)
            params = body.params(limit, answers, constraint)
            self._require_tokens(params)
            requests.append(_request(prompt, params, tenant, body.windlass, key, planned, segments))
        call = EngineCall(self.engine, requests, self.model.tokenizer.vocabulary, metrics)
        self._open.add(call)
        call.when_done(lambda: self._open.discard(call))
        return call

    @functools.cached_property
    def grammars(self) -> Grammars:
        """What answers can be held to."""
        vocabulary = self.model.tokenizer.vocabulary
        tokens = map(vocabulary.bytes_of, range(self.model.decoder.config.vocab_size))
        return Grammars(tokens, self.engine.engine.end_ids)

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return self.engine.engine.busy

    @property
    def has_room(self) -> bool:
        """Whether one more call would be taken."""
        return self.engine.snapshot().waiting < self._waiting

    def gauges(self) -> dict[str, float | dict[str, float]]:
        """How the engine stands, for the metrics."""
        stats = self.engine.snapshot()
        pages = {"free": stats.pages.free, "cached": stats.pages.cached, "used": stats.pages.used}
        pages["adapters"] = stats.pages.adapters
        return {
            "queue_depth": stats.waiting,
            "running": stats.running,
            "queued_tokens": stats.queued_tokens,
            "kv_pages": dict(pages),
            "prefix_hit_tokens": self.engine.engine.kv.hit_tokens,
            "engine_tokens_per_second": stats.tokens_per_second,
        }

    def stop_admission(self) -> None:
        """Take nothing new; what runs goes on."""
        self._closing = True

    def close(self) -> None:
        """Cancel what the server's clients still wait for."""
        self._closing = True
        for call in list(self._open):
            call.cancel()

    def adapters(self, tenant: Tenant) -> list[str]:
        """Names of the adapters that a tenant may ask for."""
        adapters = self.engine.engine.adapters
        return [] if adapters is None else [info.name for info in adapters.store.list(tenant=tenant.name)]

    def _adapter(self, name: str | None, tenant: Tenant) -> str | None:
        adapters = self.engine.engine.adapters
        if name is None:
            return None
        if adapters is None:
            raise AdapterNotFound(f"no adapter {name[:80]!r}: the model takes none")
        return adapters.store.resolve(name, tenant=tenant.name)

    def _require_tokens(self, params: SamplingParams) -> None:
        size = self.model.tokenizer.size
        for token in params.logit_bias:
            if not 0 <= token < size:
                raise ApiError(400, f"logit_bias: the model has no token {token}", param="logit_bias")


def too_long(prompt: str, wanted: int, room: int) -> ApiError:
    """What is answered when prompt and answer do not fit the context."""
    return ApiError(
        400,
        f"the prompt has {prompt} tokens and {wanted:,} are to be made, the model holds {room:,} together",
        hint="send less, or lower max_tokens",
        param="messages",
        code="context_length_exceeded",
    )


def _request(
    prompt: list[int],
    params: SamplingParams,
    tenant: Tenant,
    options: WindlassOptions | None,
    adapter: str | None,
    planned: PlannedMember | None,
    segments: tuple[Segment, ...],
) -> Request:
    options = options or WindlassOptions()
    deadline = None if options.deadline_ms is None else time.monotonic() + options.deadline_ms / 1000
    return Request(
        uuid.uuid4().hex,
        tokens_of(prompt),
        params,
        tenant=tenant.name,
        adapter=adapter,
        priority=options.priority or 0,
        cache=options.cache != "off" and params.prompt_logprobs is None,
        segments=segments,
        reuse_chunks=options.cache == "chunks",
        shared=planned if params.prompt_logprobs is None else None,
        arrival=time.monotonic(),
        deadline=deadline,
    )
