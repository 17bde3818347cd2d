"""The OpenAI-compatible routes: models, chat completions, embeddings; and an end for a running request.

Two models chat: the plain language model under its own name, and `windlass`, which answers the last user message
from the folder and says in the extension field `windlass` where the answer stands.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from windlass.app.http.event_stream import DONE, PING, EventStream, event, until_disconnect
from windlass.app.http.generation import Generation
from windlass.app.http.openai_schema import ChatRequest, EmbeddingRequest, conversation
from windlass.app.http.replies import ApiError, plain
from windlass.app.http.services import CHARGED, FOLDER_MODEL, Services, caller_of, services_of
from windlass.app.http.tenants import Tenant
from windlass.core.errors import UsageError

if TYPE_CHECKING:
    from windlass.models.encoder import Encoder
    from windlass.retrieval.types import Answer

router = APIRouter(prefix="/v1")

# No tokenizer makes tokens longer than this on average: a longer prompt is refused before it is tokenized.
_LONGEST_TOKEN = 64


@dataclass(frozen=True, slots=True)
class _Completion:
    """A finished answer. `extra` goes beside the choices."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    extra: dict[str, Any]

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@router.get("/models")
async def list_models(request: Request) -> JSONResponse:
    """Every model that can be asked for."""
    return JSONResponse({"object": "list", "data": await _models(services_of(request), caller_of(request).tenant)})


@router.get("/models/{model_id:path}")
async def get_model(request: Request, model_id: str) -> JSONResponse:
    """One model."""
    for model in await _models(services_of(request), caller_of(request).tenant):
        if model["id"] == model_id:
            return JSONResponse(model)
    raise no_such_model(model_id)


@router.post("/chat/completions")
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """An answer, whole or as a stream of events."""
    services, caller = services_of(request), caller_of(request)
    body.check()
    work = await _work(services, caller.tenant, body)
    generation = services.submit(caller, work)
    reply = _Reply("chatcmpl-" + uuid.uuid4().hex, int(time.time()), body.model)
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        silence = services.limits.heartbeat_seconds
        return EventStream(generation, lambda: reply.events(generation, silence, include_usage))
    completion: _Completion = await until_disconnect(request, generation)
    return JSONResponse(reply.whole(completion))


@router.delete("/requests/{request_id}")
async def cancel_request(request: Request, request_id: str) -> JSONResponse:
    """Stop a running or waiting request by the id that its answer's `x-request-id` header carries."""
    if not services_of(request).cancel(caller_of(request).tenant, request_id):
        raise ApiError(404, f"no request {request_id[:80]!r} is running", code="request_not_found")
    return JSONResponse({"id": request_id, "object": "request", "cancelled": True})


@router.post("/embeddings")
async def embeddings(request: Request, body: EmbeddingRequest) -> JSONResponse:
    """One vector for each input, in order."""
    services, tenant = services_of(request), caller_of(request).tenant
    if body.model != services.encoder_id or not tenant.may_use(body.model):
        raise no_such_model(body.model)
    texts = body.texts()
    vectors, tokens = await services.call(_embed, services, texts, body.dimensions)
    services.admission.charge(tenant, tokens)
    as_text = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if as_text else vector.tolist(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


class _Reply:
    """The frame that all parts of one answer share."""

    def __init__(self, reply_id: str, created: int, model: str) -> None:
        self._id, self._created, self._model = reply_id, created, model

    def whole(self, completion: _Completion) -> dict[str, Any]:
        message = {"role": "assistant", "content": completion.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": completion.finish}
        return {**self._frame("chat.completion"), "choices": [choice], "usage": completion.usage, **completion.extra}

    async def events(
        self, generation: Generation[_Completion], silence: float, include_usage: bool
    ) -> AsyncIterator[bytes]:
        """Role, text as it comes, the reason for the end, the usage if wanted, `[DONE]`."""
        # A client that asked for usage finds `usage: null` in every chunk but the last.
        no_usage: dict[str, Any] = {"usage": None} if include_usage else {}
        yield self._chunk({"role": "assistant", "content": ""}, None, no_usage)
        async for piece in generation.pieces(silence):
            yield self._chunk({"content": piece}, None, no_usage) if piece else PING
        completion = await generation.result()
        yield self._chunk({}, completion.finish, {**no_usage, **completion.extra})
        if include_usage:
            yield event({**self._frame("chat.completion.chunk"), "choices": [], "usage": completion.usage})
        yield DONE

    def _chunk(self, delta: dict[str, Any], finish: str | None, extra: dict[str, Any]) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._frame("chat.completion.chunk"), "choices": [choice], **extra})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


async def _models(services: Services, tenant: Tenant) -> list[dict[str, Any]]:
    """Only models that would answer are listed, so the first call loads them."""
    names = [FOLDER_MODEL]
    if services.chat_model_id and await services.call(lambda: services.pipeline.model) is not None:
        names.append(services.chat_model_id)
    if services.encoder_id and await services.call(lambda: services.pipeline.encoder) is not None:
        names.append(services.encoder_id)
    created = int(services.started)
    shown = filter(tenant.may_use, names)
    return [{"id": name, "object": "model", "created": created, "owned_by": "windlass"} for name in shown]


