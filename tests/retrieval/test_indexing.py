"""What an index run reads, keeps and forgets, and what it does when something goes wrong in the middle."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.direct_sandbox import DirectSandbox
from tests.index_content import Rows, check_no_unused_vectors, check_whole, content, rows
from windlass.core.errors import Cancelled, ReadError, StorageError, WorkspaceError
from windlass.core.paths import to_text
from windlass.core.progress import Progress, Silent
from windlass.core.workspace import Workspace
from windlass.lake import scan as scan_module
from windlass.retrieval import embedding, indexing
from windlass.retrieval.pipeline import Pipeline


class CountingEncoder:
    """One random direction a text; counts what it is given."""

    dim = 8

    def __init__(self, fingerprint: str = "counting") -> None:
        self.fingerprint = fingerprint
        self.encoded: list[str] = []

    def encode_passages(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        self.encoded += texts
        return self.encode_queries(texts)

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") for text in texts]
        vectors = np.stack([np.random.default_rng(seed).standard_normal(self.dim) for seed in seeds])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def encode_tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64], None]:
        raise AssertionError("not used here")


@pytest.fixture(autouse=True)
def direct_reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_readers" not in request.fixturenames:
        monkeypatch.setattr(indexing, "Sandbox", DirectSandbox)


@pytest.fixture
def real_readers() -> None:
    """Ask for it to have files read by child processes, as in earnest."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, direct_reading: None) -> list[str]:
    """The names of the files that readers were given, in order."""
    names: list[str] = []

    class RecordingSandbox(indexing.Sandbox):  # type: ignore[misc, name-defined]
        def map(self, items, *, progress=None):  # type: ignore[no-untyped-def]
            taken = list(items)
            names.extend(os.path.basename(path) for first, others, _ in taken for path in (first, *others))
            return super().map(taken, progress=progress)

    monkeypatch.setattr(indexing, "Sandbox", RecordingSandbox)
    return names


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture
def pipeline(tmp_path: Path, encoder: CountingEncoder) -> Iterator[Pipeline]:
    folder = tmp_path / "folder"
    folder.mkdir()
    with Pipeline.open(folder, encoder=encoder, model=None) as pipeline:
        yield pipeline


def write(pipeline: Pipeline, name: str, content: str | bytes) -> Path:
    path = pipeline.workspace.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def files(pipeline: Pipeline) -> dict[str, str]:
    return {info.path: info.state for info in pipeline.files()}


def sources(pipeline: Pipeline, query: str) -> list[str]:
    return sorted({hit.passage.source for hit in pipeline.search(query, 20, mode="lexical")})


def check_finished(pipeline: Pipeline) -> None:
    check_whole(pipeline.workspace)
    check_no_unused_vectors(pipeline.workspace)


# --- what is read again


def test_an_edited_file_is_the_only_one_that_is_read(
    pipeline: Pipeline, encoder: CountingEncoder, reads: list[str]
) -> None:
    for number in range(5):
        write(pipeline, f"{number}.md", f"# Berth {number}\n\nThe draught at berth {number} is {number} metres.\n")
    pipeline.index()
    assert len(reads) == 5 and len(encoder.encoded) == 5
    reads.clear(), encoder.encoded.clear()
    write(pipeline, "3.md", "# Berth 3\n\nBerth three was closed.\n")
    report = pipeline.index()
    assert reads == ["3.md"] and report.files_read == 1 and report.delta.changed == ["3.md"]
    assert encoder.encoded == ["Berth 3\nBerth three was closed."]
    assert sources(pipeline, "closed") == ["3.md"] and "3.md" not in sources(pipeline, "metres")
    check_finished(pipeline)


def test_only_changed_passages_of_an_edited_file_are_embedded_again(
    pipeline: Pipeline, encoder: CountingEncoder
) -> None:
    sections = [f"# Section {number}\n\nRule {number} of the port is short.\n" for number in range(10)]
    write(pipeline, "rules.md", "\n".join(sections))
    pipeline.index()
    encoder.encoded.clear()
    sections[4] = "# Section 4\n\nRule four was repealed.\n"
    write(pipeline, "rules.md", "\n".join(sections))
    pipeline.index()
    assert len(encoder.encoded) == 1 and "repealed" in encoder.encoded[0]
    check_finished(pipeline)


