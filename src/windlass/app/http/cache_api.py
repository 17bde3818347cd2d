"""What stays in the engine's memory, for administrators: prompts that are pinned, and a cache that is cleared."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from windlass.app.http.engine_model import EngineModel
from windlass.app.http.openai_schema import MOST_MESSAGES, Message, conversation
from windlass.app.http.replies import ApiError
from windlass.app.http.services import Services, caller_of, services_of

router = APIRouter(prefix="/v1/cache")
LONGEST_PIN_S = 86_400.0


class PinRequest(BaseModel):
    """`POST /v1/cache/pin`: the beginning of prompts that come again, whose they are, and how long its pages stay."""

    model_config = ConfigDict(strict=True, extra="forbid")

    tenant: Annotated[str, StringConstraints(max_length=63)] | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None
    seconds: Annotated[float, Field(gt=0, le=LONGEST_PIN_S)] = 3600.0


@router.post("/pin")
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


@router.post("/clear")
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
