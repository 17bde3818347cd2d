"""A chat model whose answers are made on the serving engine, beside everybody else's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from windlass.core.errors import Cancelled, ContextLengthError
from windlass.core.settings import ServerSettings
from windlass.models.generate import LocalModel
from windlass.serving.async_engine import AsyncEngine
from windlass.serving.local_engine import local_engine
from windlass.serving.request import FinishReason, Request, SamplingParams, tokens_of
from windlass.serving.scheduler import FairShare


class EngineChat:
    """One model and its engine, running; a `ChatModel`. May be used from several threads at once.

    Args:
        model: A model on the compiled engine.
        engine: Runs it.

    Example:
        chat = EngineChat.start(LocalModel.load(path), ServerSettings())
        print("".join(chat.chat([{"role": "user", "content": "Name a harbour."}], max_tokens=40)))
        chat.close()
    """

    def __init__(self, model: LocalModel, engine: AsyncEngine) -> None:
        self.model, self.engine = model, engine
        self.context_length = model.context_length
        self.count, self.count_chat = model.count, model.count_chat

    @classmethod
    def start(cls, model: LocalModel, settings: ServerSettings) -> EngineChat:
        """Put an engine under `model` as the settings say; its thread ends with `close`.

        Raises:
            UsageError: as `local_engine`.
        """
        engine = local_engine(
            model,
            memory_bytes=settings.kv_cache_mb << 20,
            policy=settings.scheduler,
            tbt_slo_s=settings.tbt_slo_ms / 1000 or None,
        )
        chat = cls(model, AsyncEngine(engine))
        chat.serve_tenants({}, settings.max_waiting)
        return chat

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer to a conversation, as they become readable. Leaving the iterator stops the work.

        Raises:
            UsageError: the conversation does not fit the context, or an option is out of range.
            Cancelled: `cancel()` returned True. Else what ended the request.
        """
        prompt = self.model.tokenizer.chat(messages)
        room = self.context_length - len(prompt)
        if room < 1:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens, the model's context holds {self.context_length} "
                "and needs room for an answer",
                hint="shorten the prompt or use a model with a longer context",
            )
        params = SamplingParams(
            max_tokens=min(max_tokens, room), temperature=temperature, top_p=top_p, seed=seed, stop=tuple(stop)
        )
        request = Request(uuid.uuid4().hex, tokens_of(prompt), params, arrival=time.monotonic())
        return self._pieces(request, cancel or (lambda: False))

    def serve_tenants(self, weights: Mapping[str, float], waiting: int) -> None:
        """From now on share the engine by these weights; `waiting` requests of each tenant may wait."""
        engine = self.engine.engine
        engine.config = replace(engine.config, max_queue=4 * waiting, max_queue_per_tenant=waiting)
        if isinstance(engine.scheduler, FairShare):
            engine.scheduler.queue.weigh(weights)

    def close(self) -> None:
        """Cancel everything and end the engine's thread."""
        self.engine.close()
        if self.engine.engine.adapters is not None:
            self.engine.engine.adapters.store.close()

    def _pieces(self, request: Request, cancelled: Callable[[], bool]) -> Iterator[str]:
        for event in self.engine.events(self.engine.submit(request), cancelled):
            if event.text:
                yield event.text
            if event.finish is FinishReason.CANCELLED:
                raise Cancelled("generation was stopped")
            if event.error is not None:
                raise event.error
