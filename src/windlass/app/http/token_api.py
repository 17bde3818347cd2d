"""Tokens of the chat model, for clients that count before they send: `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from windlass.app.http.openai_api import no_such_model
from windlass.app.http.openai_schema import MOST_MESSAGES, MOST_TOKENS, Message, conversation
from windlass.app.http.replies import ApiError
from windlass.app.http.services import Services, caller_of, services_of
from windlass.app.http.tenants import Tenant

if TYPE_CHECKING:
    from windlass.models.generate import LocalModel

router = APIRouter()


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    model: str | None = None


class TokenizeRequest(_Body):
    """`POST /tokenize`: a text, or a conversation as its whole prompt."""

    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None


class DetokenizeRequest(_Body):
    """`POST /detokenize`."""

    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_TOKENS)]


@router.post("/tokenize")
async def tokenize(request: Request, body: TokenizeRequest) -> JSONResponse:
    """The token ids of a text or of a conversation's prompt."""
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "prompt: either a prompt or messages are needed", param="prompt", code="invalid_value")
    services = services_of(request)
    return JSONResponse(await services.call(_tokenized, services, caller_of(request).tenant, body))


@router.post("/detokenize")
async def detokenize(request: Request, body: DetokenizeRequest) -> JSONResponse:
    """The text that token ids stand for."""
    services = services_of(request)
    return JSONResponse(await services.call(_detokenized, services, caller_of(request).tenant, body))


def _tokenized(services: Services, tenant: Tenant, body: TokenizeRequest) -> dict[str, object]:
    model = _local_model(services, tenant, body.model)
    if body.messages is None:
        tokens = model.tokenizer.encode(body.prompt or "")
    else:
        tokens = model.tokenizer.chat(conversation(body.messages))
    return {"tokens": tokens, "count": len(tokens), "max_model_len": model.context_length}


def _detokenized(services: Services, tenant: Tenant, body: DetokenizeRequest) -> dict[str, str]:
    model = _local_model(services, tenant, body.model)
    for place, token in enumerate(body.tokens):
        if token >= model.tokenizer.size:
            param = f"tokens.{place}"
            known = f"the model knows {model.tokenizer.size:,} tokens"
            raise ApiError(400, f"{param} is {token}, {known}", param=param, code="invalid_value")
    return {"prompt": model.tokenizer.decode(body.tokens)}


def _local_model(services: Services, tenant: Tenant, name: str | None) -> LocalModel:
    from windlass.models.generate import LocalModel
    from windlass.serving.engine_chat import EngineChat

    name = services.chat_model_id if name is None else name
    if name != services.chat_model_id or not tenant.may_use(name):
        raise no_such_model(name)
    found = services.chat_model()
    model = found.model if isinstance(found, EngineChat) else found
    if not isinstance(model, LocalModel):
        raise ApiError(400, f"the tokenizer of {name} is not on this machine", code="feature_unavailable")
    return model
