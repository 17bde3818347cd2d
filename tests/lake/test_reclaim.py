"""What is taken away comes back bit-identical, whatever happens in between; and nothing goes that could not."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core import storage
from windlass.core.errors import NotFound, StorageError, UsageError
from windlass.core.workspace import Workspace
from windlass.lake import reclaim as reclaim_module
from windlass.lake.recipes import TextTable, _delimited_table, digest, rebuild, rows_recipe
from windlass.lake.reclaim import (
    RecipeError,
    ReclaimPlan,
    StalePlan,
    apply_plan,
    empty_trash,
    finish_interrupted,
    list_reclaimed,
    plan_reclaim,
    restore,
)
from windlass.lake.survey import contained_tables, near_copies, survey, table_profiles
from windlass.retrieval.pipeline import Pipeline

ROWS = [[str(n), f"vessel {n % 37}", f"{n * 7 % 1000 / 10}", "" if n % 11 == 0 else "quay, north"] for n in range(400)]
NAMES = ["id", "vessel", "draught", "berth"]


def as_csv(names: list[str], rows: list[list[str]], **options: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", **options).writerows([names, *rows])
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A parent, four tables out of it in different spellings, a copy, and what only looks contained."""
    root = tmp_path / "lake"
    (root / "old").mkdir(parents=True)
    (root / "calls.csv").write_text(as_csv(NAMES, ROWS))
    (root / "old" / "some.csv").write_text(as_csv(NAMES, ROWS[50:350:3]))
    some = [[row[2], row[1]] for row in ROWS[::-1] if row[3]]
    (root / "old" / "shuffled.csv").write_text(
        as_csv(["Draught", "Vessel"], some, delimiter=";", quoting=csv.QUOTE_ALL)
    )
    (root / "windows.csv").write_bytes(b"\xef\xbb\xbf" + as_csv(NAMES, ROWS[:200]).replace("\n", "\r\n").encode())
    (root / "copy of calls.csv").write_text(as_csv(NAMES, ROWS))
    (root / "near.csv").write_text(as_csv(NAMES, [*ROWS[:100], ["7", "vessel 8", "4.9", "elsewhere"]]))
    return root


@pytest.fixture
def workspace(folder: Path) -> Iterator[Workspace]:
    with index(folder) as pipeline:
        yield pipeline.workspace


def index(folder: Path) -> Pipeline:
    pipeline = Pipeline.open(folder, encoder=None, model=None)
    pipeline.index(embed=False)
    pipeline.survey()
    return pipeline


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".windlass" not in path.parts
    }


GONE = ["copy of calls.csv", "near.csv", "old/shuffled.csv", "old/some.csv", "windows.csv"]


def test_what_the_survey_finds(workspace: Workspace) -> None:
    found = {(entry.child_file, entry.parent_file) for entry in contained_tables(workspace)}
    assert ("old/some.csv", "calls.csv") in found or ("old/some.csv", "copy of calls.csv") in found
    assert not any("near.csv" in pair[0] for pair in found)
    assert {file for file, _ in table_profiles(workspace)} >= {"calls.csv", "near.csv", "old/some.csv"}


def test_a_dry_run_changes_nothing(workspace: Workspace, folder: Path) -> None:
    before = contents(folder)
    plan = plan_reclaim(workspace)
    assert [removal.path for removal in plan.removals] == GONE
    assert all(removal.parent == "calls.csv" for removal in plan.removals)
    assert plan.bytes_freed > 0.8 * sum(len(before[path]) for path in GONE)
    assert contents(folder) == before and list_reclaimed(workspace) == []


@pytest.mark.parametrize("emptied", [False, True])
def test_everything_comes_back_to_the_byte(workspace: Workspace, folder: Path, emptied: bool) -> None:
    before = contents(folder)
    times = {path: (folder / path).stat().st_mtime_ns for path in GONE}
    with workspace.acquire():
        apply_plan(workspace, plan_reclaim(workspace))
        assert contents(folder).keys() == before.keys() - set(GONE)
        if emptied:
            deleted, kept = empty_trash(workspace)
            assert [entry.path for entry in deleted] == GONE and kept == []
            assert not list((workspace.state / "trash").rglob("*.data"))
        assert [(entry.path, entry.in_trash) for entry in list_reclaimed(workspace)] == [(p, not emptied) for p in GONE]
        for path in GONE:
            restore(workspace, path)
    assert contents(folder) == before
    assert {path: (folder / path).stat().st_mtime_ns for path in GONE} == times
    assert list_reclaimed(workspace) == []


