"""What the routes and the page share: one pipeline, the queue of its model, threads for short calls, metrics."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar
from urllib.parse import urlsplit

from windlass.app.http.admission import Admission
from windlass.app.http.batches import BatchRunner, BatchStore
from windlass.app.http.engine_model import EngineModel
from windlass.app.http.file_store import FileStore
from windlass.app.http.generation import Generation, GenerationQueue
from windlass.app.http.limits import Limits
from windlass.app.http.metrics import Metrics
from windlass.app.http.replies import ApiError
from windlass.app.http.tenants import LOCAL, Tenant
from windlass.app.progress_state import PageProgress
from windlass.core.errors import QueueFull
from windlass.serving.engine_chat import EngineChat

if TYPE_CHECKING:
    from fastapi import Request

    from windlass.models.chat_model import ChatModel
    from windlass.models.encoder import Encoder
    from windlass.retrieval.overview import Overview
    from windlass.retrieval.pipeline import Pipeline
    from windlass.serving.request import PlannedMember

P = ParamSpec("P")
T = TypeVar("T")

CHARGED = ("prompt_tokens", "completion_tokens")
"""What of an answer's usage counts against its tenant's tokens a minute."""
_OVERVIEW_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, the request's id (empty for a page's connection), and its place in a batch's plan."""

    tenant: Tenant
    request_id: str
    planned: PlannedMember | None = None


class _Cancellable(Protocol):
    def cancel(self) -> None: ...

    def when_done(self, tell: Callable[[], object]) -> None: ...


