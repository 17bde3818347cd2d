"""Files and batches of the OpenAI API: `/v1/files`, `/v1/batches`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import httpx
from fastapi import APIRouter, File, Form, Query, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from windlass.app.http.batches import ENDPOINTS, Answerer, Batch, Planner
from windlass.app.http.file_store import StoredFile
from windlass.app.http.openai_schema import ChatRequest, conversation
from windlass.app.http.replies import ApiError
from windlass.app.http.services import Caller, Services, caller_of, services_of
from windlass.core.errors import QueueFull, WindlassError
from windlass.serving.batch_planner import plan_batch
from windlass.serving.request import PlannedMember, tokens_of

if TYPE_CHECKING:
    from fastapi import FastAPI

router = APIRouter(prefix="/v1")

ShortText = Annotated[str, StringConstraints(max_length=512)]
Page = Annotated[int, Query(ge=1, le=10_000)]


class BatchRequest(BaseModel):
    """`POST /v1/batches`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    input_file_id: ShortText
    endpoint: Literal["/v1/chat/completions", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[ShortText, ShortText], Field(max_length=16)] | None = None


@router.post("/files")
async def upload(
    request: Request, file: Annotated[UploadFile, File()], purpose: Annotated[Literal["batch"], Form()]
) -> JSONResponse:
    """Keep a file for a batch."""
    services, tenant = services_of(request), caller_of(request).tenant.name
    content = await file.read()
    used = await services.call(services.files.used_bytes, tenant)
    if used + len(content) > services.files.most_bytes:
        raise ApiError(
            413,
            f"{tenant} keeps {used:,} bytes of files and may keep {services.files.most_bytes:,}",
            hint="delete some",
            code="files_full",
        )
    name = (file.filename or "upload.jsonl")[:255]
    return JSONResponse((await services.call(services.files.add, tenant, name, purpose, content)).record())


@router.get("/files")
async def list_files(request: Request, limit: Page = 10_000, after: str | None = None) -> JSONResponse:
    """The files, the newest first."""
    services = services_of(request)
    every = [file.record() for file in await services.call(services.files.all, caller_of(request).tenant.name)]
    return JSONResponse(_page(every, limit, after))


@router.get("/files/{file_id}")
async def get_file(request: Request, file_id: str) -> JSONResponse:
    """What a file is."""
    return JSONResponse((await _file(request, file_id)).record())


@router.get("/files/{file_id}/content")
async def file_content(request: Request, file_id: str) -> Response:
    """What stands in a file."""
    file = await _file(request, file_id)
    services = services_of(request)
    return Response(await services.call(services.files.content, file), media_type="application/octet-stream")


@router.delete("/files/{file_id}")
async def delete_file(request: Request, file_id: str) -> JSONResponse:
    """Forget a file."""
    file, services = await _file(request, file_id), services_of(request)
    for batch in await services.call(services.batches.all, file.tenant):
        if batch.unfinished and batch.input_file_id == file.id:
            raise ApiError(409, f"{batch.id} reads {file.id}", hint="cancel the batch first", code="file_in_use")
    await services.call(services.files.remove, file)
    return JSONResponse({"id": file.id, "object": "file", "deleted": True})


@router.post("/batches")
async def create_batch(request: Request, body: BatchRequest) -> JSONResponse:
    """Have every line of a file answered, as far as nobody else waits."""
    services, tenant = services_of(request), caller_of(request).tenant.name
    await _file(request, body.input_file_id, param="input_file_id")
    batch = await services.call(
        services.batches.new, tenant, body.endpoint, body.input_file_id, body.completion_window, body.metadata or {}
    )
    services.runner.wake()
    return JSONResponse(batch.record())


@router.get("/batches")
async def list_batches(request: Request, limit: Page = 20, after: str | None = None) -> JSONResponse:
    """The batches, the newest first."""
    services = services_of(request)
    every = [batch.record() for batch in await services.call(services.batches.all, caller_of(request).tenant.name)]
    return JSONResponse(_page(every, limit, after))


