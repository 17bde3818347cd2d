"""The page: nothing of a file's name or content is ever more than text, and every view says what it should."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from markupsafe import Markup
from selectolax.lexbor import LexborHTMLParser

from windlass.app.http.generation import GenerationQueue
from windlass.app.http.keys import hash_key
from windlass.app.http.limits import Limits
from windlass.app.http.metrics import Metrics
from windlass.app.http.server import create_app
from windlass.app.http.services import Services
from windlass.app.http.tenants import Tenant
from windlass.app.page import chat, overview, search, source, wording
from windlass.app.page import graph as graphs
from windlass.app.page.examples import examples
from windlass.app.progress_state import PageProgress
from windlass.graphs.graph import Graph
from windlass.lake.document import Column
from windlass.retrieval.overview import Overview, TableInfo
from windlass.retrieval.pipeline import Pipeline
from windlass.retrieval.types import Answer, Citation, Hit, Passage, Sentence

HOSTILE = "\"'><img src=x onerror=alert(1)><script>alert(2)</script>`${alert(3)}`{{7*7}}"
HOSTILE_NAME = '<img src=x onerror="alert(1)"> & Co.md'


def tree(markup: Markup) -> LexborHTMLParser:
    return LexborHTMLParser(f"<body>{markup}</body>")


def assert_harmless(markup: Markup) -> LexborHTMLParser:
    """No element or attribute that a file could have made."""
    parsed = tree(markup)
    assert parsed.css("script, img, iframe, object, embed, link, style, base, meta, form[action]") == []
    for node in parsed.css("*"):
        for name, value in node.attributes.items():
            assert not name.startswith("on"), (node.tag, name)
            assert name not in ("src", "srcdoc", "srcset")
            assert name != "href" or (value or "").startswith(("/", "#"))
    return parsed


def a_passage(**changes: Any) -> Passage:
    values = {"id": 1, "doc_id": 7, "source": HOSTILE, "start": 3, "end": 9, "title": HOSTILE, "text": HOSTILE}
    return Passage(**{**values, "also": (HOSTILE,), **changes})


def an_answer(*, found: bool, text: str = HOSTILE) -> Answer:
    citation = Citation(1, HOSTILE, 7, 3, 9, HOSTILE + " longer", 0.9, page=4, table=HOSTILE, sql=HOSTILE)
    sentences = (Sentence(text, (citation,)),) if found else ()
    return Answer(HOSTILE, found, f"{text} [1]", sentences, "extract", (Hit(a_passage(), 0.1, {}),), 1, 1, (HOSTILE,))


def an_overview() -> Overview:
    column = Column(HOSTILE, "text", 1, 2, HOSTILE, HOSTILE, (HOSTILE,))
    table = TableInfo(1, 7, HOSTILE, HOSTILE, 3, (column,), (HOSTILE,))
    return Overview(
        files=3, bytes=300, by_kind={HOSTILE: (2, 200), "failed": (1, 100)}, by_state={"indexed": 2, "failed": 1},
        duplicates=[[HOSTILE, HOSTILE + "2"]], duplicate_bytes=100, tables=[table],
        failed=[(HOSTILE, HOSTILE, HOSTILE)], passages=5, embedded=(1, 2), encoder=HOSTILE, model=HOSTILE,
        skipped=[(HOSTILE, HOSTILE)],
    )  # fmt: skip


def test_an_overview_of_hostile_files_is_text() -> None:
    parsed = assert_harmless(overview.body(an_overview(), working=False))
    assert parsed.text().count("alert(2)") >= 9
    assert "by meaning: 50 %" in parsed.text()
    assert [node.text() for node in parsed.css(".figures dd:not(.sub)")] == ["3", "5", "1", "1", "1"]


@pytest.mark.parametrize("found", [True, False])
def test_an_answer_out_of_hostile_files_is_text(found: bool) -> None:
    parsed = assert_harmless(chat.answered(an_answer(found=found), 0.5))
    opened = [node.attributes["data-open"] for node in parsed.css("[data-open]")]
    assert opened == (["7 3 9", "7 3 9"] if found else ["7 3 9"])
    assert ("Not found in your files" in parsed.text()) is not found
    assert "used 1 of 1 passage" in parsed.text()
    assert_harmless(chat.running(HOSTILE, HOSTILE, waiting=True))
    assert_harmless(chat.failed(HOSTILE, HOSTILE))


def test_markdown_of_files_is_emphasis_at_most() -> None:
    text = "- **15 <i>%</i>** off, see [here](javascript:alert(1)) ![x](http://evil.example/x.png) `<b>`"
    parsed = assert_harmless(chat.answered(an_answer(found=True, text=text), 0.1))
    assert [node.text() for node in parsed.css(".sentence strong")] == ["15 <i>%</i>"]
    assert [node.text() for node in parsed.css(".sentence code")] == ["<b>"]
    assert parsed.css("a, img, .sentence i") == []


def test_found_words_are_marked_whatever_their_endings() -> None:
    marked = wording.marked("Dredging & dredged <works>, not Dredger", "Who dredges works?")
    assert [node.text() for node in tree(marked).css("mark")] == ["Dredging", "dredged", "works"]
    assert tree(marked).text() == "Dredging & dredged <works>, not Dredger"


def test_a_snippet_shows_the_place_where_the_words_are() -> None:
    text = "nothing here " * 200 + "the harbour master approves dredging " + "and more " * 200
    shown = tree(wording.snippet(text, "dredging approved"))
    assert [node.text() for node in shown.css("mark")] == ["approves", "dredging"]
    assert len(shown.text()) < 420
    assert shown.text().startswith("…") and shown.text().endswith("…")


def test_of_table_rows_the_fitting_ones_are_shown() -> None:
    text = "berth: N1; depth: 8\nberth: W2; depth: 11\nberth: N4; depth: 9"
    shown = tree(wording.passage_snippet(a_passage(kind="rows", rows=(40, 42), text=text), "depth of berth W2"))
    assert [node.text() for node in shown.css(".row-number")] == ["row 41"]
    assert "W2" in shown.text() and "N4" not in shown.text()


def test_progress_says_how_far_and_how_long() -> None:
    clock = iter(range(100))
    progress = PageProgress(clock=lambda: float(next(clock)))
    assert str(overview.progress(progress.snapshot())).strip() == ""
    progress.start("read", 40, "files")
    for _ in range(10):
        progress.advance("read", 1, HOSTILE)
    parsed = assert_harmless(overview.progress(progress.snapshot()))
    assert "10 of 40 files" in parsed.text() and "left" in parsed.text()
    assert parsed.css_first("[role=progressbar]").attributes["aria-valuenow"] == "25"
    assert "Reading files 25 %" in overview.status(an_overview(), progress.snapshot())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared drive")
    rules = "# Port rules\n\n## Dredging\n\nThe harbour master approves dredging works.\n\n" + HOSTILE + "\n"
    (root / "rules.md").write_text(rules)
    (root / HOSTILE_NAME).write_text("# Berths\n\n## What is a berth\n\nA berth is where dredging barges lie.\n")
    (root / "copy.md").write_text(rules)
    (root / "berths.csv").write_text(
        "name,depth\n" + "".join(f"N{n},{n}\n" for n in range(1, 9)) + f'"{HOSTILE_NAME}",3\n'
    )
    (root / "broken.pdf").write_bytes(b"%PDF-1.7 broken")
    return root


@pytest.fixture(scope="module")
def lifted(folder: Path) -> Iterator[Pipeline]:
    with Pipeline.open(folder, encoder=None, model=None) as pipeline:
        pipeline.index(embed=False)
        yield pipeline


@pytest.fixture
def services(lifted: Pipeline) -> Iterator[Services]:
    made = Services(lifted, Limits())
    yield made
    made.close()


def test_search_results_come_from_the_real_index(services: Services) -> None:
    parsed = assert_harmless(asyncio.run(search.results(services, "dredging barges", "hybrid")))
    assert parsed.css_first(".file").text() == HOSTILE_NAME
    assert {"dredging", "barges"} <= {node.text().lower() for node in parsed.css("mark")}
    assert "Nothing found" in asyncio.run(search.results(services, "zzzz", "lexical"))
    assert "windlass models pull" in asyncio.run(search.results(services, "berth", "dense"))
    assert tree(asyncio.run(search.results(services, " ", "nonsense"))).css(".result") == []


def test_a_citation_opens_its_exact_words(services: Services) -> None:
    answer = services.pipeline.ask("Who approves dredging works?")
    citation = answer.sentences[0].citations[0]
    parsed = assert_harmless(asyncio.run(source.panel(services, citation.doc_id, citation.start, citation.end)))
    assert parsed.css_first("#source-quote").text() == citation.quote == "The harbour master approves dredging works."
    assert HOSTILE in parsed.css_first(".source-text").text()
    assert "line 5" in parsed.css_first(".where").text()
    for doc_id, start, end in ((999, 0, 1), (citation.doc_id, 5, 10**9), (citation.doc_id, -5, 3), (1 << 62, 0, 0)):
        assert "not there" in asyncio.run(source.panel(services, doc_id, start, end))


def test_example_questions_come_from_headings(services: Services) -> None:
    assert set(examples(services)) == {"What does “Port rules” say about “Dredging”?", "What is a berth?"}


def test_a_conversation_shows_work_answer_and_not_found(services: Services) -> None:
    turns: list[list[Markup]] = []

    def add_turn() -> Any:
        turns.append([])
        return turns[-1].append

    async def talk() -> None:
        busy: list[bool] = []
        conversation = chat.Conversation(services, add_turn, busy.append)
        await conversation.ask("Who approves dredging works?")
        await conversation.ask("   ")
        await conversation.ask("Which opera did the captain's sister compose?")
        assert busy == [True, False, True, False]

    asyncio.run(talk())
    assert len(turns) == 2
    assert "Looking for it in your files" in turns[0][0]
    assert "The harbour master approves dredging works." in turns[0][-1]
    assert "Not found in your files" in turns[1][-1]


def test_a_conversation_can_be_stopped_and_hears_of_a_full_queue(lifted: Pipeline) -> None:
    services = Services(lifted, Limits(waiting=0))
    shown: list[Markup] = []
    gate = threading.Event()

    async def talk() -> None:
        def wait(generation: Any) -> None:
            while not gate.wait(0.01):
                generation.check()

        blocking = services.queue.submit(wait)
        conversation = chat.Conversation(services, lambda: shown.append, lambda _busy: None)
        await conversation.ask("Who approves dredging works?")
        assert "try again in" in shown[-1]
        blocking.cancel()
        while services.queue.depth:
            await asyncio.sleep(0.01)

        lifted_ask = services.pipeline.ask
        services.pipeline.ask = lambda question, *, on_token: wait_for_cancel(on_token)  # type: ignore[method-assign]
        asking = asyncio.ensure_future(conversation.ask("Anything?"))
        while not shown[-1].count("draft"):
            await asyncio.sleep(0.01)
        await conversation.ask("Ignored while the other one runs")
        conversation.stop()
        await asking
        services.pipeline.ask = lifted_ask  # type: ignore[method-assign]

    def wait_for_cancel(on_token: Any) -> Any:
        while True:
            on_token("word ")
            gate.wait(0.01)

    asyncio.run(talk())
    assert "Stopped." in shown[-1]
    assert "Ignored" not in "".join(shown)
    services.close()


def test_the_queue_keeps_order_and_forgets_the_cancelled() -> None:
    order: list[int] = []
    metrics = Metrics()

    async def run() -> None:
        queue = GenerationQueue(4, metrics)
        gate = threading.Event()
        generations = [queue.submit(lambda _g, n=n: (gate.wait(5), order.append(n))) for n in range(4)]
        generations[2].cancel()
        gate.set()
        await asyncio.gather(*(generation.result() for generation in generations), return_exceptions=True)
        queue.close()
        assert queue.depth == 0

    asyncio.run(run())
    assert order == [0, 1, 3]


@pytest.fixture(scope="module")
def page(lifted: Pipeline) -> Iterator[httpx.Client]:
    """The whole page on a real server; the framework behind it knows one application a process."""
    app = create_app(lifted)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx.Client(base_url=base, trust_env=False, timeout=60) as client:
            while not server.started:
                threading.Event().wait(0.02)
            yield client
        server.should_exit = True
        thread.join(20)


def elements(html: str) -> str:
    """The data that the page's script draws, as the browser would read it, in one text."""
    found = re.search(r"parseElements\(String\.raw`(.*?)`\)", html, re.DOTALL)
    assert found
    raw = found[1]
    assert "<" not in raw and "${" not in raw
    for code, character in (("&lt;", "<"), ("&gt;", ">"), ("&#96;", "`"), ("&#36;", "$"), ("&amp;", "&")):
        raw = raw.replace(code, character)
    contents = [element.get("props", {}).get("innerHTML", "") for element in json.loads(raw).values()]
    return "\n".join(contents)


