"""Batches: a file of requests, answered while others leave the model time.

Requests whose prompts are known beforehand are planned together: what they begin with in common is computed once, and
the engine fits them into what it has to spare. The others go one by one, while nobody waits. Every answer is on the
disk before another request takes its place, so a batch goes on after a crash where it stood; a line that was answered
twice because the crash came between answer and disk is answered once in the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from windlass.app.http.file_store import FileStore
from windlass.core import storage
from windlass.core.errors import WindlassError, WorkspaceError
from windlass.serving.request import PlannedMember

log = logging.getLogger("windlass.http")

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings")
MOST_REQUESTS = 50_000
EVERYBODY = "*"
UNFINISHED = ("validating", "in_progress", "cancelling")
_FORMAT = 1
_ID = re.compile(r"batch_[0-9a-f]{24}")
_BUSY_SECONDS = 0.2
_LOCKED_SECONDS = 5.0
_SAVED_EVERY = 2.0
_TOGETHER = 32

Answerer = Callable[[str, str, dict[str, Any], PlannedMember | None], Awaitable[tuple[int, dict[str, Any]]]]
"""(tenant, endpoint, body, place in a plan) -> (status, answer)."""
Planner = Callable[[str, str, list[dict[str, Any]]], Awaitable[list[PlannedMember | None]]]
"""(tenant, endpoint, bodies) -> the place of each in a plan, None where it has none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch; times are whole seconds since 1970."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created: int
    status: str = "validating"
    metadata: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: tuple[dict[str, Any], ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def unfinished(self) -> bool:
        return self.status in UNFINISHED

    def record(self) -> dict[str, Any]:
        """The batch object of the API."""
        stages = ("in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled", "expired")
        return {
            "id": self.id, "object": "batch", "endpoint": self.endpoint, "input_file_id": self.input_file_id,
            "completion_window": self.completion_window, "status": self.status, "created_at": self.created,
            "expires_at": None, **{f"{stage}_at": self.times.get(stage) for stage in stages},
            "output_file_id": self.output_file_id, "error_file_id": self.error_file_id,
            "errors": {"object": "list", "data": list(self.errors)} if self.errors else None,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "metadata": self.metadata or None,
        }  # fmt: skip

    def at(self, status: str) -> Batch:
        """The same batch, in another status from now on."""
        return replace(self, status=status, times={**self.times, status: int(time.time())})


@dataclass(frozen=True, slots=True)
class _Line:
    custom_id: str
    body: dict[str, Any]


class BatchStore:
    """The batches of one workspace, kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None

    def lock(self) -> bool:
        """Become the one process that runs this workspace's batches, until `close`; False when another one is."""
        storage.make_folder(self._folder)
        handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._lock = handle
        return True

    def close(self) -> None:
        """Let another process run them."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def new(self, tenant: str, endpoint: str, input_file_id: str, window: str, metadata: dict[str, str]) -> Batch:
        """A batch that is on the disk when this returns."""
        storage.make_folder(self._folder)
        name = "batch_" + secrets.token_hex(12)
        batch = Batch(name, tenant, endpoint, input_file_id, window, int(time.time()), metadata=metadata)
        self.save(batch)
        return batch

    def save(self, batch: Batch) -> None:
        """Write the batch's state, all or nothing."""
        storage.write_manifest(self._folder / f"{batch.id}.json", _FORMAT, asdict(batch))

    def get(self, tenant: str, batch_id: str) -> Batch | None:
        """The batch of that id, None when this tenant has none."""
        if not _ID.fullmatch(batch_id):
            return None
        try:
            stored = storage.read_manifest(self._folder / f"{batch_id}.json", _FORMAT)
        except FileNotFoundError:
            return None
        batch = Batch(**{**stored, "errors": tuple(stored["errors"])})
        return batch if tenant in (batch.tenant, EVERYBODY) else None

    def all(self, tenant: str) -> list[Batch]:
        """Every batch of a tenant, or of `EVERYBODY`, the newest first."""
        found = []
        for path in self._folder.glob("batch_*.json"):
            with contextlib.suppress(WorkspaceError):
                found.append(self.get(tenant, path.stem))
        known = [batch for batch in found if batch is not None]
        return sorted(known, key=lambda batch: (-batch.created, batch.id))

    def answers(self, batch: Batch) -> Path:
        """Where answers stand while the batch runs, one a line, good ones and bad ones."""
        return self._folder / f"{batch.id}.partial.jsonl"


class BatchRunner:
    """Runs unfinished batches, one request at a time, the oldest batch first.

    Args:
        store, files: Where batches and their files are.
        answer: Answers one request; status 429 means that it should be asked again later.
        idle: Whether nobody else waits for the model.
        serves: Whether a tenant is known here; batches of others wait for a server that knows them.
        plan: Says which requests share what.
    """

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        answer: Answerer,
        idle: Callable[[], bool],
        serves: Callable[[str], bool],
        plan: Planner | None = None,
    ) -> None:
        self._store, self._files, self._plan = store, files, plan
        self._answer, self._idle, self._serves = answer, idle, serves
        self._news = asyncio.Event()
        self._saving = asyncio.Lock()
        self._cancelled: set[str] = set()

    def wake(self) -> None:
        """There is a new batch."""
        self._news.set()

    async def cancel(self, batch: Batch) -> Batch:
        """Stop a batch after the request that is running; what was answered is kept."""
        self._cancelled.add(batch.id)
        if batch.status != "cancelling":
            batch = batch.at("cancelling")
            async with self._saving:
                await asyncio.to_thread(self._store.save, batch)
        self.wake()
        return batch

    async def run(self) -> None:
        """Work until cancelled."""
        while not self._store.lock():  # another server of this folder runs them
            await asyncio.sleep(_LOCKED_SECONDS)
        while True:
            self._news.clear()
            known = await asyncio.to_thread(self._store.all, EVERYBODY)
            waiting = [batch for batch in known if batch.unfinished and self._serves(batch.tenant)]
            if not waiting:
                await self._news.wait()
                continue
            batch = waiting[-1]
            try:
                await self._run(batch)
            except WindlassError as error:
                log.warning("%s stopped: %s", batch.id, error)
                await asyncio.to_thread(self._fail, batch, [_problem(str(error), None)])
            except Exception:
                log.exception("%s failed", batch.id)
                await asyncio.to_thread(self._fail, batch, [_problem("something went wrong on our side", None)])
            finally:
                self._cancelled.discard(batch.id)

    async def _run(self, batch: Batch) -> None:
        lines, problems = await asyncio.to_thread(self._lines, batch)
        if problems:
            await asyncio.to_thread(self._fail, batch, problems)
            return
        path = self._store.answers(batch)
        answered = await asyncio.to_thread(_answered, path)
        batch = replace(batch, total=len(lines))
        if batch.status == "validating":
            batch = batch.at("in_progress")
        saved = time.monotonic() - _SAVED_EVERY
        waiting = [line for line in lines if line.custom_id not in answered]
        writing = asyncio.Lock()
        with storage.LineLog(path) as log_file:

            async def answer(line: _Line, member: PlannedMember | None) -> bool:
                nonlocal saved, batch
                status, body = await self._patiently(batch, line, member)
                if status is None:
                    return False
                answered[line.custom_id] = _result(line, status, body)
                async with writing:
                    await asyncio.to_thread(log_file.add, json.dumps(answered[line.custom_id]).encode())
                    if time.monotonic() - saved >= _SAVED_EVERY:
                        saved, batch = time.monotonic(), _counted(batch, answered)
                        await self._save_progress(batch)
                return True

            if batch.status != "cancelling":
                members = await self._members(batch, waiting)
                together = [pair for pair in zip(waiting, members, strict=True) if pair[1] is not None]
                together.sort(key=lambda pair: _rank(pair[1]))
                await _side_by_side(together, answer)
                for line, member in zip(waiting, members, strict=True):
                    if member is None and not await answer(line, None):
                        break
        await asyncio.to_thread(self._finish, _counted(batch, answered), answered)

    async def _members(self, batch: Batch, lines: list[_Line]) -> list[PlannedMember | None]:
        if self._plan is None or not lines:
            return [None] * len(lines)
        return await self._plan(batch.tenant, batch.endpoint, [line.body for line in lines])

    async def _save_progress(self, batch: Batch) -> None:
        async with self._saving:
            if batch.id not in self._cancelled:
                await asyncio.to_thread(self._store.save, batch)

    async def _patiently(
        self, batch: Batch, line: _Line, member: PlannedMember | None
    ) -> tuple[int | None, dict[str, Any]]:
        """The answer, once there is room; no status when the batch was cancelled meanwhile."""
        while batch.id not in self._cancelled:
            # The engine itself puts planned requests behind everybody else's.
            if member is not None or self._idle():
                status, body = await self._answer(batch.tenant, batch.endpoint, line.body, member)
                if status != 429:
                    return status, body
            await asyncio.sleep(_BUSY_SECONDS)
        return None, {}

    def _lines(self, batch: Batch) -> tuple[list[_Line], list[dict[str, Any]]]:
        file = self._files.get(batch.tenant, batch.input_file_id)
        if file is None:
            return [], [_problem(f"the input file {batch.input_file_id} is gone", None)]
        return read_lines(self._files.content(file), batch.endpoint)

    def _fail(self, batch: Batch, problems: list[dict[str, Any]]) -> None:
        self._store.save(replace(batch.at("failed"), errors=tuple(problems)))

    def _finish(self, batch: Batch, answered: dict[str, dict[str, Any]]) -> None:
        cancelled = batch.status == "cancelling" or batch.id in self._cancelled
        good = [result for result in answered.values() if not _is_bad(result)]
        bad = [result for result in answered.values() if _is_bad(result)]
        output, errors = batch.output_file_id, batch.error_file_id
        if good:
            output = self._files.add(batch.tenant, f"{batch.id}_output.jsonl", "batch_output", _jsonl(good)).id
        if bad:
            errors = self._files.add(batch.tenant, f"{batch.id}_error.jsonl", "batch_output", _jsonl(bad)).id
        batch = replace(batch, output_file_id=output, error_file_id=errors)
        self._store.save(batch.at("cancelled" if cancelled else "completed"))
        with contextlib.suppress(FileNotFoundError):
            self._store.answers(batch).unlink()