@router.get("/batches/{batch_id}")
async def get_batch(request: Request, batch_id: str) -> JSONResponse:
    """How far a batch is."""
    return JSONResponse((await _batch(request, batch_id)).record())


@router.post("/batches/{batch_id}/cancel")
async def cancel_batch(request: Request, batch_id: str) -> JSONResponse:
    """Stop a batch; what was answered is kept."""
    services, batch = services_of(request), await _batch(request, batch_id)
    if not batch.unfinished:
        raise ApiError(409, f"{batch.id} is {batch.status} already", code="batch_finished")
    return JSONResponse((await services.runner.cancel(batch)).record())


def answerer(app: FastAPI, services: Services) -> Answerer:
    """Answers a batch's requests by the very routes that clients use, with their checks, in the tenant's name."""

    async def answer(
        tenant: str, endpoint: str, body: dict[str, Any], planned: PlannedMember | None
    ) -> tuple[int, dict[str, Any]]:
        assert endpoint in ENDPOINTS
        caller = Caller(services.tenants[tenant], "", planned)

        async def as_caller(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "windlass": services, "windlass_caller": caller}, receive, send)

        transport = httpx.ASGITransport(as_caller)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
            reply = await client.post(endpoint, json=body)
        return reply.status_code, reply.json()

    return answer


def planner(services: Services) -> Planner:
    """Plans the chats of a batch that go to the plain language model: what their prompts begin with in common."""

    async def plan(tenant: str, endpoint: str, bodies: list[dict[str, Any]]) -> list[PlannedMember | None]:
        members: list[PlannedMember | None] = [None] * len(bodies)
        if endpoint != "/v1/chat/completions" or not services.chat_model_id:
            return members
        try:
            prompts = await services.call(_prompts, services, bodies)
        except (ApiError, QueueFull):  # there is no model now; each request will say so
            return members
        places = [place for place, prompt in enumerate(prompts) if prompt is not None]
        if len(places) > 1:
            found = await services.call(plan_batch, [prompts[place] for place in places])
            for member, place in enumerate(places):
                members[place] = PlannedMember(found, member)
        return members

    return plan


def _prompts(services: Services, bodies: list[dict[str, Any]]) -> list[Any]:
    """Token ids of each chat with the plain model; None for what is none, or is not well formed."""
    engine = services.engine()
    if engine is None:
        return [None] * len(bodies)
    found: list[Any] = []
    for body in bodies:
        prompt = None
        if body.get("model") == services.chat_model_id and (body.get("n") or 1) == 1 and not body.get("windlass"):
            # What is wrong with a request is said when it is asked.
            with contextlib.suppress(ApiError, ValidationError, WindlassError):
                messages = conversation(ChatRequest.model_validate(body).messages)
                prompt = tokens_of(engine.model.tokenizer.chat(messages))
        found.append(prompt)
    return found


async def _file(request: Request, file_id: str, param: str | None = None) -> StoredFile:
    services = services_of(request)
    file = await services.call(services.files.get, caller_of(request).tenant.name, file_id)
    if file is None:
        raise ApiError(404, f"no file {file_id[:80]!r}", hint="GET /v1/files lists them", param=param)
    return file


async def _batch(request: Request, batch_id: str) -> Batch:
    services = services_of(request)
    batch = await services.call(services.batches.get, caller_of(request).tenant.name, batch_id)
    if batch is None:
        raise ApiError(404, f"no batch {batch_id[:80]!r}", hint="GET /v1/batches lists them")
    return batch


def _page(every: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    start = 0
    if after is not None:
        places = [place for place, record in enumerate(every) if record["id"] == after]
        if not places:
            raise ApiError(400, f"after: nothing has the id {after[:80]!r}", param="after", code="invalid_value")
        start = places[0] + 1
    data = every[start : start + limit]
    ids = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {"object": "list", "data": data, **ids, "has_more": start + limit < len(every)}