def test_a_parquet_parent_rebuilds_a_csv(tmp_path: Path) -> None:
    columns = {"n": list(range(300)), "half": [n / 2 if n % 7 else None for n in range(300)], "word": ["a, b"] * 300}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    rows = [[str(n), "" if columns["half"][n] is None else str(n / 2)] for n in range(20, 280)]
    (tmp_path / "some.csv").write_text(as_csv(["n", "half"], rows))
    before = contents(tmp_path)
    with index(tmp_path) as pipeline, pipeline.workspace.acquire():
        plan = plan_reclaim(pipeline.workspace)
        assert [(r.path, r.parent) for r in plan.removals] == [("some.csv", "all.parquet")]
        apply_plan(pipeline.workspace, plan)
        empty_trash(pipeline.workspace)
        restore(pipeline.workspace, "some.csv")
    assert contents(tmp_path) == before


def parquet_lake(root: Path) -> None:
    """A Parquet parent, and children of it: a selection, one with other rows and types, one under other names."""
    numbers = list(range(2_000))
    columns: dict[str, Any] = {
        "call": numbers,
        "vessel": [f"vessel {n * 7 % 331}" for n in numbers],
        "draught": [n * 7 % 1000 / 10 if n % 11 else None for n in numbers],
        "day": [date(2024, 1, 1) + timedelta(days=n % 366) for n in numbers],
    }
    whole = pa.table(columns)
    pq.write_table(whole, root / "all.parquet")
    some = whole.take(pa.array(numbers[1_500:100:-3]))
    pq.write_table(some, root / "some.parquet", compression="zstd", row_group_size=200)
    patched = pa.concat_tables(
        [whole.slice(100, 900), pa.table({**{k: v[:2] for k, v in columns.items()}, "vessel": ["x", "y"]})]
    )
    pq.write_table(patched, root / "patched.parquet", use_dictionary=["vessel"], data_page_version="2.0")
    renamed = some.select(["vessel", "call"]).rename_columns(["ship", "visit"])
    pq.write_table(renamed, root / "renamed.parquet", compression="none", write_statistics=False)


def test_parquet_children_come_back_to_the_byte(tmp_path: Path) -> None:
    parquet_lake(tmp_path)
    before = contents(tmp_path)
    gone = ["patched.parquet", "renamed.parquet", "some.parquet"]
    with index(tmp_path) as pipeline, pipeline.workspace.acquire():
        plan = plan_reclaim(pipeline.workspace)
        assert [(r.path, r.recipe["kind"]) for r in plan.removals] == [(path, "parquet") for path in gone]
        assert "under other column names" in plan.removals[1].why
        apply_plan(pipeline.workspace, plan)
        deleted, kept = empty_trash(pipeline.workspace)
        assert [entry.path for entry in deleted] == gone and kept == []
        assert all(restore(pipeline.workspace, path).exact for path in gone)
    assert contents(tmp_path) == before


def test_another_writer_brings_the_rows_back_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_lake(tmp_path)
    wanted = pq.read_table(tmp_path / "some.parquet")
    with index(tmp_path) as pipeline, pipeline.workspace.acquire():
        apply_plan(pipeline.workspace, plan_reclaim(pipeline.workspace, only=["some.parquet"]))
        empty_trash(pipeline.workspace)
        write = pq.write_table
        monkeypatch.setattr(pq, "write_table", lambda table, sink, **rest: write(table, sink))
        assert not restore(pipeline.workspace, "some.parquet").exact
        assert pq.read_table(tmp_path / "some.parquet").equals(wanted)
        (tmp_path / "some.parquet").unlink()


def test_a_parquet_file_of_a_strange_writer_stays(tmp_path: Path) -> None:
    parquet_lake(tmp_path)
    raw = (tmp_path / "some.parquet").read_bytes()
    assert raw.count(b"parquet-cpp-arrow") == 1
    (tmp_path / "some.parquet").write_bytes(raw.replace(b"parquet-cpp-arrow", b"parquet-xyz-other"))
    with index(tmp_path) as pipeline:
        assert "some.parquet" not in [removal.path for removal in plan_reclaim(pipeline.workspace).removals]


def test_chosen_and_pinned_files(workspace: Workspace) -> None:
    assert [r.path for r in plan_reclaim(workspace, only=["windows.csv"]).removals] == ["windows.csv"]
    assert "windows.csv" not in [r.path for r in plan_reclaim(workspace, pin=["windows.csv"]).removals]
    with pytest.raises(NotFound, match=r"nowhere\.csv"):
        plan_reclaim(workspace, only=["nowhere.csv"])