class Services:
    """Everything behind the HTTP surface of one folder.

    Args:
        pipeline: The open pipeline; closing it stays the caller's business.
        limits: Bounds of the server.
        progress: What the indexing job tells; one that stays silent when None.
        tenants: Who has keys; without any, everybody is `LOCAL`.
    """

    runner: BatchRunner

    def __init__(
        self,
        pipeline: Pipeline,
        limits: Limits,
        progress: PageProgress | None = None,
        tenants: Sequence[Tenant] = (),
    ) -> None:
        self.pipeline = pipeline
        self.tenants = {tenant.name: tenant for tenant in tenants or (LOCAL,)}
        runs = pipeline.workspace.state / "runs"
        self.files, self.batches = FileStore(runs / "files"), BatchStore(runs / "batches")
        self.limits = limits
        self.progress = progress or PageProgress()
        self.metrics = Metrics()
        self.admission = Admission()
        self.queue = GenerationQueue(limits.waiting, self.metrics)
        self._calls: dict[tuple[str, str], _Cancellable] = {}
        self._engine: EngineModel | None = None
        self._engine_lock = threading.Lock()
        self.draining = False
        self.started = time.time()
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="windlass-call")
        self._pending = 0
        self._overview: tuple[float, int, Overview] | None = None
        self._overview_lock = threading.Lock()
        self.metrics.watch(self._gauges)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a short blocking function in one of the threads.

        Raises:
            QueueFull: Too many calls wait already.
        """
        if self._pending >= self.limits.threads + self.limits.calls_waiting:
            self.metrics.rejected.labels("calls_full").inc()
            raise QueueFull(f"{self._pending} calls are running or waiting", 1)
        self._pending += 1
        try:
            work = functools.partial(function, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._pending -= 1

    def submit(self, caller: Caller, work: Callable[[Generation[T]], T]) -> Generation[T]:
        """Put work in the queue of what is done one by one: questions over the folder, models without an engine.

        Raises:
            QueueFull: Too many wait already.
            ApiError: The server is stopping.
        """
        generation = self.queue.submit(work, caller.tenant.name)
        self.track(caller, generation)
        return generation

    def track(self, caller: Caller, call: _Cancellable) -> None:
        """Let `cancel` find a call by the id of its request, as long as it lasts."""
        place = (caller.tenant.name, caller.request_id)
        self._calls[place] = call
        call.when_done(lambda: self._calls.pop(place, None))

    def cancel(self, tenant: Tenant, request_id: str) -> bool:
        """Stop a running or waiting request of a tenant; False when it has none of that id."""
        call = self._calls.get((tenant.name, request_id))
        if call is None:
            return False
        call.cancel()
        return True

    def engine(self) -> EngineModel | None:
        """The engine of the language model, started when this is the first use: call it in a thread.

        None when the model does not run on the compiled engine of this machine.
        """
        model = self.chat_model()
        if not isinstance(model, EngineChat):
            return None
        with self._engine_lock:
            if self._engine is None or self._engine.chat is not model:
                if self._engine is not None:
                    self._engine.close()
                weights = {tenant.name: tenant.weight for tenant in self.tenants.values()}
                self._engine = EngineModel(model, weights=weights, waiting=self.limits.waiting)
            return self._engine

    @property
    def has_room(self) -> bool:
        """Whether one more request for a model would be taken."""
        return self.queue.has_room and (self._engine is None or self._engine.has_room)

    @property
    def idle(self) -> bool:
        """Whether nobody waits for a model."""
        return self.queue.depth == 0 and (self._engine is None or not self._engine.busy)

    async def overview(self) -> Overview:
        """The folder's overview, read again when the index changed or the last reading is a second old."""
        return await self.call(self.overview_now)

    def overview_now(self) -> Overview:
        """As `overview`, in the calling thread."""
        with self._overview_lock:
            now, generation = time.monotonic(), self.pipeline.generation()
            if self._overview is not None:
                read, seen, known = self._overview
                # While a job runs, states change without a new generation at every step.
                if seen == generation and (now - read < _OVERVIEW_SECONDS or not self.progress.snapshot().active):
                    return known
            fresh = self.pipeline.overview()
            self._overview = (now, generation, fresh)
            return fresh

    def chat_model(self) -> ChatModel:
        """The language model, loaded when this is the first use: call it in a thread.

        Raises:
            ApiError: There is none.
        """
        model = self.pipeline.model
        if model is None:
            raise ApiError(
                503, "no language model is installed", hint="run `windlass models pull`", code="model_unavailable"
            )
        return model

    def encoder(self) -> Encoder:
        """The embedding model, as `chat_model`."""
        encoder = self.pipeline.encoder
        if encoder is None:
            raise ApiError(
                503, "no embedding model is installed", hint="run `windlass models pull`", code="model_unavailable"
            )
        return encoder

    @property
    def chat_model_id(self) -> str:
        """The name under which clients ask for the plain language model; empty when none is set."""
        return model_id(self.pipeline.settings.models.decoder)

    @property
    def encoder_id(self) -> str:
        """The name under which clients ask for embeddings; empty when none is set."""
        return model_id(self.pipeline.settings.models.encoder)

    def stop_admission(self) -> None:
        """Say "not ready" from now on and refuse new generations; what runs goes on."""
        self.draining = True
        self.queue.stop_admission()
        if self._engine is not None:
            self._engine.stop_admission()

    def close(self) -> None:
        """Cancel what still runs and end the threads."""
        self.stop_admission()
        self.queue.close()
        if self._engine is not None:
            self._engine.close()
        self.batches.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _gauges(self) -> dict[str, float | dict[str, float]]:
        overview = self.overview_now()
        embedded, wanted = overview.embedded
        return {
            **(self._engine.gauges() if self._engine is not None else {}),
            "generation_queue_depth": self.queue.depth,
            "passages": overview.passages,
            "passages_embedded": embedded,
            "passages_to_embed": wanted - embedded,
            "files": dict(overview.by_state),
        }


def services_of(request: Request) -> Services:
    """The services of the application that a request came to."""
    services: Services = request.scope["windlass"]
    return services


def caller_of(request: Request) -> Caller:
    """Who sent a request."""
    caller: Caller = request.scope["windlass_caller"]
    return caller


def model_id(setting: str) -> str:
    """A public name for a configured model: paths lose their folders and ending, URLs all but the host.

    Example:
        >>> model_id("/models/Tiny-1B.gguf"), model_id("http://10.0.0.7:8000/v1"), model_id("smollm2-135m-instruct")
        ('Tiny-1B', '10.0.0.7', 'smollm2-135m-instruct')
    """
    if not setting or setting == "none":
        return ""
    if setting.startswith(("http://", "https://")):
        return urlsplit(setting).hostname or "remote"
    name = PurePath(setting).name
    return name.removesuffix(".gguf") or name
