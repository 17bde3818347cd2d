"""A file of requests, answered by a model of this machine without a server.

Each answer is on the disk before another request takes its place. A run that was stopped, however, goes on with
`resume`: whole lines count, a cut one does not.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from windlass.app.http.batches import parse_line
from windlass.app.http.completion import Choice, Completion
from windlass.app.http.openai_replies import ChatReply
from windlass.app.http.openai_schema import ChatRequest, conversation
from windlass.core import storage
from windlass.core.errors import UsageError, WindlassError
from windlass.core.progress import Progress, check_cancelled
from windlass.models.generate import LocalModel
from windlass.serving.batch_planner import plan_batch
from windlass.serving.engine import EngineConfig, RequestHandle
from windlass.serving.local_engine import local_engine
from windlass.serving.request import FinishReason, PlannedMember, Request, SamplingParams, Tokens, tokens_of

ENDPOINT = "/v1/chat/completions"
_TOGETHER = 64


@dataclass(slots=True)
class BatchFileReport:
    """What came of a file: lines answered now and before, lines with errors, tokens that needed no computing."""

    answered: int = 0
    known: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    saved_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Line:
    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Asked:
    line: _Line
    prompt: Tokens
    params: SamplingParams


def run_file(
    model: LocalModel, source: Path, out: Path, progress: Progress, *, resume: bool = False, most_tokens: int = 1024
) -> BatchFileReport:
    """Answer every line of `source` and put the answers into `out`, in the order of the lines.

    Args:
        model: On the compiled engine.
        source: Lines as for `/v1/batches`: `custom_id`, and the `body` of a chat completion.
        out: While it runs, answers stand in `out` with `.partial` behind it, in the order they were made.
        progress: Hears of each answer.
        resume: Go on with what an earlier run answered.
        most_tokens: Of one answer, where a line does not say.

    Raises:
        UsageError: two lines have one `custom_id`, or there is something at `out` already.
        StorageError: the disk is full; what was answered is kept.
        Cancelled: stopped; what was answered is kept.
    """
    partial = out.with_name(out.name + ".partial")
    if not resume and (out.exists() or partial.exists()):
        raise UsageError(f"{out if out.exists() else partial} is there already", hint="--resume, or another name")
    lines, wrong = _read(source)
    known = _known(partial) | _known(out)
    report = BatchFileReport(known=sum(line.custom_id in known for line in lines))
    with storage.LineLog(partial) as log:
        answers = dict(known)
        asked = []
        for line in lines:
            if line.custom_id in known:
                continue
            try:
                asked.append(_asked(model, line, most_tokens))
            except (WindlassError, ValidationError) as error:
                answers[line.custom_id] = _failed(line.custom_id, str(error))
        report.prompt_tokens = sum(len(each.prompt) for each in asked)
        _run(model, asked, answers, log, progress, report)
    records = [*(answers[line.custom_id] for line in lines), *wrong]
    report.failed = sum(record["error"] is not None for record in records)
    storage.write_atomic_parts(out, (json.dumps(record).encode() + b"\n" for record in records))
    partial.unlink()
    return report


def _read(source: Path) -> tuple[list[_Line], list[dict[str, Any]]]:
    """The lines, and the answers of those that are none."""
    lines: list[_Line] = []
    wrong: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    try:
        raw = source.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror or error}") from error
    for number, text in enumerate(raw.split(b"\n"), 1):
        if not text.strip():
            continue
        try:
            custom_id, body = parse_line(text, ENDPOINT)
        except (ValueError, RecursionError) as error:
            wrong.append(_failed(None, f"line {number}: {error}"))
            continue
        if custom_id in seen:
            raise UsageError(f"{source}: lines {seen[custom_id]} and {number} have the custom_id {custom_id[:80]!r}")
        seen[custom_id] = number
        lines.append(_Line(custom_id, body))
    return lines, wrong


def _known(path: Path) -> dict[str, dict[str, Any]]:
    """Good answers of an earlier run, by id; lines that were cut or altered do not count."""
    found: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(FileNotFoundError):
        for raw in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(raw)
                if record["error"] is None and record["checksum"] == _checksum(record["response"]):
                    found[record["custom_id"]] = record
    return found


def _asked(model: LocalModel, line: _Line, most_tokens: int) -> _Asked:
    body = ChatRequest.model_validate(line.body)
    body.check()
    prompt = model.tokenizer.chat(conversation(body.messages))
    room = model.context_length - len(prompt)
    if room < 1:
        raise UsageError(f"the prompt has {len(prompt):,} tokens, the model's context holds {model.context_length:,}")
    if (body.n or 1) != 1:
        raise UsageError("n is not 1: a line has one answer")
    return _Asked(line, tokens_of(prompt), body.params(min(body.token_limit or most_tokens, room)))


def _run(
    model: LocalModel,
    asked: list[_Asked],
    answers: dict[str, dict[str, Any]],
    log: storage.LineLog,
    progress: Progress,
    report: BatchFileReport,
) -> None:
    if not asked:
        return
    engine = local_engine(model, config=EngineConfig(max_queue=2 * _TOGETHER, max_queue_per_tenant=2 * _TOGETHER))
    plan = plan_batch([each.prompt for each in asked], [each.params.max_tokens for each in asked])
    waiting = iter(sorted(range(len(asked)), key=lambda member: int(plan.rank[member])))
    running: dict[str, tuple[_Asked, RequestHandle, list[str]]] = {}
    progress.start("answer", len(asked), "requests")
    while True:
        for member in _next(waiting, _TOGETHER - len(running)):
            each = asked[member]
            request = Request(
                each.line.custom_id, each.prompt, each.params, cache=False, shared=PlannedMember(plan, member)
            )
            try:
                running[request.id] = (each, engine.submit(request), [])
            except WindlassError as error:
                _note(answers, log, _failed(request.id, str(error)), progress)
        if not running:
            break
        check_cancelled(progress)
        for event in engine.step():
            each, handle, texts = running[event.request_id]
            texts.append(event.text)
            if event.finish is not None:
                del running[event.request_id]
                record = _answered(model, each, handle, "".join(texts), event.finish, event.error)
                report.answered += record["error"] is None
                _note(answers, log, record, progress)
    progress.finish("answer")
    report.saved_tokens = engine.kv.hit_tokens


def _next(waiting: Iterable[int], count: int) -> list[int]:
    return [member for _, member in zip(range(count), waiting, strict=False)]


def _note(answers: dict[str, dict[str, Any]], log: storage.LineLog, record: dict[str, Any], progress: Progress) -> None:
    log.add(json.dumps(record).encode())
    answers[record["custom_id"]] = record
    progress.advance("answer", 1)


def _answered(
    model: LocalModel, each: _Asked, handle: RequestHandle, text: str, finish: FinishReason, error: Exception | None
) -> dict[str, Any]:
    if error is not None:
        return _failed(each.line.custom_id, str(error))
    (seq,) = handle.sequences
    choice = Choice(0, text, "length" if finish is FinishReason.LENGTH else "stop")
    body = ChatReply(str(each.line.body.get("model", ""))).whole(Completion((choice,), len(each.prompt), seq.made))
    response = {"status_code": 200, "body": body}
    return {"custom_id": each.line.custom_id, "response": response, "error": None, "checksum": _checksum(response)}


def _failed(custom_id: str | None, message: str) -> dict[str, Any]:
    return {"custom_id": custom_id, "response": None, "error": {"message": message[:1000]}, "checksum": 0}


def _checksum(response: Any) -> int:
    return zlib.crc32(json.dumps(response, sort_keys=True).encode())