async def _side_by_side(
    pairs: list[tuple[_Line, PlannedMember | None]],
    answer: Callable[[_Line, PlannedMember | None], Awaitable[bool]],
) -> None:
    """Answer these, a few at a time, in their order."""
    coming = iter(pairs)

    async def work() -> None:
        for line, member in coming:
            if not await answer(line, member):
                return

    workers = [asyncio.ensure_future(work()) for _ in range(min(_TOGETHER, len(pairs)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def _rank(member: PlannedMember | None) -> int:
    return 0 if member is None else int(member.plan.rank[member.member])


def read_lines(content: bytes, endpoint: str) -> tuple[list[_Line], list[dict[str, Any]]]:
    """The requests of an input file, or what is wrong with it (the first hundred problems, with their lines)."""
    found: list[_Line] = []
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, raw in enumerate(content.split(b"\n"), 1):
        if not raw.strip() or len(problems) >= 100:
            continue
        try:
            line = _Line(*parse_line(raw, endpoint))
            if line.custom_id in seen:
                raise ValueError(f"custom_id {line.custom_id[:80]!r} stands on another line, too")
        except (ValueError, RecursionError) as error:
            problems.append(_problem(str(error), number))
            continue
        seen.add(line.custom_id)
        found.append(line)
    if not found and not problems:
        problems.append(_problem("the input file holds no request", None))
    if len(found) > MOST_REQUESTS:
        problems.append(_problem(f"{len(found):,} requests, at most {MOST_REQUESTS:,} are taken", None))
    return found, problems


def parse_line(raw: bytes, endpoint: str) -> tuple[str, dict[str, Any]]:
    """The id and the body of one request of an input file.

    Raises:
        ValueError: It is none; the message says why.
    """
    try:
        entry = json.loads(raw)
    except ValueError as error:
        raise ValueError("not JSON") from error
    if not isinstance(entry, dict):
        raise ValueError("expected a JSON object")
    custom_id, body = entry.get("custom_id"), entry.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= 512:
        raise ValueError("custom_id must be a text of 1 to 512 characters")
    if entry.get("method", "POST") != "POST":
        raise ValueError("method must be POST")
    if entry.get("url", endpoint) != endpoint:
        raise ValueError(f"url is {str(entry['url'])[:80]!r}, the batch is for {endpoint}")
    if not isinstance(body, dict):
        raise ValueError("body must be a JSON object")
    if body.get("stream"):
        raise ValueError("stream cannot be used in a batch")
    return custom_id, body


def _answered(path: Path) -> dict[str, dict[str, Any]]:
    """What a run before this one answered. A crash may have cut the last line."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    found = {}
    for line in raw[: raw.rfind(b"\n") + 1].splitlines():
        result = json.loads(line)
        found[result["custom_id"]] = result
    return found


def _result(line: _Line, status: int, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "batch_req_" + secrets.token_hex(12),
        "custom_id": line.custom_id,
        "response": {"status_code": status, "request_id": "req_" + secrets.token_hex(12), "body": body},
        "error": None,
    }


def _is_bad(result: dict[str, Any]) -> bool:
    return bool(result["response"]["status_code"] >= 400)


def _counted(batch: Batch, answered: dict[str, dict[str, Any]]) -> Batch:
    failed = sum(map(_is_bad, answered.values()))
    return replace(batch, completed=len(answered) - failed, failed=failed)


def _jsonl(results: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(result).encode() + b"\n" for result in results)


def _problem(message: str, line: int | None) -> dict[str, Any]:
    return {"code": "invalid_request", "message": message, "line": line, "param": None}