def test_a_deleted_file_leaves_nothing(pipeline: Pipeline, encoder: CountingEncoder) -> None:
    write(pipeline, "kept.txt", "The lighthouse stays.")
    doomed = write(pipeline, "doomed.csv", "ship,flag\nMaren,DK\nLark,GB\n")
    pipeline.index()
    assert sources(pipeline, "Maren") == ["doomed.csv"]
    assert rows(pipeline.workspace, "SELECT count(*) FROM tables") == [(1,)]
    doomed.unlink()
    pipeline.index()
    assert files(pipeline) == {"kept.txt": "indexed"}
    for table in ("files", "documents", "chunks", "embeddings"):
        assert rows(pipeline.workspace, f"SELECT count(*) FROM {table}") == [(1,)], table
    assert rows(pipeline.workspace, "SELECT count(*) FROM tables") == [(0,)]
    assert sources(pipeline, "Maren") == []
    assert {hit.passage.source for hit in pipeline.search("Maren", mode="dense")} == {"kept.txt"}
    check_finished(pipeline)


def test_a_renamed_file_keeps_its_document_and_is_not_read(
    pipeline: Pipeline, encoder: CountingEncoder, reads: list[str]
) -> None:
    old = write(pipeline, "old.md", "# Boarding\n\nThe pilot boards at the outer buoy.")
    pipeline.index()
    before = rows(pipeline.workspace, "SELECT id FROM documents"), rows(pipeline.workspace, "SELECT id FROM chunks")
    reads.clear(), encoder.encoded.clear()
    (old.parent / "deep").mkdir()
    old.rename(old.parent / "deep" / "new.md")
    assert pipeline.index().delta.renamed == [("old.md", "deep/new.md")]
    assert (reads, encoder.encoded) == ([], [])
    assert (
        rows(pipeline.workspace, "SELECT id FROM documents"),
        rows(pipeline.workspace, "SELECT id FROM chunks"),
    ) == before
    assert sources(pipeline, "pilot") == ["deep/new.md"]


def test_a_new_ending_is_a_new_reading(pipeline: Pipeline, reads: list[str]) -> None:
    path = write(pipeline, "list.txt", "a,b\n1,2\n")
    pipeline.index()
    path.rename(path.with_name("list.csv"))
    pipeline.index()
    assert reads == ["list.txt", "list.csv"]
    assert [info.kind for info in pipeline.files()] == ["csv"]
    check_finished(pipeline)


def test_equal_files_are_read_once_and_share_a_document(pipeline: Pipeline, reads: list[str]) -> None:
    for name in ("a/notice.md", "b/notice.md", "c.md"):
        write(pipeline, name, "# Notice\n\nThe swing bridge is out of order.\n")
    pipeline.index()
    assert len(reads) == 1
    (hit,) = pipeline.search("swing bridge", mode="lexical")
    assert (hit.passage.source, hit.passage.also) == ("c.md", ("a/notice.md", "b/notice.md"))
    write(pipeline, "d.md", "# Notice\n\nThe swing bridge is out of order.\n")
    (pipeline.workspace.folder / "c.md").unlink()
    pipeline.index()
    assert len(reads) == 1, "a copy that came later was read"
    assert sources(pipeline, "swing bridge") == ["d.md"]
    check_finished(pipeline)


def test_equal_files_with_two_endings_of_one_kind(pipeline: Pipeline) -> None:
    page = "<html><body><h1>Tides</h1><p>High water at noon.</p></body></html>"
    first = write(pipeline, "tides.htm", page)
    write(pipeline, "tides.html", page)
    pipeline.index()
    assert files(pipeline) == {"tides.htm": "indexed", "tides.html": "indexed"}
    assert sources(pipeline, "noon") == ["tides.htm"]
    first.unlink()
    pipeline.index()
    assert sources(pipeline, "noon") == ["tides.html"]
    check_finished(pipeline)


