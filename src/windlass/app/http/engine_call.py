"""One HTTP call on the serving engine: one request for each prompt, their answers as one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from windlass.app.http.completion import Choice, Completion, Piece, TokenChance
from windlass.app.http.metrics import Metrics
from windlass.core.errors import Cancelled, EngineBug
from windlass.serving.request import FinishReason, Request, Sequence

if TYPE_CHECKING:
    from windlass.models.tokenizer import Vocabulary
    from windlass.serving.async_engine import AsyncEngine
    from windlass.serving.batch import Sampled
    from windlass.serving.engine import Event, RequestHandle


class EngineCall:
    """Requests that are under way on the engine for one client; see `Call`.

    Args:
        engine: Where they run.
        requests: One for each prompt, each with the same number of answers.
        vocabulary: Spells tokens, when their chances are wanted.
        metrics: Where waiting and durations are counted, under the requests' tenant.

    Raises:
        QueueFull: There is no room for one of them; none is started then. Else what `Engine.submit` raises.
    """

    def __init__(self, engine: AsyncEngine, requests: Items[Request], vocabulary: Vocabulary, metrics: Metrics) -> None:
        self._engine, self._vocabulary, self._metrics = engine, vocabulary, metrics
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._lock = threading.Lock()
        self._tell_done: list[Callable[[], object]] = []
        params = requests[0].params
        self._wants_tokens = params.logprobs is not None
        self._prompt_tokens = sum(len(request.prompt) for request in requests)
        self._answers = [_Answer() for _ in range(len(requests) * params.n)]
        self._submitted = time.monotonic()
        self._handles: list[RequestHandle] = []
        self._tenant = requests[0].tenant
        try:
            for request in requests:
                self._handles.append(engine.submit(request))
        except BaseException:
            self.cancel()
            raise
        self.when_done(self._measure_end)
        for handle in self._handles:
            handle.listener = self._listen
        self._listen()

    @property
    def done(self) -> bool:
        return all(handle.done for handle in self._handles)

    @property
    def tokens_used(self) -> int:
        """Tokens of the prompts and of the answers so far."""
        made = sum(seq.made for handle in self._handles for seq in handle.sequences)
        return self._prompt_tokens + made

    def cancel(self) -> None:
        for handle in self._handles:
            if not handle.done:
                self._engine.cancel(handle.id)

    def when_done(self, tell: Callable[[], object]) -> None:
        with self._lock:
            self._tell_done.append(tell)
        self._listen()

    async def pieces(self, silence: float) -> AsyncIterator[Piece | None]:
        while True:
            self._news.clear()
            over = self.done
            for place, handle in enumerate(self._handles):
                for piece in self._read(place, handle.take()):
                    yield piece
            if over:
                return
            try:
                await asyncio.wait_for(self._news.wait(), silence)
            except TimeoutError:
                yield None

    async def result(self) -> Completion:
        async for _ in self.pieces(60.0):
            pass
        for answer in self._answers:
            if answer.error is not None:
                raise answer.error
        width = len(self._answers) // len(self._handles)
        prompts = [self._prompt(handle.sequences[0]) for handle in self._handles]
        choices = tuple(
            answer.choice(index, self._wants_tokens, prompts[index // width])
            for index, answer in enumerate(self._answers)
        )
        made = sum(answer.made for answer in self._answers)
        approximations = [handle.approximations for handle in self._handles if handle.approximations]
        extra = {"windlass": {"approx": approximations[0]}} if approximations else {}
        return Completion(choices, self._prompt_tokens, made, extra)

    def _read(self, place: int, events: list[Event]) -> list[Piece]:
        """Note what happened; what a slow reader missed comes in one piece for each answer."""
        fresh: dict[int, list[Event]] = {}
        width = len(self._answers) // len(self._handles)
        for event in events:
            fresh.setdefault(place * width + event.index, []).append(event)
        pieces = []
        for index, news in fresh.items():
            answer = self._answers[index]
            self._measure(answer, news)
            text = "".join(event.text for event in news)
            sampled = [event.sampled for event in news if event.sampled is not None]
            tokens = tuple(self._chance(token) for token in sampled) if self._wants_tokens else ()
            answer.take(text, len(sampled), tokens, news[-1])
            if text or tokens:
                pieces.append(Piece(index, text, tokens))
        return pieces

    def _measure(self, answer: _Answer, news: list[Event]) -> None:
        for event in news:
            if event.sampled is None:
                continue
            if answer.last_token is None:
                self._metrics.first_token.labels(self._tenant).observe(time.monotonic() - self._submitted)
            else:
                self._metrics.between_tokens.labels(self._tenant).observe(max(0.0, event.time - answer.last_token))
            answer.last_token = event.time

    def _measure_end(self) -> None:
        self._metrics.end_to_end.labels(self._tenant).observe(time.monotonic() - self._submitted)

    def _prompt(self, seq: Sequence) -> tuple[TokenChance, ...]:
        """The tokens of the prompt, when they were to be rated."""
        if seq.request.params.prompt_logprobs is None:
            return ()
        first, rated = self._spelled(seq.tokens[0], None), seq.rated or {}
        return (first, *(self._chance(rated[place]) for place in range(1, seq.prompt_length)))

    def _chance(self, sampled: Sampled) -> TokenChance:
        top = tuple(self._spelled(token, logprob) for token, logprob in sampled.top)
        return self._spelled(sampled.token, sampled.logprob or 0.0, top)

    def _spelled(self, token: int, logprob: float | None, top: tuple[TokenChance, ...] = ()) -> TokenChance:
        raw = self._vocabulary.bytes_of(token)
        text = raw.decode("utf-8", "replace") if raw else self._vocabulary.pieces[token]
        return TokenChance(text, raw, logprob, top)

    def _listen(self) -> None:
        """Called by the engine's thread whenever there is news."""
        if self.done:
            with self._lock:
                waiting, self._tell_done = self._tell_done, []
            for tell in waiting:
                tell()
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop is closed: the server is gone and nobody listens
            self.cancel()


@dataclass(slots=True)
class _Answer:
    """One answer as it grows."""

    texts: list[str] = field(default_factory=list)
    made: int = 0
    tokens: list[TokenChance] = field(default_factory=list)
    finish: FinishReason | None = None
    error: Exception | None = None
    last_token: float | None = None

    def take(self, text: str, made: int, tokens: tuple[TokenChance, ...], last: Event) -> None:
        self.texts.append(text)
        self.made += made
        self.tokens += tokens
        self.finish = last.finish
        if last.finish in (FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ERROR):
            self.error = last.error or Cancelled("the request was cancelled")

    def choice(self, index: int, with_tokens: bool, prompt: tuple[TokenChance, ...]) -> Choice:
        if self.finish is None:
            raise EngineBug(f"answer {index} has no end")
        finish = "length" if self.finish is FinishReason.LENGTH else "stop"
        return Choice(index, "".join(self.texts), finish, tuple(self.tokens) if with_tokens else None, prompt=prompt)
