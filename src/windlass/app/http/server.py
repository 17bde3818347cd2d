"""The HTTP server of one folder: the application, the address it listens on, and its life from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI

from windlass import __version__
from windlass.app.http import adapter_api, batch_api, cache_api, openai_api, search_api, token_api
from windlass.app.http.batches import BatchRunner
from windlass.app.http.connections import PatientProtocol
from windlass.app.http.gate import Gate, is_loopback_name
from windlass.app.http.keys import FILE_NAME, OWNER, KeyFile
from windlass.app.http.limits import Limits
from windlass.app.http.replies import add_error_handlers
from windlass.app.http.services import Services
from windlass.app.http.sign_in import Doorkeeper
from windlass.app.http.tenants import Tenant
from windlass.app.progress_state import PageProgress
from windlass.core.errors import UsageError
from windlass.core.settings import ServerSettings

if TYPE_CHECKING:
    from windlass.retrieval.pipeline import Pipeline

_NEXT_PORTS = 10
_BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Started:
    """A server that is up.

    Attributes:
        url: What to open in a browser.
        host, port: What it listens on.
        new_key: A key that was made just now; it is shown once and kept nowhere.
        notices: What the person should know ("port 8765 is in use, this is 8766").
    """

    url: str
    host: str
    port: int
    new_key: str | None = None
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.url


def create_app(
    pipeline: Pipeline,
    *,
    tenants: Sequence[Tenant] = (),
    page: bool = True,
    progress: PageProgress | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """The ASGI application of one pipeline.

    Args:
        pipeline: An open pipeline. It is not closed here.
        tenants: Who may use it, by their keys. Without any, everybody may whose request names this machine by a
            loopback name.
        page: With the web page; one application of a process can have it.
        progress: What the indexing job tells; shown by the page and by `/api/overview`.
        limits: Bounds; by default those of `pipeline.settings.server`.
    """
    services = Services(pipeline, limits or limits_of(pipeline.settings.server), progress, tenants)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        services.runner = BatchRunner(
            services.batches,
            services.files,
            batch_api.answerer(app, services),
            idle=lambda: services.idle,
            serves=services.tenants.__contains__,
            plan=batch_api.planner(services),
        )
        running = asyncio.create_task(services.runner.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            services.close()

    # The interactive documentation of the framework loads its scripts from another host.
    app = FastAPI(title="Windlass", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    app.state.services = services
    for part in (openai_api, token_api, batch_api, search_api, adapter_api, cache_api):
        app.include_router(part.router)
    add_error_handlers(app)
    if page:
        from windlass.app.page.layout import mount_page

        mount_page(app)
    app.add_middleware(Gate, services=services, doorkeeper=Doorkeeper(tenants))
    return app


def serve(
    pipeline: Pipeline,
    host: str | None = None,
    port: int | None = None,
    *,
    page: bool = True,
    tenants: Sequence[Tenant] = (),
    progress: PageProgress | None = None,
    on_ready: Callable[[Started], None] | None = None,
) -> None:
    """Serve until the process is told to stop (Ctrl-C, SIGTERM); running requests may end first.

    Args:
        pipeline: An open pipeline.
        host, port: Where to listen; by default what the settings say. Any address but loopback is protected by
            keys: those of the tenants given, those of the workspace's key file, or a new one, which `on_ready` shows.
        page: With the web page.
        tenants: Who may use it, instead of those in the key file.
        progress: What the indexing job tells.
        on_ready: Called once connections are taken.

    Raises:
        UsageError: The address or the port cannot be used.
    """
    settings = pipeline.settings.server
    listener, notices = listen(host or settings.host, settings.port if port is None else port)
    with listener:
        address, taken = listener.getsockname()[:2]
        known, new_key = tuple(tenants), None
        if not known:
            known, new_key = _who_may_come(pipeline, reachable=not is_loopback_name(_in_url(address)))
        app = create_app(pipeline, tenants=known, page=page, progress=progress)
        shown = "localhost" if is_loopback_name(_in_url(address)) else _in_url(_reachable(address))
        started = Started(f"http://{shown}:{taken}", address, taken, new_key, notices)
        _Server(app, on_ready and (lambda: on_ready(started))).run([listener])


def listen(host: str, port: int) -> tuple[socket.socket, tuple[str, ...]]:
    """A listening socket. When the default port is in use, the next ones are tried, and a notice says so.

    Raises:
        UsageError: The port is in use, not allowed, or the address is not one of this machine.
    """
    default = ServerSettings().port
    choices = range(port, min(port + _NEXT_PORTS, 65_535) + 1) if port == default else [port]
    for choice in choices:
        try:
            listener = _bind(host, choice)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and choice != choices[-1]:
                continue
            raise _cannot_listen(host, port, choices[-1], error) from error
        notice = (f"port {port} is in use by another program, so this is port {choice}",) if choice != port else ()
        return listener, notice
    raise AssertionError("there is always a first choice")


def limits_of(settings: ServerSettings) -> Limits:
    """The bounds that a person can set, in the server's units."""
    return replace(Limits(), body_bytes=settings.max_body_mb << 20, waiting=settings.max_waiting)


class _Server(uvicorn.Server):
    """Says when it is ready, and stops taking new work as soon as it is told to stop."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None] | None) -> None:
        self._services: Services = app.state.services
        self._on_ready = on_ready
        limits = self._services.limits
        protocol = type("Protocol", (PatientProtocol,), {"header_seconds": limits.header_seconds})
        config = uvicorn.Config(
            app,
            http=protocol,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            timeout_graceful_shutdown=int(limits.drain_seconds),
            ws_max_size=1 << 20,
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        super().run(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_ready is not None and not self.should_exit:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in order; a second Ctrl-C means now. The signal ends here: who called `serve` goes on after it."""
        self._services.stop_admission()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    wanted = "127.0.0.1" if host == "localhost" else host
    family, kind, protocol, _, address = socket.getaddrinfo(wanted, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _cannot_listen(host: str, port: int, last: int, error: OSError) -> UsageError:
    if isinstance(error, socket.gaierror):
        return UsageError(f"{host!r} is not an address: {error.strerror}", hint="use --host 127.0.0.1")
    if error.errno == errno.EADDRINUSE:
        ports = f"port {port} is" if last == port else f"ports {port} to {last} are all"
        return UsageError(f"{ports} in use by another program", hint="choose another one with --port, 0 for any")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"{host} is not an address of this machine", hint="use --host 127.0.0.1 or 0.0.0.0")
    if error.errno == errno.EACCES:
        return UsageError(f"port {port} needs more rights than this program has", hint="use a --port above 1023")
    return UsageError(f"cannot listen on {host} port {port}: {error.strerror}", hint="see --host and --port")


def _who_may_come(pipeline: Pipeline, *, reachable: bool) -> tuple[tuple[Tenant, ...], str | None]:
    """The tenants of the key file, with a new key when one is needed and there is none.

    An address that only this machine reaches is open, until the file names somebody with whom the folder is shared.
    """
    keys = KeyFile(pipeline.workspace.state / FILE_NAME)
    known = keys.tenants()
    if not reachable and all(tenant.name == OWNER for tenant in known):
        return (), None
    if any(tenant.hashes for tenant in known):
        return known, None
    new_key = keys.add()
    return keys.tenants(), new_key


def _reachable(address: str) -> str:
    return socket.gethostname() if ipaddress.ip_address(address).is_unspecified else address


def _in_url(address: Any) -> str:
    return f"[{address}]" if ":" in str(address) else str(address)