@pytest.mark.parametrize("path", ["/", "/search?q=dredging", "/graph", "/chat"])
def test_every_view_arrives_harmless_under_a_strict_policy(page: httpx.Client, path: str) -> None:
    reply = page.get(path)
    assert reply.status_code == 200
    policy = reply.headers["content-security-policy"]
    nonce = re.search(r"'nonce-([^']+)'", policy)
    assert nonce and "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
    scripts = re.findall(r"<script[^>]*>", reply.text)
    assert scripts and all(f'nonce="{nonce[1]}"' in script for script in scripts)
    assert page.get(path).headers["content-security-policy"] != policy
    assert re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", reply.text) == []
    assert_harmless(Markup(elements(reply.text)))
    assert "onerror" not in reply.text.split("parseElements")[0]


def test_the_overview_and_a_search_address_hold_what_they_name(page: httpx.Client) -> None:
    drawn = tree(Markup(elements(page.get("/").text)))
    assert "berths" in [node.text() for node in drawn.css(".fold-title")]
    assert [node.text() for node in drawn.css(".reasons .path")][:1] == ["broken.pdf"]
    assert drawn.css_first(".copies .kept").text() == "copy.md"
    found = tree(Markup(elements(page.get("/search?q=%3Cscript%3Ebarges").text)))
    assert HOSTILE_NAME in [node.text() for node in found.css(".result .file")]
    assert found.css_first("#search-input").attributes["value"] == "<script>barges"


