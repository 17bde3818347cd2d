"""The OpenAI-compatible routes: models, chat and text completions, embeddings; and an end for a running request.

Two models chat: the plain language model under its own name, and `windlass`, which answers the last user message
from the folder and says in the extension field `windlass` where the answer stands.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from windlass.app.http.best_of import BestOf
from windlass.app.http.completion import Call, Choice, Completion
from windlass.app.http.engine_call import EngineCall
from windlass.app.http.engine_model import LONGEST_TOKEN, EngineModel, too_long
from windlass.app.http.event_stream import EventStream, until_disconnect
from windlass.app.http.generation import Generation, QueueCall
from windlass.app.http.openai_replies import ChatReply, Reply, TextReply
from windlass.app.http.openai_schema import (
    FOLDER_MODEL,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    SamplingBody,
    conversation,
)
from windlass.app.http.replies import ApiError, plain
from windlass.app.http.services import CHARGED, Caller, Services, caller_of, services_of
from windlass.app.http.structured import ToolCalls, with_tools
from windlass.app.http.tenants import Tenant
from windlass.core.errors import UsageError
from windlass.serving.prompt import segmented
from windlass.serving.request import Segment

if TYPE_CHECKING:
    from windlass.models.encoder import Encoder
    from windlass.retrieval.types import Answer
    from windlass.serving.request import Constraint

router = APIRouter(prefix="/v1")


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
    call = await _chat(services, caller, body)
    return await _answer(request, call, ChatReply(body.model, body.n or 1), body)


@router.post("/completions")
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Raw prompts continued."""
    services, caller = services_of(request), caller_of(request)
    body.check()
    body.check_for_model()
    known, adapter = _chat_model_of(services, body)
    if not known or not caller.tenant.may_use(services.chat_model_id):
        raise no_such_model(body.model)
    engine = await services.call(services.engine)
    if engine is None:
        raise ApiError(400, f"{body.model} only chats", param="model", code="feature_unavailable")
    tokenizer = engine.model.tokenizer
    prompts = [tokenizer.prompt(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompts]
    call: Call = _start(services, caller, engine, prompts, body, answers=body.best_of, adapter=adapter)
    answers = body.n or 1
    if body.best_of is not None and body.best_of > answers:
        call = BestOf(call, len(prompts), answers, with_tokens=body.logprobs is not None)
    echoes: tuple[str, ...] = ()
    if body.echo:
        texts = [tokenizer.decode(prompt) if isinstance(prompt, list) else prompt for prompt in body.prompts]
        echoes = tuple(text for text in texts for _ in range(answers))
    return await _answer(request, call, TextReply(body.model, len(prompts) * answers, echoes), body)


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


async def _models(services: Services, tenant: Tenant) -> list[dict[str, Any]]:
    """Only models that would answer are listed, so the first call loads them."""
    names = [FOLDER_MODEL]
    if services.chat_model_id and await services.call(lambda: services.pipeline.model) is not None:
        names.append(services.chat_model_id)
    if services.encoder_id and await services.call(lambda: services.pipeline.encoder) is not None:
        names.append(services.encoder_id)
    created = int(services.started)
    shown = [name for name in names if tenant.may_use(name)]
    if services.chat_model_id in shown and (engine := await services.call(services.engine)) is not None:
        shown += [f"{services.chat_model_id}:{name}" for name in engine.adapters(tenant)]
    return [{"id": name, "object": "model", "created": created, "owned_by": "windlass"} for name in shown]


async def _answer(request: Request, call: Call, reply: Reply, body: SamplingBody) -> Response:
    if body.stream:
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        silence = services_of(request).limits.heartbeat_seconds
        return EventStream(call, lambda: reply.events(call, silence, include_usage))
    return JSONResponse(reply.whole(await until_disconnect(request, call)))


async def _chat(services: Services, caller: Caller, body: ChatRequest) -> Call:
    """The call under way; all that can be refused is refused here."""
    tenant = caller.tenant
    if body.model == FOLDER_MODEL and tenant.may_use(body.model):
        body.check_for_folder()
        return QueueCall(services.submit(caller, _folder_work(services, tenant, body)))
    known, adapter = _chat_model_of(services, body)
    if known and tenant.may_use(services.chat_model_id):
        body.check_for_model()
        return await _model_chat(services, caller, body, adapter)
    raise no_such_model(body.model)


def _chat_model_of(services: Services, body: SamplingBody) -> tuple[bool, str | None]:
    """Whether a body asks for the language model, and with which adapter: `model:adapter`, or the field for it."""
    base, name = services.chat_model_id, body.model
    asked = body.windlass.adapter if body.windlass else None
    if name == base:
        return bool(base), asked
    adapter = name.removeprefix(f"{base}:")
    if not base or adapter == name or not adapter:
        return False, None
    if asked not in (None, adapter):
        raise ApiError(400, f"windlass.adapter is not that of the model {name[:80]!r}", param="windlass.adapter")
    return True, adapter


async def _model_chat(services: Services, caller: Caller, body: ChatRequest, adapter: str | None) -> Call:
    messages = with_tools(conversation(body.messages), body)
    model = await services.call(services.chat_model)
    if sum(len(message["content"]) for message in messages) > model.context_length * LONGEST_TOKEN:
        raise too_long("more", body.token_limit or 1, model.context_length)
    engine = await services.call(services.engine)
    if engine is None:
        body.check_without_engine(body.model)
        if adapter is not None:
            raise ApiError(400, "this server's model takes no adapters", param="model", code="feature_unavailable")
        return QueueCall(services.submit(caller, await services.call(_chat_work, services, caller.tenant, body)))
    constraint = await services.call(lambda: engine.grammars.constraint(body))
    texts, segments = body.chunk_texts, tuple[Segment, ...]()
    if texts:
        prompt, segments = await services.call(segmented, engine.model.tokenizer, messages, texts)
    else:
        prompt = await services.call(engine.model.tokenizer.chat, messages)
    call = _start(
        services, caller, engine, [prompt], body, adapter=adapter, segments=segments, constraint=constraint
    )  # fmt: skip
    return ToolCalls(call) if body.usable_tools else call


def _start(
    services: Services,
    caller: Caller,
    engine: EngineModel,
    prompts: list[list[int]],
    body: SamplingBody,
    *,
    answers: int | None = None,
    adapter: str | None = None,
    segments: tuple[Segment, ...] = (),
    constraint: Callable[[], Constraint] | None = None,
) -> EngineCall:
    most = services.pipeline.settings.server.max_tokens
    call = engine.start(
        prompts, body, caller.tenant, services.metrics, most_tokens=most, answers=answers, adapter=adapter,
        planned=caller.planned if len(prompts) == 1 else None, segments=segments, constraint=constraint,
    )  # fmt: skip
    call.when_done(lambda: services.admission.charge(caller.tenant, call.tokens_used))
    services.track(caller, call)
    return call


def _chat_work(services: Services, tenant: Tenant, body: ChatRequest) -> Callable[[Generation[Completion]], Completion]:
    model = services.chat_model()
    messages = conversation(body.messages)
    room, prompt, wanted = model.context_length, model.count_chat(messages), body.token_limit
    if prompt + (wanted or 1) > room:
        raise too_long(f"{prompt:,}", wanted or 1, room)
    most = min(wanted or room, room - prompt, services.pipeline.settings.server.max_tokens)
    options: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p, "seed": body.seed}
    options = {name: value for name, value in options.items() if value is not None}

    def work(generation: Generation[Completion]) -> Completion:
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
        finish = "length" if made >= most else "stop"
        return Completion((Choice(0, text, finish),), prompt, min(made, most))

    return work


def _folder_work(
    services: Services, tenant: Tenant, body: ChatRequest
) -> Callable[[Generation[Completion]], Completion]:
    questions = [message for message in conversation(body.messages) if message["role"] == "user"]
    if not questions or not questions[-1]["content"].strip():
        raise ApiError(400, "messages: a question from the user is needed", param="messages", code="invalid_value")
    question = questions[-1]["content"]
    options = body.windlass

    def work(generation: Generation[Completion]) -> Completion:
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
        return Completion((Choice(0, answer.text, "stop"),), prompt, completion, {"windlass": evidence(answer)})

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
        "approx": dict(answer.approximations),
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


def no_such_model(name: str) -> ApiError:
    """What is answered for a model that is not there, or not for this tenant."""
    return ApiError(
        404, f"no model {name[:80]!r}", hint="GET /v1/models lists them", param="model", code="model_not_found"
    )