def test_what_rebuilds_others_stays_from_then_on(workspace: Workspace, folder: Path) -> None:
    with workspace.acquire():
        apply_plan(workspace, plan_reclaim(workspace, only=["old/some.csv"]))
    (folder / "bigger.csv").write_text(as_csv(NAMES, [*ROWS, ["x", "y", "z", "w"]]))
    with index(folder) as pipeline:
        assert "calls.csv" not in [removal.path for removal in plan_reclaim(pipeline.workspace).removals]
    (folder / "copy of calls.csv").unlink()
    (folder / "calls.csv").rename(folder / "renamed.csv")
    with index(folder) as pipeline:
        assert "renamed.csv" not in [removal.path for removal in plan_reclaim(pipeline.workspace).removals]


@pytest.mark.parametrize("changed", ["calls.csv", "windows.csv"])
def test_a_change_after_the_plan_moves_nothing(workspace: Workspace, folder: Path, changed: str) -> None:
    plan = plan_reclaim(workspace)
    with open(folder / changed, "a") as file:
        file.write("401,new,1.0,x\n")
    before = contents(folder)
    with workspace.acquire(), pytest.raises(StalePlan, match=changed):
        apply_plan(workspace, plan)
    assert contents(folder) == before and list_reclaimed(workspace) == []


def test_a_recipe_that_gives_other_bytes_moves_nothing(workspace: Workspace, folder: Path) -> None:
    plan = plan_reclaim(workspace)
    for removal in plan.removals:
        if removal.recipe["kind"] == "rows":
            removal.recipe["eol"] = "\r"
    before = contents(folder)
    with workspace.acquire(), pytest.raises(RecipeError, match="other bytes"):
        apply_plan(workspace, plan)
    assert contents(folder) == before


def test_a_changed_parent_keeps_the_trash(workspace: Workspace, folder: Path) -> None:
    before = contents(folder)
    with workspace.acquire():
        apply_plan(workspace, plan_reclaim(workspace))
        (folder / "calls.csv").write_text("id\n1\n")
        deleted, kept = empty_trash(workspace)
        assert deleted == [] and [path for path, _ in kept] == GONE
        assert all("calls.csv" in why for _, why in kept)
        for path in GONE:
            restore(workspace, path)
    assert {path: data for path, data in contents(folder).items() if path != "calls.csv"} == {
        path: data for path, data in before.items() if path != "calls.csv"
    }


def test_a_lost_parent_is_named_and_found_under_another_name(workspace: Workspace, folder: Path) -> None:
    before = contents(folder)
    with workspace.acquire():
        apply_plan(workspace, plan_reclaim(workspace))
        empty_trash(workspace)
        (folder / "calls.csv").rename(folder / "renamed.csv")
        with pytest.raises(RecipeError, match=r"windows\.csv needs calls\.csv.*" + digest(before["calls.csv"])[:16]):
            restore(workspace, "windows.csv")
    with index(folder) as pipeline, pipeline.workspace.acquire():
        restore(pipeline.workspace, "windows.csv")
    assert (folder / "windows.csv").read_bytes() == before["windows.csv"]