def test_a_graph_of_hostile_names_is_text_and_what_is_near_a_node_is_named() -> None:
    graph = Graph.from_edges(["a", "a", HOSTILE, HOSTILE], ["b", HOSTILE, "c", "d"])
    shown = graphs.shown_graph(graph)
    at = shown.names.index(HOSTILE)
    near = graphs.near(shown, at)
    assert {shown.names[place] for place, _ in near} == {"a", "b", "c", "d"}
    assert [score for _, score in near] == sorted((score for _, score in near), reverse=True)
    parsed = assert_harmless(graphs.about(shown, at, near))
    assert [node.text() for node in parsed.css(".graph-near h2")] == [HOSTILE]
    assert len(parsed.css(".near-list [data-node]")) == 4
    options = json.dumps(shown.options)
    assert '":' not in options.replace('": ', "")  # a key that begins with a colon would be run as a script
    assert_harmless(graphs.problem(HOSTILE))


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost", "http://localhost", "101"),
        ("localhost", "http://evil.example", "403"),
        ("evil.example", "http://evil.example", "403"),
    ],
)
def test_the_socket_answers_our_own_page_alone(page: httpx.Client, host: str, origin: str, status: str) -> None:
    lines = [
        "GET /_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1", f"Host: {host}", f"Origin: {origin}",
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", page.base_url.port or 0), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(100).split(b" ")[1].decode() == status


def test_nothing_is_written_into_the_current_folder(page: httpx.Client) -> None:
    page.get("/")
    assert not Path(".nicegui").exists()


def test_a_page_behind_a_key_shows_the_form_first(pipeline: Any, serve: Any) -> None:
    with serve(pipeline, tenants=[Tenant(hashes=(hash_key("wl-k"),))]) as server, server.client() as client:
        for path in ("/", "/search", "/_nicegui_ws/socket.io/?EIO=4&transport=polling"):
            reply = client.get(path, headers={"accept": "text/html"})
            assert reply.status_code == 401
            assert_harmless_form(reply.text)


def assert_harmless_form(html: str) -> None:
    assert "<form" in html and "<script" not in html
