"""Windlass's own routes: search, questions, the folder's overview, the text around a span, health and metrics."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from windlass.app.http.event_stream import until_disconnect
from windlass.app.http.generation import Generation
from windlass.app.http.replies import plain
from windlass.app.http.services import CHARGED, caller_of, services_of
from windlass.retrieval.types import Answer

router = APIRouter()

LONGEST_QUESTION = 4096
_LARGEST_ID = (1 << 63) - 1

Question = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_QUESTION)]
Offset = Annotated[int, Query(ge=0, le=_LARGEST_ID)]


class AskRequest(BaseModel):
    """`POST /api/ask`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    question: Question
    k: Annotated[int, Field(ge=1, le=100)] | None = None
    mode: Literal["auto", "extract", "generate"] | None = None


@router.get("/health")
async def health() -> JSONResponse:
    """The process answers. Needs no key and tells nothing else."""
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> JSONResponse:
    """200 when questions are taken, 503 while the queue is full or the server stops."""
    services = services_of(request)
    overview = await services.overview()
    state = "stopping" if services.draining else "ready" if services.has_room else "busy"
    body = {
        "status": state,
        "indexing": services.progress.snapshot().active,
        "passages": overview.passages,
        "embedded": list(overview.embedded),
    }
    return JSONResponse(body, 200 if state == "ready" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    services = services_of(request)
    return PlainTextResponse(await services.call(services.metrics.text), media_type=CONTENT_TYPE_LATEST)


@router.get("/api/search")
async def search(
    request: Request,
    q: Annotated[str, Query(min_length=1, max_length=LONGEST_QUESTION)],
    k: Annotated[int, Query(ge=1, le=100)] = 8,
    mode: Literal["hybrid", "lexical", "dense", "hops"] = "hybrid",
) -> JSONResponse:
    """The passages that fit best, with the rank that each retriever gave them."""
    services = services_of(request)
    hits = await services.call(services.pipeline.search, q, k, mode=mode)
    return JSONResponse({"query": q, "mode": mode, "hits": plain(hits), "notices": list(services.pipeline.notices)})


@router.post("/api/ask")
async def ask(request: Request, body: AskRequest) -> JSONResponse:
    """An answer with its citations, or an honest "not found" with the nearest passages."""
    services, caller = services_of(request), caller_of(request)

    def work(generation: Generation[Answer]) -> Answer:
        answer = services.pipeline.ask(
            body.question, k=body.k, mode=body.mode, on_token=lambda _token: generation.check()
        )
        services.admission.charge(caller.tenant, sum(answer.usage.get(kind, 0) for kind in CHARGED))
        return answer

    answer = await until_disconnect(request, services.submit(caller, work))
    return JSONResponse(plain(answer))


@router.get("/api/overview")
async def overview(request: Request) -> JSONResponse:
    """What the folder holds, and how far the running job is."""
    services = services_of(request)
    found = await services.overview()
    folder = str(services.pipeline.workspace.folder.name)
    return JSONResponse({"folder": folder, **plain(found), "progress": _progress(services.progress.snapshot())})


@router.get("/api/files")
async def files(
    request: Request,
    state: Literal["seen", "parsed", "indexed", "failed"] | None = None,
    offset: Annotated[int, Query(ge=0, le=_LARGEST_ID)] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> JSONResponse:
    """Files with their states, in path order, a page at a time."""
    services = services_of(request)
    every = [file for file in await services.call(services.pipeline.files) if state in (None, file.state)]
    return JSONResponse({"total": len(every), "offset": offset, "files": plain(every[offset : offset + limit])})


@router.get("/api/source/{doc_id}")
async def source(
    request: Request,
    doc_id: int,
    start: Offset,
    end: Offset,
    around: Annotated[int, Query(ge=0, le=20_000)] = 1500,
) -> JSONResponse:
    """A span of a document and the text around it."""
    services = services_of(request)
    wanted = max(-1, min(doc_id, _LARGEST_ID))
    return JSONResponse(plain(await services.call(services.pipeline.context, wanted, start, end, around=around)))


def _progress(view: Any) -> dict[str, Any]:
    current = view.current
    return {**plain(view), "current": plain(current) if current else None}
