"""A small stand-in for the pipeline with a scripted model, and a real server in front of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from tests.models.tiny_models import hf_config, random_weights, write_folder
from windlass.app.http.connections import PatientProtocol
from windlass.app.http.limits import Limits
from windlass.app.http.server import create_app, limits_of
from windlass.core.errors import Cancelled, NotFound, UsageError
from windlass.core.settings import ServerSettings, Settings
from windlass.models.generate import LocalModel
from windlass.retrieval.overview import FileInfo, Overview
from windlass.retrieval.types import Answer, Citation, Hit, Passage, Sentence
from windlass.serving.engine_chat import EngineChat

TEXT = "Rules of the port.\n\nVessels over 200 m berth at quay 4. The harbour master approves dredging works.\n"
TINY = hf_config(max_position_embeddings=512, hidden_size=64, head_dim=16)
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


class ScriptedModel:
    """Says what it was told to say, one word a piece, and waits at `gate` before each when there is one."""

    context_length = 64

    def __init__(self, text: str = "one two three four") -> None:
        self.text = text
        self.gate: threading.Semaphore | None = None
        self.calls: list[dict[str, Any]] = []
        self.made = 0
        self.ended = threading.Event()
        self.error: Exception | None = None

    def count(self, text: str) -> int:
        return len(text.split())

    def count_chat(self, messages: Sequence[dict[str, str]]) -> int:
        return sum(self.count(message["content"]) + 2 for message in messages)

    def chat(self, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
        self.calls.append({"messages": list(messages), **options})
        try:
            for place, word in enumerate(self.text.split(" ")[: options["max_tokens"]]):
                while self.gate is not None and not self.gate.acquire(timeout=0.02):
                    if options["cancel"]():
                        raise Cancelled("stopped")
                if options["cancel"]():
                    raise Cancelled("stopped")
                if self.error is not None and place == 1:
                    raise self.error
                self.made += 1
                yield word if place == 0 else " " + word
        finally:
            self.ended.set()


class ScriptedEncoder:
    dim = 8
    fingerprint = "scripted"
    max_tokens = 256

    def count(self, text: str) -> int:
        return len(text.split())

    def encode_passages(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        rows = [np.random.default_rng(sum(text.encode())).normal(size=self.dim) for text in texts]
        vectors = np.asarray(rows, np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@dataclass
class _Workspace:
    folder: Path
    state: Path


@dataclass
class ScriptedPipeline:
    """Knows one document and one question."""

    folder: Path
    model: ScriptedModel | None = field(default_factory=ScriptedModel)
    encoder: ScriptedEncoder | None = field(default_factory=ScriptedEncoder)
    settings: Settings = field(default_factory=Settings)
    notices: tuple[str, ...] = ()
    asked: list[dict[str, Any]] = field(default_factory=list)
    name: str = f"rules {HOSTILE}.md"

    @property
    def workspace(self) -> _Workspace:
        return _Workspace(self.folder, self.folder)

    def search(self, query: str, k: int | None = None, *, mode: str = "hybrid") -> list[Hit]:
        if not query.strip():
            raise UsageError("the question is empty")
        start = TEXT.index("Vessels")
        passage = Passage(1, 7, self.name, start, len(TEXT), f"Rules > {HOSTILE}", TEXT[start:] + HOSTILE)
        return [Hit(passage, 0.5, {"lexical": 1, "dense": 3})]

    def ask(self, question: str, *, on_token: Callable[[str], None] | None = None, **options: Any) -> Answer:
        self.asked.append({"question": question, **options})
        hits = tuple(self.search(question))
        if "dredging" not in question:
            return Answer(question, False, "Not found in your files.", (), "extract", hits, 1, 3)
        quote = "The harbour master approves dredging works."
        start = TEXT.index(quote)
        citation = Citation(1, self.name, 7, start, start + len(quote), quote, 0.9)
        sentence = Sentence(quote, (citation,))
        return Answer(question, True, f"{quote} [1]", (sentence,), "extract", hits, 1, 3)

    def overview(self) -> Overview:
        failed = [(self.name, "broken", f"not a PDF: {HOSTILE}")]
        return Overview(2, 300, {"markdown": (2, 300)}, {"indexed": 1, "failed": 1}, [], 0, [], failed, 1, (1, 1))

    def files(self) -> list[FileInfo]:
        return [FileInfo(self.name, 300, "markdown", "indexed", None, None, "Rules", None, 7, None)]

    def context(self, doc_id: int, start: int, end: int, *, around: int = 1500) -> Any:
        from windlass.retrieval.pipeline import SourceView

        if doc_id != 7:
            raise NotFound(f"no document {doc_id}")
        if not 0 <= start <= end <= len(TEXT):
            raise UsageError(f"span {start}-{end} is not inside document {doc_id}")
        before, after = TEXT[max(0, start - around) : start], TEXT[end : end + around]
        return SourceView(self.name, "markdown", True, before, TEXT[start:end], after, 3, None)

    def generation(self) -> int:
        return 1


@dataclass
class RunningServer:
    url: str
    port: int
    app: Any
    pipeline: ScriptedPipeline

    @property
    def services(self) -> Any:
        return self.app.state.services

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, **options)

    def until_idle(self, seconds: float = 10.0) -> bool:
        return wait_for(lambda: self.services.queue.depth == 0, seconds)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """True as soon as `condition` holds; False when it never did."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


