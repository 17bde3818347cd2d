"""What the owner of a server arranges while it runs: adapters on the model, and prompts whose pages stay in memory."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from windlass.app.http.engine_model import EngineModel
from windlass.app.http.openai_schema import MOST_MESSAGES, Message, conversation
from windlass.app.http.replies import ApiError
from windlass.app.http.services import Services, caller_of, services_of
from windlass.serving.adapters import AdapterInfo, AdapterStore

router = APIRouter(prefix="/v1")
LONGEST_PIN_S = 86_400.0

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    tenant: Annotated[str, StringConstraints(max_length=63)] | None = None


class AdapterRequest(_Body):
    """`POST /v1/adapters`: a folder of this machine in PEFT's format, and its name; for one tenant or for all."""

    name: Name
    path: Name


class PinRequest(_Body):
    """`POST /v1/cache/pin`: the beginning of prompts that come again, and how long its pages stay."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None
    seconds: Annotated[float, Field(gt=0, le=LONGEST_PIN_S)] = 3600.0


@router.get("/adapters")
async def list_adapters(request: Request, tenant: str = "") -> JSONResponse:
    """The adapters that everybody may use, and those of a tenant."""
    store = _store(await _engine(services_of(request)))
    return JSONResponse({"object": "list", "data": [_shown(info) for info in store.list(tenant=tenant)]})


@router.post("/adapters")
async def add_adapter(request: Request, body: AdapterRequest) -> JSONResponse:
    """Read, check and name an adapter. A name that is taken stands for the new one from the next request on."""
    services = services_of(request)
    store = _store(await _engine(services))
    info = await services.call(store.register, body.name, Path(body.path), tenant=body.tenant or "")
    return JSONResponse(_shown(info), status_code=201)


@router.delete("/adapters/{name}")
async def remove_adapter(request: Request, name: str, tenant: str = "") -> JSONResponse:
    """Forget a name; requests that run with the adapter go on."""
    store = _store(await _engine(services_of(request)))
    if not store.remove(name, tenant=tenant):
        raise ApiError(404, f"no adapter {name[:80]!r}", code="adapter_not_found")
    return JSONResponse({"name": name, "object": "adapter", "deleted": True})


@router.post("/cache/pin")
async def pin(request: Request, body: PinRequest) -> JSONResponse:
    """Keep what is known of a prompt's beginning in memory; how many tokens that are."""
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "prompt: either a prompt or messages are needed", param="prompt", code="invalid_value")
    services = services_of(request)
    engine = await _engine(services)
    tokenizer = engine.model.tokenizer
    if body.messages is None:
        tokens = await services.call(tokenizer.prompt, body.prompt or "")
    else:
        tokens = await services.call(tokenizer.chat, conversation(body.messages))
    tenant = body.tenant or caller_of(request).tenant.name
    kv, until = engine.engine.engine.kv, time.monotonic() + body.seconds
    pinned = await services.call(engine.engine.between_steps, lambda: kv.pin(tokens, until, tenant=tenant))
    return JSONResponse({"object": "cache.pin", "tokens": len(tokens), "pinned_tokens": pinned})


@router.post("/cache/clear")
async def clear(request: Request) -> JSONResponse:
    """Forget every page that no request uses and nobody pinned."""
    services = services_of(request)
    engine = await _engine(services)
    kv = engine.engine.engine.kv
    before = kv.stats().cached
    await services.call(engine.engine.between_steps, kv.clear)
    return JSONResponse({"object": "cache", "cleared_pages": before - kv.stats().cached})


async def _engine(services: Services) -> EngineModel:
    engine = await services.call(services.engine)
    if engine is None:
        raise ApiError(400, "the model does not run on the engine of this machine", code="feature_unavailable")
    return engine


def _store(engine: EngineModel) -> AdapterStore:
    adapters = engine.engine.engine.adapters
    if adapters is None:
        raise ApiError(400, "this engine runs no adapters", code="feature_unavailable")
    return adapters.store


def _shown(info: AdapterInfo) -> dict[str, Any]:
    return {"object": "adapter", **dataclasses.asdict(info)}
