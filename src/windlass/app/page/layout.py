"""The frame around the four views, and what happens when something is pressed.

The views are HTML (and one chart) that the other files make; this one puts it on the screen, listens to the browser
(`page.js` sends an event for each form and button) and keeps progress up to date. One socket a browser tab carries all
of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from markupsafe import Markup
from nicegui import context, core, ui

from windlass.app.http.search_api import LONGEST_QUESTION
from windlass.app.http.services import Services, services_of
from windlass.app.page import chat, graph, graph_chart, overview, search, source
from windlass.app.page.examples import examples
from windlass.app.page.rendering import asset, render
from windlass.core.errors import WindlassError
from windlass.core.paths import printable

_REFRESH_SECONDS = 1.0
_BUILD_SECONDS = 60.0
_EVENT_LIMIT = LONGEST_QUESTION + 100


def mount_page(app: FastAPI) -> None:
    """Put the page at `/`, `/search`, `/graph` and `/chat` of `app`.

    The page framework keeps one application a process, so the page belongs to the `app` of the latest call; the
    services come with each request and are never mixed up.
    """
    core.app.middleware_stack = None  # a stack that was built for an earlier `app` takes no middleware
    ui.run_with(
        app,
        title="Windlass",
        favicon=str(render("mark")).strip(),
        dark=None,
        language="en-US",
        tailwind=False,
        gzip_middleware_factory=None,
        show_welcome_message=False,
        reconnect_timeout=20.0,
    )


@ui.page("/", response_timeout=_BUILD_SECONDS)
@ui.page("/search", response_timeout=_BUILD_SECONDS)
@ui.page("/graph", response_timeout=_BUILD_SECONDS)
@ui.page("/chat", response_timeout=_BUILD_SECONDS)
async def page(request: Request, q: str = "", mode: str = "hybrid") -> None:
    """All four views; the address decides which one is in sight."""
    await _Screen(services_of(request)).build(request.url.path, q[:LONGEST_QUESTION], mode)


class _Screen:
    """One browser tab."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._shown: dict[str, str] = {}

    async def build(self, path: str, query: str, mode: str) -> None:
        folder = self._services.pipeline.workspace.folder
        name = folder.name or str(folder)
        ui.add_head_html(f"<style>{asset('style.css')}</style><script>{asset('page.js')}</script>")
        ui.page_title(f"{printable(name)} - Windlass")
        with ui.element("div").classes("shell"):
            with ui.element("header").classes("side"):
                _html(render("navigation", folder=name, folder_path=str(folder)))
                self._status = _html(Markup(""))
            with ui.element("div").props("id=content tabindex=-1"):
                with ui.element("section").classes("view view-overview"):
                    _html(overview.heading(self._services))
                    self._progress = _html(Markup("")).props("aria-live=polite")
                    self._overview = _html(Markup("")).classes("overview")
                with ui.element("section").classes("view view-search"):
                    _html(search.form(query, mode))
                    found = await search.results(self._services, query if path == "/search" else "", mode)
                    self._results = _html(found).classes("results-area")
                await self._build_graph(path == "/graph")
                await self._build_chat(name, query if path == "/chat" else "")
        self._dialog = ui.element("dialog").classes("source").props("aria-labelledby=source-title")
        with self._dialog:
            self._source = _html(Markup(""))
        self._listen()
        await self._refresh()
        ui.timer(_REFRESH_SECONDS, self._refresh, immediate=False)

    async def _build_graph(self, in_sight: bool) -> None:
        with ui.element("section").classes("view view-graph"):
            self._graph_head = _html(await self._services.call(graph.heading, self._services, ""))
            self._chart_area = ui.element("div").classes("graph-chart").props('data-empty="Drawing"')
            self._graph_about = _html(Markup("")).props("aria-live=polite")
        self._graph_name = ""
        self._chart: ui.echart | None = None
        self._shown_graph: graph.Shown | None = None
        if in_sight:
            ui.timer(0.1, lambda: self._draw_graph(""), once=True)

    async def _draw_graph(self, name: str) -> None:
        shelf = graph.shelf_of(self._services)
        names = [each for each, _ in await self._services.call(shelf.names)]
        name = name or self._graph_name or (names[0] if names else "")
        _set(self._graph_head, await self._services.call(graph.heading, self._services, name))
        self._chart_area.set_visibility(bool(names))
        if not names:
            return
        try:
            shown = await self._services.call(shelf.shown, name)
        except WindlassError as error:
            self._chart_area.set_visibility(False)
            _set(self._graph_about, graph.problem(str(error)))
            return
        if shown is not self._shown_graph and not self._chart_area.is_deleted:
            self._shown_graph, self._graph_name = shown, name
            self._chart_area.clear()
            with self._chart_area:
                self._chart = ui.echart(shown.options).on("componentClick", self._on_point, ["seriesType", "value"])
            _set(self._graph_about, graph.about(shown))

    async def _on_point(self, event: Any) -> None:
        args = event.args if isinstance(event.args, dict) else {}
        value = args.get("value")
        if args.get("seriesType") == "scatter" and isinstance(value, list) and len(value) > 2:
            await self._show_node(value[2])

    async def _show_node(self, node: Any) -> None:
        shown, chart = self._shown_graph, self._chart
        if shown is None or chart is None or not isinstance(node, int) or not 0 <= node < len(shown.names):
            return
        near = await self._services.call(graph.near, shown, node)
        _set(self._graph_about, graph.about(shown, node, near))
        change = graph_chart.pointed_out(shown.picture, shown.names, node, [place for place, _ in near])
        chart.run_chart_method("setOption", change)

    async def _build_chat(self, folder: str, question: str) -> None:
        with ui.element("section").classes("view view-chat"):
            with ui.element("div").classes("conversation"):
                suggestions = await self._services.call(examples, self._services)
                _html(render("chat_start", examples=suggestions))
                self._turns = ui.element("div").classes("turns").props("aria-live=polite")
            _html(render("chat_form", folder=folder, longest=LONGEST_QUESTION)).classes("composer-area")
        self._conversation = chat.Conversation(self._services, self._add_turn, self._set_busy)
        context.client.on_delete(self._conversation.stop)
        if question:
            ui.timer(0.1, lambda: self._conversation.ask(question), once=True)

    def _listen(self) -> None:
        ui.on("windlass-search", self._on_search)
        ui.on("windlass-chat", self._on_chat)
        ui.on("windlass-stop", lambda _event: self._conversation.stop())
        ui.on("windlass-open", self._on_open)
        ui.on("windlass-graph", self._on_graph)
        ui.on("windlass-node", self._on_node)

    async def _on_search(self, event: Any) -> None:
        query, mode = _texts(event.args, 2)
        _set(self._results, await search.results(self._services, query, mode))

    async def _on_chat(self, event: Any) -> None:
        (question,) = _texts(event.args, 1)
        await self._conversation.ask(question)

    async def _on_open(self, event: Any) -> None:
        (place,) = _texts(event.args, 1)
        try:
            doc_id, start, end, *rest = (int(part) for part in place.split()[:4])
        except ValueError:
            return
        around = rest[0] if rest else source.AROUND
        _set(self._source, await source.panel(self._services, doc_id, start, end, around))
        ui.run_javascript("windlass.showSource()")

    async def _on_graph(self, event: Any) -> None:
        (name,) = _texts(event.args, 1)
        await self._draw_graph(name)

    async def _on_node(self, event: Any) -> None:
        (node,) = _texts(event.args, 1)
        if node.isdecimal():
            await self._show_node(int(node))

    def _add_turn(self) -> Callable[[Markup], None]:
        with self._turns:
            turn = _html(Markup(""))
        ui.run_javascript("windlass.follow()")

        def show(content: Markup) -> None:
            _set(turn, content)

        return show

    def _set_busy(self, busy: bool) -> None:
        if not self._turns.is_deleted:
            ui.run_javascript(f"windlass.busy({'true' if busy else 'false'})")

    async def _refresh(self) -> None:
        """Bring overview, progress and status up to date; nothing is sent when nothing changed."""
        view = self._services.progress.snapshot()
        with contextlib.suppress(WindlassError):  # a full queue or a busy disk: the next second tries again
            found = await self._services.overview()
            _set(self._progress, overview.progress(view))
            _set(self._status, overview.status(found, view))
            _set(self._overview, overview.body(found, working=view.active))


def _html(content: Markup) -> ui.html:
    """Our own markup, which is escaped where it was made."""
    return ui.html(str(content), sanitize=False)


def _set(element: ui.html, content: Markup) -> None:
    if not element.is_deleted and element.content != str(content):
        element.set_content(str(content))


def _texts(args: Any, count: int) -> list[str]:
    """Exactly `count` short texts out of what a browser sent, which may be anything."""
    given = args if isinstance(args, list) else [args]
    texts = [value[:_EVENT_LIMIT] if isinstance(value, str) else "" for value in given[:count]]
    return texts + [""] * (count - len(texts))