def test_nothing_is_written_over(workspace: Workspace, folder: Path) -> None:
    with workspace.acquire():
        apply_plan(workspace, plan_reclaim(workspace))
        (folder / "windows.csv").write_text("mine")
        with pytest.raises(UsageError, match="already"):
            restore(workspace, "windows.csv")
        with pytest.raises(NotFound):
            restore(workspace, "calls.csv")
    assert (folder / "windows.csv").read_text() == "mine"


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(10))
def test_a_crash_at_any_step_loses_nothing(
    workspace: Workspace, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    plan = plan_reclaim(workspace)
    shared = [step]

    def dies(action: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if shared[0] == 0:
                raise Crash
            shared[0] -= 1
            return action(*args, **options)

        return wrapped

    with monkeypatch.context() as patch, workspace.acquire():
        patch.setattr(storage, "write_manifest", dies(storage.write_manifest))
        patch.setattr(storage, "move_file", dies(storage.move_file))
        with suppress(Crash):
            apply_plan(workspace, plan)
    everything = [*contents(folder).values(), *(p.read_bytes() for p in (workspace.state / "trash").rglob("*.data"))]
    assert sorted(everything) == sorted(before.values())
    with workspace.acquire():
        finish_interrupted(workspace)
        for entry in list_reclaimed(workspace):
            restore(workspace, entry.path)
    assert contents(folder) == before


def test_a_full_disk_moves_nothing(workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)
    plan = plan_reclaim(workspace)

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(storage, "write_manifest", full)
    with workspace.acquire(), pytest.raises(StorageError):
        apply_plan(workspace, plan)
    assert contents(folder) == before


def test_two_names_of_one_file_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the same file under two names\n" * 9)
    os.link(tmp_path / "a.txt", tmp_path / "b.txt")
    with index(tmp_path) as pipeline:
        assert plan_reclaim(pipeline.workspace).removals == ()


def test_a_plan_against_itself_is_refused(workspace: Workspace) -> None:
    plan = plan_reclaim(workspace)
    recipe = {"version": 1, "kind": "copy"}
    circular = reclaim_module.Removal("calls.csv", "windows.csv", 1, 1, "", "", "csv", "", recipe)
    broken = ReclaimPlan((*plan.removals, circular), plan.retention)
    with workspace.acquire(), pytest.raises(UsageError, match="another one needs"):
        apply_plan(workspace, broken)


def table_of(text: str) -> TextTable:
    found = _delimited_table(text.encode(), "csv")
    assert found is not None
    return found


CELL = st.text(st.sampled_from('ab1 ,"\n;é'), max_size=4)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_selection_in_any_spelling_is_rebuilt(data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(CELL, CELL, st.integers(0, 9).map(str)), min_size=3, max_size=12))
    parent = table_of(as_csv(["first", "second", "third"], [list(row) for row in rows]))
    places = data.draw(st.permutations([0, 1, 2]).map(lambda order: order[:2]))
    own = st.tuples(CELL, CELL, st.integers(10, 19).map(str))
    chosen = data.draw(st.lists(st.sampled_from(rows) | own, min_size=2, max_size=20))
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    names = [["first", "second", "third"][place] for place in places]
    called = data.draw(st.sampled_from([names, ["x", "y"]]))
    text = as_csv(called, [[row[place] for place in places] for row in chosen], quoting=quoting)
    text = data.draw(st.sampled_from([text, text.replace("\n", "\r\n"), text.rstrip("\n"), text + "\n\n"]))
    child = _delimited_table(text.encode(), "csv")
    renamed = None if called == names else dict(zip(called, names, strict=True))
    recipe = None if child is None or child.delimiter != "," else rows_recipe(child, parent, renamed)
    if recipe is not None:
        assert child is not None
        assert rebuild(recipe, lambda: parent, parent.raw) == child.raw


def test_near_copies_are_found_and_go_with_their_files(tmp_path: Path) -> None:
    page = " ".join(f"word{n}" for n in range(300))
    (tmp_path / "notice.txt").write_text(page)
    (tmp_path / "notice v2.md").write_text(page + " and one line more")
    (tmp_path / "other.txt").write_text("something else altogether, and long enough to be compared with the rest of it")
    with index(tmp_path) as pipeline:
        (pair,) = near_copies(pipeline.workspace)
        assert {pair.first, pair.second} == {"notice.txt", "notice v2.md"} and pair.similarity > 0.95
        (tmp_path / "third.txt").write_text("a title " + page)
        pipeline.index(embed=False)
        assert pipeline.survey() == 1
        assert len(near_copies(pipeline.workspace)) == 3
        (tmp_path / "notice.txt").unlink()
        pipeline.index(embed=False)
        assert pipeline.survey() == 0
        assert len(near_copies(pipeline.workspace)) == 1


def test_the_survey_after_a_change_is_that_of_a_fresh_look(folder: Path) -> None:
    with index(folder) as pipeline:
        (folder / "near.csv").write_text(as_csv(NAMES, ROWS[:90]))
        (folder / "new.csv").write_text(as_csv(NAMES[:2], [row[:2] for row in ROWS[5:60]]))
        (folder / "windows.csv").unlink()
        pipeline.index(embed=False)
        with pipeline.workspace.acquire():
            assert survey(pipeline.workspace) == 2
        grown = _pairs(pipeline.workspace)
    os.rename(folder / ".windlass", folder.parent / "aside")
    with index(folder) as pipeline:
        assert _pairs(pipeline.workspace) == grown


def _pairs(workspace: Workspace) -> set[tuple[str, str, int]]:
    with workspace.reading() as connection:
        return set(
            connection.execute(
                "SELECT one.path, other.path, trivial FROM contained JOIN tables AS a ON a.id = child JOIN files AS one"
                " ON one.document_id = a.document_id JOIN tables AS b ON b.id = parent JOIN files AS other"
                " ON other.document_id = b.document_id"
            ).fetchall()
        )