async def _work(
    services: Services, tenant: Tenant, body: ChatRequest
) -> Callable[[Generation[_Completion]], _Completion]:
    """What the model's thread shall do for this request; all that can be refused is refused here."""
    if tenant.may_use(body.model):
        if body.model == FOLDER_MODEL:
            return _folder_work(services, tenant, body)
        if body.model == services.chat_model_id:
            return await services.call(_chat_work, services, tenant, body)
    raise no_such_model(body.model)


def _chat_work(
    services: Services, tenant: Tenant, body: ChatRequest
) -> Callable[[Generation[_Completion]], _Completion]:
    model = services.chat_model()
    messages = conversation(body.messages)
    if body.windlass is not None:
        raise ApiError(400, f"windlass: only for the model {FOLDER_MODEL}", param="windlass", code="invalid_value")
    room = model.context_length
    if sum(len(message["content"]) for message in messages) > room * _LONGEST_TOKEN:
        raise _too_long("more", body.token_limit or 1, room)
    prompt = model.count_chat(messages)
    wanted = body.token_limit
    if prompt + (wanted or 1) > room:
        raise _too_long(f"{prompt:,}", wanted or 1, room)
    most = min(wanted or room, room - prompt, services.pipeline.settings.server.max_tokens)
    options: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p, "seed": body.seed}
    options = {name: value for name, value in options.items() if value is not None}

    def work(generation: Generation[_Completion]) -> _Completion:
        pieces = []
        try:
            for piece in model.chat(
                messages, max_tokens=most, stop=body.stops, cancel=lambda: generation.cancelled, **options
            ):
                pieces.append(piece)
                generation.emit(piece)
        finally:
            services.admission.charge(tenant, prompt + len(pieces))
        text = "".join(pieces)
        made = max(model.count(text), len(pieces))
        return _Completion(text, "length" if made >= most else "stop", prompt, min(made, most), {})

    return work


def _folder_work(
    services: Services, tenant: Tenant, body: ChatRequest
) -> Callable[[Generation[_Completion]], _Completion]:
    questions = [message for message in conversation(body.messages) if message["role"] == "user"]
    if not questions or not questions[-1]["content"].strip():
        raise ApiError(400, "messages: a question from the user is needed", param="messages", code="invalid_value")
    question = questions[-1]["content"]
    options = body.windlass

    def work(generation: Generation[_Completion]) -> _Completion:
        answer = services.pipeline.ask(
            question,
            k=options.k if options else None,
            mode=options.mode if options else None,
            on_token=_stopper(generation),
        )
        # The draft that `on_token` hears is checked afterwards, so only the checked sentences are sent.
        generation.emit(answer.text)
        prompt, completion = (answer.usage.get(kind, 0) for kind in CHARGED)
        services.admission.charge(tenant, prompt + completion)
        return _Completion(answer.text, "stop", prompt, completion, {"windlass": evidence(answer)})

    return work


def _stopper(generation: Generation[Any]) -> Callable[[str], None]:
    def stop(_token: str) -> None:
        generation.check()

    return stop


def evidence(answer: Answer) -> dict[str, Any]:
    """Where an answer stands in the files, for the extension field."""
    citations = {citation.number: citation for sentence in answer.sentences for citation in sentence.citations}
    return {
        "found": answer.found,
        "mode": answer.mode,
        "citations": [plain(citations[number]) for number in sorted(citations)],
        "passages_used": answer.passages_used,
        "passages_found": answer.passages_found,
        "notices": list(answer.notices),
    }


def _embed(services: Services, texts: list[str], dimensions: int | None) -> tuple[np.ndarray[Any, Any], int]:
    encoder = services.encoder()
    if dimensions is not None and dimensions > encoder.dim:
        raise ApiError(
            400, f"dimensions is {dimensions}, the model makes {encoder.dim}", param="dimensions", code="invalid_value"
        )
    tokens = _counted(encoder, texts)
    try:
        vectors = np.asarray(encoder.encode_passages(texts), dtype="<f4")
    except UsageError as error:
        raise ApiError(400, str(error), param="input", code="invalid_value") from error
    if dimensions is not None and dimensions < encoder.dim:
        vectors = vectors[:, :dimensions]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths > 0, lengths, 1)
    return np.ascontiguousarray(vectors, dtype="<f4"), tokens


def _counted(encoder: Encoder, texts: list[str]) -> int:
    """Tokens of all texts. A text that would be cut is refused instead."""
    lengths = [encoder.count(text) for text in texts]
    for place, length in enumerate(lengths):
        if length > encoder.max_tokens:
            raise ApiError(
                400,
                f"input.{place} has {length:,} tokens, the model reads {encoder.max_tokens:,}",
                hint="send it in parts",
                param="input",
                code="context_length_exceeded",
            )
    return sum(lengths)


def _too_long(prompt: str, wanted: int, room: int) -> ApiError:
    return ApiError(
        400,
        f"the prompt has {prompt} tokens and {wanted:,} are to be made, the model holds {room:,} together",
        hint="send less, or lower max_tokens",
        param="messages",
        code="context_length_exceeded",
    )


def no_such_model(name: str) -> ApiError:
    """What is answered for a model that is not there, or not for this tenant."""
    return ApiError(
        404, f"no model {name[:80]!r}", hint="GET /v1/models lists them", param="model", code="model_not_found"
    )