@contextlib.contextmanager
def running(pipeline: ScriptedPipeline, *, limits: Limits | None = None, **options: Any) -> Iterator[RunningServer]:
    app = create_app(pipeline, page=False, limits=limits, **options)  # type: ignore[arg-type]
    bounds = limits or limits_of(pipeline.settings.server)
    protocol = type("Protocol", (PatientProtocol,), {"header_seconds": bounds.header_seconds})
    server = uvicorn.Server(
        uvicorn.Config(app, http=protocol, log_config=None, timeout_graceful_shutdown=1, timeout_keep_alive=1)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        assert wait_for(lambda: server.started)
        yield RunningServer(f"http://127.0.0.1:{port}", port, app, pipeline)
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def pipeline(tmp_path: Path) -> ScriptedPipeline:
    return ScriptedPipeline(tmp_path)


@pytest.fixture
def serve() -> Any:
    """`with serve(pipeline, ...) as server:`"""
    return running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = write_folder(tmp_path_factory.mktemp("tiny"), TINY, random_weights(TINY))
    model = LocalModel.load(folder, engine="compiled", threads=1)
    hello = [{"role": "user", "content": "hello there"}]
    assert list(model.chat(hello, max_tokens=2))  # compiles what this machine has not compiled yet
    return model


@pytest.fixture
def engine_chat(tiny: LocalModel) -> Iterator[EngineChat]:
    chat = EngineChat.start(tiny, ServerSettings())
    yield chat
    assert chat.engine.drain(10)
    chat.engine.engine.kv.check()
    assert chat.engine.snapshot().pages.used == 0
    chat.close()


@pytest.fixture
def served(pipeline: Any, serve: Any, engine_chat: EngineChat) -> Any:
    """A server over the real engine and a tiny model; no page may be in use at its end."""
    pipeline.model = engine_chat
    with serve(pipeline) as server:
        yield server


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(ScriptedPipeline(tmp_path_factory.mktemp("folder"))) as started:
        yield started


@pytest.fixture
def server(shared_server: RunningServer, pipeline: ScriptedPipeline) -> Iterator[RunningServer]:
    """A server that is started once, with a pipeline of this test's own behind it."""
    shared_server.pipeline = shared_server.services.pipeline = pipeline
    yield shared_server
    assert shared_server.until_idle()


@pytest.fixture
def until() -> Any:
    return wait_for