def test_an_unchanged_folder_costs_no_read_and_few_statements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    """2,000 files (of 40 contents, so that the first run is short)."""
    for number in range(2_000):
        path = tmp_path / f"{number % 20}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"The quay wall number {number % 40} was built long ago.")
    plain_clock, plain_open = time.time_ns, os.open
    monkeypatch.setattr(scan_module.time, "time_ns", lambda: plain_clock() + 10_000_000_000)
    encoder = CountingEncoder()
    with Pipeline.open(tmp_path, encoder=encoder, model=None) as pipeline:
        first = pipeline.index()
        assert first.delta.hashed == 2_000 and first.files_read == len(reads) == 40
        reads.clear(), encoder.encoded.clear()
        opened: list[str] = []
        statements: list[str] = []

        def counting_open(path: object, *args: object, **named: object) -> int:
            opened.append(os.fsdecode(path))  # type: ignore[arg-type]
            return plain_open(path, *args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", counting_open)
        with pipeline.workspace.reading() as connection:
            connection.set_trace_callback(statements.append)
        report = pipeline.index()
    assert report.delta.unchanged == 2_000 and report.delta.quiet
    assert (report.files_read, report.passages_embedded, reads, encoder.encoded) == (0, 0, [], [])
    assert [path for path in opened if not path.endswith(("/lock", "/state")) and not os.path.isdir(path)] == []
    assert len(statements) < 40, statements


# --- what cannot be read


def test_files_that_fail_are_named_and_do_not_stop_the_others(
    pipeline: Pipeline, real_readers: None, reads: list[str]
) -> None:
    write(pipeline, "good.md", "# Fine\n\nThe crane works.\n")
    write(pipeline, "broken.pdf", b"%PDF-1.7 no pdf at all")
    write(pipeline, "broken.docx", b"PK\x03\x04 no archive")
    with open(os.fsencode(pipeline.workspace.folder) + b"/caf\xe9 \xff.xlsx", "wb") as file:
        file.write(b"no workbook")
    odd = to_text(b"caf\xe9 \xff.xlsx")
    report = pipeline.index()
    assert files(pipeline) == {"good.md": "indexed", "broken.pdf": "failed", "broken.docx": "failed", odd: "failed"}
    assert {path: reason for path, reason, _ in report.failed} == {
        info.path: info.reason for info in pipeline.files() if info.reason
    }
    assert all(message for _, _, message in pipeline.overview().failed)
    assert sources(pipeline, "crane") == ["good.md"]
    reads.clear()
    assert pipeline.index().failed == [] and reads == [], "failed files wait until they change"
    write(pipeline, "broken.pdf", b"%PDF-1.7 still none")
    pipeline.index()
    assert reads == ["broken.pdf"] and files(pipeline)["broken.pdf"] == "failed"
    check_finished(pipeline)


def test_small_files_share_a_call_and_only_the_culprit_of_a_crash_fails(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    class CrashingSandbox(DirectSandbox):
        def map(self, items, *, progress=None):  # type: ignore[no-untyped-def]
            for index, (path, others, words) in enumerate(items):
                names = [os.path.basename(name) for name in (path, *others)]
                calls.append(names)
                if "bad.txt" in names:
                    yield index, ReadError("crashed the reader (SIGSEGV)", reason="broken")
                else:
                    yield from ((index, result) for _, result in super().map([(path, others, words)]))

    monkeypatch.setattr(indexing, "Sandbox", CrashingSandbox)
    names = [f"note {number}.txt" for number in range(5)]
    for name in names:
        write(pipeline, name, f"the crane of {name}")
    write(pipeline, "bad.txt", "a file that crashes its reader")
    report = pipeline.index()
    assert sorted(calls[0]) == sorted([*names, "bad.txt"])
    assert sorted(calls[1:]) == sorted([[name] for name in [*names, "bad.txt"]])
    assert files(pipeline) == {**dict.fromkeys(names, "indexed"), "bad.txt": "failed"}
    assert report.failed == [("bad.txt", "broken", "crashed the reader (SIGSEGV)")]
    assert sources(pipeline, "crane") == names
    check_finished(pipeline)


def test_a_failed_file_that_is_mended_is_read(pipeline: Pipeline) -> None:
    write(pipeline, "table.json", b"[{")
    pipeline.index()
    before = files(pipeline)["table.json"]
    write(pipeline, "table.json", '[{"berth": 4, "depth": 11}]')
    pipeline.index()
    (info,) = pipeline.files()
    assert info.state == "indexed" and info.reason is None and info.message is None, before


def during_reading(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have `act` happen after the scan and before the first file is read."""

    class InterruptedSandbox(indexing.Sandbox):  # type: ignore[misc, name-defined]
        def map(self, items, *, progress=None):  # type: ignore[no-untyped-def]
            act()
            return super().map(items, progress=progress)

    monkeypatch.setattr(indexing, "Sandbox", InterruptedSandbox)


def test_a_file_that_changes_before_it_is_read_is_not_stored_under_the_old_hash(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(pipeline, "log.txt", "first words")
    write(pipeline, "other.txt", "the others go on")
    with monkeypatch.context() as patch:
        during_reading(patch, lambda: path.write_text("second, longer words"))
        pipeline.index()
    assert files(pipeline) == {"log.txt": "seen", "other.txt": "indexed"}
    assert sources(pipeline, "words") == []
    pipeline.index()
    assert sources(pipeline, "longer") == ["log.txt"]
    check_finished(pipeline)


@pytest.mark.parametrize("kind", ["delete", "folder", "link", "pipe"])
def test_a_file_that_is_replaced_before_it_is_read(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, real_readers: None, kind: str
) -> None:
    (tmp_path / "secret.txt").write_text("a secret outside")
    path = write(pipeline, "a.txt", "some words")
    write(pipeline, "other.txt", "the others go on")

    def replace() -> None:
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(tmp_path / "secret.txt")
        elif kind == "pipe":
            os.mkfifo(path)

    with monkeypatch.context() as patch:
        during_reading(patch, replace)
        pipeline.index()
    assert files(pipeline)["other.txt"] == "indexed"
    assert sources(pipeline, "secret words") == []
    pipeline.index()
    assert files(pipeline) == {"other.txt": "indexed"}
    check_finished(pipeline)


# --- stopping in the middle


def fill(folder: Path) -> None:
    for number in range(12):
        (folder / f"{number}.md").write_text(
            f"# Rule {number}\n\nShips of class {number} wait outside.\n" * (number + 1)
        )
    (folder / "twin.md").write_text((folder / "3.md").read_text())
    (folder / "calls.csv").write_text("ship,berth\n" + "".join(f"ship {n},{n % 5}\n" for n in range(40)))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "long.txt").write_text("".join(f"Ship number {n} waits outside.\n" for n in range(2_000)))


@pytest.fixture
def reference(tmp_path: Path) -> dict[str, Rows]:
    folder = tmp_path / "reference"
    folder.mkdir()
    fill(folder)
    with Pipeline.open(folder, encoder=CountingEncoder(), model=None) as pipeline:
        pipeline.index()
        return content(pipeline.workspace)


class StopsAt(Silent):
    def __init__(self, stage: str, number: int) -> None:
        super().__init__()
        self._stage, self._left = stage, number

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        self._left -= stage == self._stage
        if self._left <= 0:
            self.cancel()


def test_a_run_that_was_stopped_anywhere_is_finished_by_the_next(
    pipeline: Pipeline,
    reference: dict[str, Rows],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(indexing, "_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(embedding, "_BATCH", 3)
    fill(pipeline.workspace.folder)
    for stage, number in (("hash", 4), ("read", 3), ("read", 6), ("embed", 1), ("embed", 2)):
        with contextlib.suppress(Cancelled):
            pipeline.index(progress=StopsAt(stage, number))
        check_whole(pipeline.workspace)
    report = pipeline.index()
    assert report.files_read < 15
    assert content(pipeline.workspace) == reference


def test_words_can_be_searched_before_vectors_are_made(pipeline: Pipeline) -> None:
    write(pipeline, "a.txt", "The harbour master signs.")
    found: list[list[str]] = []
    pipeline.index(on_searchable=lambda: found.append(sources(pipeline, "signs")))
    assert found == [["a.txt"]]


def test_vectors_of_another_encoder_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The harbour master signs.")
    for name in ("one", "two"):
        with Pipeline.open(tmp_path, encoder=CountingEncoder(name), model=None) as pipeline:
            assert pipeline.index().passages_embedded == 1
            assert rows(pipeline.workspace, "SELECT encoder FROM embeddings") == [(name,)]
            assert pipeline.search("signs", mode="dense")
            assert pipeline.index().passages_embedded == 0


def test_a_full_disk_stops_the_run_and_what_was_stored_stays(
    pipeline: Pipeline,
    reference: dict[str, Rows],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(indexing, "_COMMIT_SECONDS", 0.0)
    fill(pipeline.workspace.folder)
    (used,) = rows(pipeline.workspace, "PRAGMA page_count")[0]
    limits = [used]
    plain = Workspace._connection

    def limited(self: Workspace) -> sqlite3.Connection:
        connection = plain(self)
        connection.execute(f"PRAGMA max_page_count = {limits[-1]}")
        return connection

    monkeypatch.setattr(Workspace, "_connection", limited)
    refused = 0
    for more in range(1, 40, 4):
        limits.append(used + more)
        try:
            pipeline.index()
        except StorageError as error:
            refused += 1
            assert "workspace.sqlite" in str(error) and error.hint
            check_whole(pipeline.workspace)
    assert refused >= 2
    limits.append(1 << 30)
    pipeline.index()
    assert content(pipeline.workspace) == reference


def test_a_clock_that_was_put_back_changes_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, day = time.time_ns, 86_400 * 10**9
    write(pipeline, "a.txt", "one berth")
    for number, shift in enumerate((0, -day, day, -2 * day)):
        monkeypatch.setattr(scan_module.time, "time_ns", lambda shift=shift: plain() + shift)
        write(pipeline, "a.txt", f"berth number {number}")
        pipeline.index()
        assert sources(pipeline, f"{number}") == ["a.txt"]
        check_finished(pipeline)


def test_a_stored_text_that_rotted_is_reported(pipeline: Pipeline) -> None:
    write(pipeline, "a.txt", "words " * 100)
    pipeline.index()
    ((doc_id,),) = rows(pipeline.workspace, "SELECT id FROM documents")
    with pipeline.workspace.acquire(), pipeline.workspace.transaction() as connection:
        connection.execute("UPDATE documents SET text = x'789c0102'")
    with pytest.raises(WorkspaceError, match="doctor"):
        pipeline.document_text(doc_id)


def test_a_model_that_arrives_while_we_run_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: CountingEncoder
) -> None:
    """`up` shows its page while the models are still being downloaded."""
    from windlass.core.errors import ModelError
    from windlass.retrieval import pipeline as pipeline_module

    installed: list[CountingEncoder] = []

    def load(*_: str) -> CountingEncoder:
        if not installed:
            raise ModelError("not installed")
        return installed[0]

    monkeypatch.setattr(pipeline_module, "_load_encoder", load)
    (tmp_path / "a.txt").write_text("The harbour master signs.")
    with Pipeline.open(tmp_path, model=None) as pipeline:
        assert pipeline.index().passages_embedded == 0
        assert pipeline.encoder is None and len(pipeline.notices) == 1
        installed.append(encoder)
        assert pipeline.index().passages_embedded == 1
        assert pipeline.notices == ()


def test_a_renamed_file_leaves_its_old_name_nowhere(pipeline: Pipeline) -> None:
    write(pipeline, "alpha protocol.txt", "the tide gauge stands on the outer mole, read each hour.\n")
    write(pipeline, "zebra.csv", "a,b\n1,2\n3,4\n")
    write(pipeline, "manual.md", "# Mooring\n\nSix lines hold the ship.\n")
    pipeline.index()
    folder = pipeline.workspace.folder
    (folder / "alpha protocol.txt").rename(folder / "beta.txt")
    (folder / "zebra.csv").rename(folder / "lion.csv")
    (folder / "manual.md").rename(folder / "handbook.md")
    report = pipeline.index()
    assert len(report.delta.renamed) == 3
    assert report.files_read == 2  # the manual says its title itself
    for old in ("alpha protocol", "zebra"):
        assert pipeline.search(old, mode="lexical") == []
    assert {hit.passage.source for hit in pipeline.search("lion", mode="lexical")} == {"lion.csv"}
    assert [table.name for table in pipeline.overview().tables] == ["lion"]
    (folder / "sub").mkdir()
    (folder / "lion.csv").rename(folder / "sub" / "lion.csv")
    assert pipeline.index().files_read == 0
