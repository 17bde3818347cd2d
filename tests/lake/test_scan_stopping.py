"""What a scan passes over, and scans that are stopped, cut short or killed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.children import Child, quick_folder
from tests.lake.scan_oracle import apply, check_documents, expected, look, scan, stored, write_files
from windlass.core.errors import Cancelled, UsageError
from windlass.core.progress import Silent
from windlass.core.workspace import Workspace
from windlass.lake import scan as scan_module
from windlass.lake.scan import Catalog
from windlass.lake.walk import DEFAULT_IGNORE, _default_ignored

# --- what is ignored


def test_ignore_patterns(tmp_path: Path) -> None:
    write_files(
        tmp_path, "a.log", "keep.log", "d/b.log", "build/x", "d/build/x", "top.txt", "d/top.txt", "d/t/x.tmp", "plain",
        ".hidden", ".git/config", "node_modules/m.js", "~$draft.docx", "trailing ", "#hash",
    )  # fmt: skip
    rules = "# comment\n*.log\n!keep.log\nbuild/\n/top.txt\n**/t/*.tmp\n\n!.windlass/\n\\#hash\n"
    (tmp_path / ".windlassignore").write_text(rules)
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        assert sorted(stored(workspace)) == ["d/top.txt", "keep.log", "plain", "trailing "]
        (tmp_path / ".windlassignore").write_text("!.hidden\nplain\n")
        delta = scan(workspace)
        assert {".hidden", "a.log", "build/x", "top.txt"} <= set(delta.added)
        assert delta.removed == ["plain"]
        assert not [path for path in stored(workspace) if path.startswith((".windlass/", ".git/"))]


@pytest.mark.parametrize("line", ["!", "[z-a]", "a\\"])
def test_a_line_that_is_no_pattern_is_named(tmp_path: Path, line: str) -> None:
    write_files(tmp_path, "a")
    (tmp_path / ".windlassignore").write_text(f"*.log\n{line}\n")
    with Workspace.open(tmp_path) as workspace, pytest.raises(UsageError, match=r"\.windlassignore, line 2"):
        scan(workspace)


def test_ignore_rules_that_cannot_be_read_are_not_ignored(tmp_path: Path) -> None:
    """Indexing what was to be left out would be worse than stopping."""
    write_files(tmp_path, "a")
    (tmp_path / ".windlassignore").write_bytes(b"\xff\xfe\x00*.log\n")
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        assert list(stored(workspace)) == ["a"]


# --- stopping


class StopsAt(Silent):
    """A progress that is cancelled when a stage has advanced so far."""

    def __init__(self, stage: str, number: int) -> None:
        super().__init__()
        self._stage, self._left = stage, number

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        self._left -= done if stage == self._stage else 0
        if self._left <= 0:
            self.cancel()


@pytest.mark.parametrize("stage", ["scan", "hash"])
def test_a_cancelled_scan_stops_and_the_next_one_goes_on(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, *(f"{number}.txt" for number in range(100)))
    monkeypatch.setattr(scan_module, "_COMMIT_EVERY", 10)
    with Workspace.open(tmp_path) as workspace:
        with pytest.raises(Cancelled), workspace.acquire():
            Catalog(workspace).scan(progress=StopsAt(stage, 50))
        assert len(stored(workspace)) < 100
        scan(workspace)
        assert stored(workspace) == look(tmp_path)


def test_a_huge_file_does_not_hold_up_a_cancelled_scan(tmp_path: Path) -> None:
    """Hashing a sparse terabyte would take hours; the block after the wish to stop is the last."""
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)

    class Impatient(Silent):
        def start(self, stage: str, total: int | None, unit: str) -> None:
            if stage == "hash":
                threading.Timer(0.05, self.cancel).start()

    with Workspace.open(tmp_path) as workspace, workspace.acquire(), pytest.raises(Cancelled):
        Catalog(workspace).scan(progress=Impatient())


def changing_scanner(folder: Path) -> Callable[[Callable[[str], None]], None]:
    def work(say: Callable[[str], None]) -> None:
        with Workspace.open(folder) as workspace:
            say("open")
            scan(workspace)
            say("done")

    return work


@pytest.fixture
def often_committed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scan_module, "_COMMIT_EVERY", 7)
    yield


def test_a_killed_scan_is_made_good_by_the_next(often_committed: None) -> None:
    with quick_folder() as folder:
        check_killed_scans(folder)


def check_killed_scans(folder: Path) -> None:
    chance = random.Random(1)
    paths = [b"%d/%d.txt" % (number % 7, number) for number in range(150)]
    for path in paths:
        apply(folder, ("write", path, path * 50))
    finished = 0
    for _ in range(20):
        for path in chance.sample(paths, 60):
            kind = chance.choice(["write", "append", "rename", "copy", "delete"])
            apply(folder, (kind, path, chance.choice(paths) if kind in ("rename", "copy") else chance.randbytes(30)))
        with Child(changing_scanner(folder)) as child:
            child.line()
            time.sleep(chance.uniform(0, 0.06))
            finished += "done" in child.kill()
        with Workspace.open(folder) as workspace:
            assert workspace.check_integrity() == []
            half_way = stored(workspace)
            now = look(folder)
            delta = scan(workspace)
            assert (delta.added, delta.changed, delta.removed, delta.renamed) == expected(half_way, now)
            assert stored(workspace) == now
            check_documents(workspace)
    assert finished < 20, "no scan was killed"


NAME = st.text(st.sampled_from("ab.~$_pycdnoelsk+THmiTt"), min_size=1, max_size=8) | st.sampled_from(
    [
        ".git",
        "a.pyc",
        "~$x.docx",
        "Thumbs.db",
        "desktop.ini",
        "__pycache__",
        "node_modules",
        "lost+found",
        "x.thumbs.db",
    ]
)


@settings(deadline=None, max_examples=300)
@given(NAME.filter(lambda name: name not in (".", "..")), st.booleans(), st.booleans())
def test_the_quick_ignore_rule_is_that_of_the_patterns(name: str, is_folder: bool, nested: bool) -> None:
    import pathspec

    path = ("part/" if nested else "") + name + ("/" if is_folder else "")
    assert bool(_default_ignored(path)) == pathspec.GitIgnoreSpec.from_lines(DEFAULT_IGNORE).match_file(path)
