"""A chat model whose answers are made on the serving engine, beside everybody else's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from windlass.core.errors import Cancelled, ContextLengthError
from windlass.core.settings import ServerSettings
from windlass.models.generate import LocalModel
from windlass.serving.adapters import register_installed
from windlass.serving.async_engine import AsyncEngine
from windlass.serving.chunk_cache import ChunkOptions
from windlass.serving.engine import EngineConfig, RequestHandle
from windlass.serving.local_engine import local_engine
from windlass.serving.prompt import segmented
from windlass.serving.request import FinishReason, Request, SamplingParams, tokens_of
from windlass.serving.scheduler import FairShare


class ReplyPieces(Iterator[str]):
    """An answer, piece by piece; nothing is computed before the first is taken.

    Args:
        engine: Where it is made.
        request: What is asked.
        cancelled: Asked now and then whether to stop.
    """

    def __init__(self, engine: AsyncEngine, request: Request, cancelled: Callable[[], bool]) -> None:
        # No way leads from the pieces back to this object, so dropping it ends them, and with them the work.
        self._handles: list[RequestHandle] = []
        self._pieces = _pieces(engine, request, cancelled, self._handles)

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Nobody wants the rest."""
        self._pieces.close()

    @property
    def approximations(self) -> Mapping[str, Mapping[str, float]]:
        """What made it differ from the answer of a full computation, by the name of the option."""
        return self._handles[0].approximations if self._handles else {}


def _pieces(
    engine: AsyncEngine, request: Request, cancelled: Callable[[], bool], handles: list[RequestHandle]
) -> Generator[str, None, None]:
    handles.append(engine.submit(request))
    for event in engine.events(handles[0], cancelled):
        if event.text:
            yield event.text
        if event.finish is FinishReason.CANCELLED:
            raise Cancelled("generation was stopped")
        if event.error is not None:
            raise event.error


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
    def start(cls, model: LocalModel, settings: ServerSettings, chunk_folder: Path | None = None) -> EngineChat:
        """Put an engine under `model` as the settings say, with the adapters that are installed for it; its thread
        ends with `close`.

        Args:
            model: A model on the compiled engine.
            settings: Memory, policy, bounds.
            chunk_folder: Where the passages of prompts outlive the process; None: nowhere.

        Raises:
            UsageError: as `local_engine`.
        """
        chunks = ChunkOptions(
            memory_bytes=settings.chunk_cache_mb << 20, disk_bytes=settings.chunk_disk_mb << 20, folder=chunk_folder
        )
        engine = local_engine(
            model,
            config=EngineConfig(
                chunks=chunks if settings.chunk_cache_mb else None, kv_sparsity=settings.kv_sparsity_percent / 100
            ),
            memory_bytes=settings.kv_cache_mb << 20,
            policy=settings.scheduler,
            tbt_slo_s=settings.tbt_slo_ms / 1000 or None,
        )
        if engine.adapters is not None:
            register_installed(engine.adapters.store)
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
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        return self.chat_over(messages, (), stop=stop, cancel=cancel, **options)  # type: ignore[arg-type]

    def chat_over(
        self,
        messages: Sequence[Mapping[str, str]],
        passages: Sequence[str],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
    ) -> ReplyPieces:
        """As `chat`, about passages: what is computed for them is kept, and used wherever they stand next time.

        With passages the answer is not exactly that of a full computation; the reply says what was taken.

        Args:
            messages: The conversation.
            passages: Texts that stand in its messages, word for word.
            max_tokens, temperature, top_p, seed, stop, cancel: As `chat`.
        """
        tokenizer = self.model.tokenizer
        prompt, segments = segmented(tokenizer, messages, passages) if passages else (tokenizer.chat(messages), ())
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
        request = Request(
            uuid.uuid4().hex, tokens_of(prompt), params, segments=segments, reuse_chunks=bool(passages),
            arrival=time.monotonic(),
        )  # fmt: skip
        return ReplyPieces(self.engine, request, cancel or (lambda: False))

    def serve_tenants(self, weights: Mapping[str, float], waiting: int) -> None:
        """From now on share the engine by these weights; `waiting` requests of each tenant may wait."""
        engine = self.engine.engine
        engine.config = replace(engine.config, max_queue=4 * waiting, max_queue_per_tenant=waiting)
        if isinstance(engine.scheduler, FairShare):
            engine.scheduler.queue.weigh(weights)

    def close(self) -> None:
        """Cancel everything, end the engine's thread, and write what is to outlive it."""
        self.engine.close()
        if self.engine.engine.adapters is not None:
            self.engine.engine.adapters.store.close()
        if self.engine.engine.kv.chunks is not None:
            self.engine.engine.kv.chunks.close()
