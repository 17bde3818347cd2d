"""What a collection promises, and what it says when it is asked for something else."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from tests.children import Child
from windlass import vectors
from windlass.core.access import Access, AccessRequired
from windlass.core.errors import Cancelled, NotFound, UsageError
from windlass.core.filters import F, FilterTypeError, UnknownField
from windlass.core.progress import Silent
from windlass.vectors import collection as collections
from windlass.vectors.errors import (
    BadInput,
    CollectionExists,
    CollectionLocked,
    DimensionMismatch,
    DuplicateId,
    NonFiniteVector,
    Timeout,
    VectorStoreError,
    ZeroVector,
)
from windlass.vectors.results import SearchRequest
from windlass.vectors.schema import Field, Schema

SCHEMA = Schema(dim=3, fields={"year": Field("int"), "title": Field("str", nullable=False)})


def rows(count: int, dim: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


@pytest.fixture
def collection(tmp_path):
    with vectors.create(tmp_path / "c", SCHEMA) as made:
        made.add([1, 2], [[1, 0, 0], [0, 1, 0]], {"year": [2019, None], "title": ["a", "b"]})
        yield made


TITLES = {"title": ["x"]}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.add([3], [[1, np.nan, 0]], TITLES), NonFiniteVector, "vector 0 holds NaN.*nothing of this call"),
        (lambda c: c.add([3], [[1, np.inf, 0]], TITLES), NonFiniteVector, "vector 0 holds NaN, an infinity"),
        (lambda c: c.add([3], [[1e30, 0, 0]], TITLES), NonFiniteVector, "beyond 1e18"),
        (lambda c: c.add([3], [[0, 0, 0]], TITLES), ZeroVector, "vector 0 is all zeros"),
        (lambda c: c.add([3], [[1, 0]], TITLES), DimensionMismatch, r"shape \(1, 2\), the collection has dim 3"),
        (lambda c: c.add([3], [["a", 0, 1]], TITLES), BadInput, "the vectors are not numbers"),
        (lambda c: c.add([3, 4], [[1, 0, 0]], TITLES), BadInput, "2 ids for 1 vectors"),
        (lambda c: c.add([2], [[1, 0, 0]], TITLES), DuplicateId, "id 2 is there already; use on_conflict"),
        (lambda c: c.add([5, 5], rows(2), {"title": ["a", "b"]}), DuplicateId, "id 5 stands twice in one call"),
        (lambda c: c.add(["a"], [[1, 0, 0]], TITLES), BadInput, "ids of this collection are whole numbers"),
        (lambda c: c.add([1.5], [[1, 0, 0]], TITLES), BadInput, "ids of this collection are whole numbers"),
        (lambda c: c.add([3], [[1, 0, 0]]), BadInput, "field 'title' is missing; the field is not nullable"),
        (lambda c: c.add([3], [[1, 0, 0]], {"title": [None]}), BadInput, "field 'title', row 0: no value"),
        (lambda c: c.add([3], [[1, 0, 0]], {"titel": ["a"]}), UnknownField, "no field 'titel'; did you mean title"),
        (
            lambda c: c.add([3], [[1, 0, 0]], {"year": ["a"], **TITLES}),
            BadInput,
            "'year', row 0: 'a' is not of type int",
        ),
        (lambda c: c.add([3], [[1, 0, 0]], {"year": [2**63], **TITLES}), BadInput, "is not of type int"),
        (lambda c: c.add([3], [[1, 0, 0]], {"title": ["a", "b"]}), BadInput, "has 2 values for 1 rows"),
        (lambda c: c.add([3], [[1, 0, 0]], TITLES, [{"t"}]), BadInput, "this collection has no tenants"),
        (lambda c: c.add([3], [[1, 0, 0]], TITLES, on_conflict="merge"), BadInput, "on_conflict is 'merge'"),
        (lambda c: c.search([1, 0]), DimensionMismatch, r"shape \(1, 2\)"),
        (lambda c: c.search([0, 0, 0]), ZeroVector, "vector 0 is all zeros"),
        (lambda c: c.search([1, 0, 0], k=-1), BadInput, "k is -1; give 0 to 100,000"),
        (lambda c: c.search([1, 0, 0], k=True), BadInput, "k is True"),
        (lambda c: c.search([1, 0, 0], filter="year > 'abc'"), FilterTypeError, "'year' is a whole number"),
        (lambda c: c.search([1, 0, 0], filter="yaer > 1"), UnknownField, "did you mean year"),
        (lambda c: c.search([1, 0, 0], filter=3), BadInput, "a filter is a text or a Filter, not 3"),
        (lambda c: c.search([1, 0, 0], access=Access("eve")), BadInput, "this collection has no tenants"),
        (lambda c: c.search([1, 0, 0], include=["size"]), BadInput, "nothing called 'size' can be included"),
        (lambda c: c.search([[1, 0, 0]] * 3, timeout_s=-1), Timeout, "took longer than -1 s"),
        (lambda c: c.delete(), BadInput, "delete what"),
        (lambda c: c.update_attrs([9], {"year": [1]}), BadInput, "id 9 is not there; nothing was changed"),
        (lambda c: c.grant([1], ["t"]), BadInput, "this collection has no tenants"),
        (lambda c: c.optimize("tree"), BadInput, "no kind of index is called 'tree'"),
        (lambda c: vectors.create(c.path, SCHEMA), CollectionLocked, "is being written by process"),
        (lambda c: vectors.open(c.path, mode="rw"), CollectionLocked, "open it with mode='r'"),
        (lambda c: vectors.open(c.path / "x"), NotFound, "no collection in"),
        (lambda c: vectors.open(c.path, mode="w"), BadInput, "mode is 'w'"),
        (lambda c: vectors.open(c.path).delete([1]), BadInput, "is open for reading"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_stored(collection, call, error, message):
    with pytest.raises(error, match=message):
        call(collection)
    assert collection.count() == 2
    assert collection.get([1, 2])["title"].to_pylist() == ["a", "b"]
    with vectors.open(collection.path) as reader:
        assert reader.count() == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schema(dim=0), "dim is 0"),
        (lambda: Schema(dim=3, metric="hamming"), "metric is 'hamming'; choose one of cosine"),
        (lambda: Schema(dim=3, dtype="f64"), "dtype is 'f64'"),
        (lambda: Schema(dim=3, ids="uuid"), "ids is 'uuid'"),
        (lambda: Schema(dim=3, fields={"id": Field("int")}), "cannot be called 'id'"),
        (lambda: Field("text"), "no field type 'text'"),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_a_collection_is_not_made_over_another(tmp_path):
    vectors.create(tmp_path, SCHEMA).close()
    with pytest.raises(CollectionExists, match="holds a collection already") as caught:
        vectors.create(tmp_path, SCHEMA)
    assert isinstance(caught.value, FileExistsError)


def test_a_closed_collection_says_so(tmp_path):
    made = vectors.create(tmp_path, SCHEMA)
    made.close()
    made.close()
    for call in (lambda: made.search([1, 0, 0]), lambda: made.delete([1]), lambda: made.count()):
        with pytest.raises(VectorStoreError, match="is closed; open it again"):
            call()


def test_fewer_rows_than_asked_for(collection):
    found = collection.search([[1, 0, 0], [0, 1, 0]], k=5)
    assert found.ids.tolist() == [[1, 2, -1, -1, -1], [2, 1, -1, -1, -1]]
    assert found.n_found.tolist() == [2, 2] and np.isneginf(found.scores[:, 2:]).all()
    assert collection.search([1, 0, 0], k=0).ids.shape == (1, 0)
    nothing = collection.search([1, 0, 0], filter="year > 3000")
    assert nothing.n_found.tolist() == [0] and nothing.plan == "nothing passes the filter and the access"


def test_fields_of_every_type_come_back(tmp_path):
    fields = {"i": "int", "f": "float", "s": "str", "b": "bool", "t": "timestamp", "tags": "set[str]"}
    moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
    values = {"i": [-(2**63), None], "f": [0.1, None], "s": ["é'\"", None], "b": [True, None]}
    values |= {"t": [moment, None], "tags": [["b", "a"], None]}
    with vectors.create(tmp_path, Schema(dim=2, fields={k: Field(v) for k, v in fields.items()})) as made:
        made.add([1, 2], [[1, 0], [0, 1]], pa.table(values))
        for _ in range(2):
            table = made.get([2, 1]).to_pylist()
            assert table[1] == {"id": 1, "vector": [1, 0], **{k: v[0] for k, v in values.items()}, "tags": ["a", "b"]}
            assert all(table[0][name] is None for name in fields)
            made.flush()
        found = made.search([1, 0], filter=F("t") >= moment, include=("ids", "tags", "vectors"))
        assert found.rows[0]["tags"] == [["a", "b"]] and found.rows[0]["vectors"][0].tolist() == [1, 0]


def test_ties_go_to_the_lower_id_wherever_the_rows_are(tmp_path):
    with vectors.create(tmp_path, Schema(dim=2)) as made:
        made.add([9, 4, 7], [[1, 0]] * 3)
        made.flush()
        made.add([5, 2], [[1, 0]] * 2)
        assert made.search([1, 0], 4).ids.tolist() == [[2, 4, 5, 7]]
        made.optimize()
        assert made.search([1, 0], 4).ids.tolist() == [[2, 4, 5, 7]]


def test_a_batch_of_queries_equals_each_alone(tmp_path):
    with vectors.create(tmp_path, Schema(dim=16, metric="l2")) as made:
        made.add(np.arange(300), rows(300, 16))
        queries = rows(20, 16, 1)
        together = made.search(queries, 7)
        batch = made.search_batch([SearchRequest(query, 7) for query in queries])
        for number, query in enumerate(queries):
            alone = made.search(query, 7)
            assert alone.ids[0].tolist() == together.ids[number].tolist() == batch[number].ids[0].tolist()
            assert alone.scores[0].tobytes() == together.scores[number].tobytes()


def test_a_snapshot_stays(tmp_path):
    with vectors.create(tmp_path, Schema(dim=3)) as made:
        made.add([1, 2, 3], rows(3))
        old = made.snapshot()
        made.delete([1])
        made.add([2], rows(1, seed=5), on_conflict="replace")
        made.optimize()
        made.add([4], rows(1, seed=6))
        assert old.count() == 3 and made.count() == 3
        np.testing.assert_allclose(
            np.stack(old.get([2])["vector"].to_numpy(False))[0], rows(3)[1] / np.linalg.norm(rows(3)[1]), rtol=1e-5
        )
        assert old.search(rows(1)[0], 5).n_found[0] == 3


def test_a_reader_follows_its_writer(tmp_path):
    writer = vectors.create(tmp_path, Schema(dim=3, tenants=True))
    reader = vectors.open(tmp_path)
    eve = Access("eve")
    writer.set_principal("eve", tenants={"t"})
    for number in range(6):
        writer.add([number], rows(1, seed=number), tenants=[{"t"}])
        assert reader.count(access=eve) == number + 1
        if number == 2:
            writer.flush()
        if number == 4:
            writer.optimize()
            writer.close()
            writer = vectors.open(tmp_path, mode="rw")
        assert reader.search(rows(1)[0], 9, access=eve).n_found[0] == number + 1
    writer.revoke([0, 5], ["t"])
    assert reader.count(access=eve) == 4
    writer.close()


def test_another_process_is_refused_and_named(tmp_path):
    vectors.create(tmp_path, Schema(dim=3)).close()

    def hold(say):
        held = vectors.open(tmp_path, mode="rw")
        say("held")
        threading.Event().wait(30)
        held.close()

    with Child(hold) as child:
        assert child.line() == "held"
        with pytest.raises(CollectionLocked, match=f"process {child.pid} on"):
            vectors.open(tmp_path, mode="rw")
        child.kill()
    vectors.open(tmp_path, mode="rw").close()


def test_searches_see_whole_changes_while_others_write(tmp_path):
    """Each change replaces all rows; a search that saw half of one would find two years."""
    schema = Schema(dim=3, fields={"year": Field("int")})
    with vectors.create(tmp_path, schema, durability="none") as made:
        made.add(np.arange(50), rows(50), {"year": [0] * 50})
        stop, faults = threading.Event(), []

        def look():
            while not stop.is_set():
                years = made.search([1, 0, 0], 60, include=("year",)).rows[0]["year"]
                if len(years) != 50 or len(set(years)) != 1:
                    faults.append(years)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for year in range(1, 40):
            made.add(np.arange(50), rows(50, seed=year), {"year": [year] * 50}, on_conflict="replace")
            if year % 10 == 0:
                made.flush()
        made.optimize()
        stop.set()
        for thread in threads:
            thread.join()
        assert not faults


def test_many_small_segments_are_joined(tmp_path):
    with vectors.create(tmp_path, Schema(dim=3), durability="none") as made:
        for number in range(30):
            made.add([number], rows(1, seed=number))
            made.flush()
        assert made.count() == 30
        assert len(made.stats().segments) <= 9


def test_memory_is_flushed_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(collections, "FLUSH_ROWS", 50)
    with vectors.create(tmp_path, Schema(dim=3), durability="none") as made:
        for start in range(0, 200, 30):
            made.add(np.arange(start, start + 30), rows(30, seed=start))
        stats = made.stats()
        assert stats.memory_rows < 50 and stats.rows == 210 and stats.segments


def test_build_loads_past_the_log(tmp_path):
    batches = [{"ids": np.arange(at, at + 100), "vectors": rows(100, seed=at)} for at in (0, 100, 200)]
    with vectors.create(tmp_path, Schema(dim=3)) as made:
        report = made.build(batches)
        assert report.rows == made.count() == 300 and made.stats().log_bytes < 200
    with vectors.open(tmp_path) as reader:
        assert reader.count() == 300
        with pytest.raises(BadInput):
            reader.build(batches)


def test_optimize_can_be_cancelled(tmp_path):
    progress = Silent()
    progress.cancel()
    with vectors.create(tmp_path, Schema(dim=3)) as made:
        made.add(np.arange(100), rows(100))
        made.delete([3])
        with pytest.raises(Cancelled):
            made.optimize(progress=progress)
        assert made.count() == 99
        made.optimize()
        assert made.stats().dead_rows == 0 and made.count() == 99


# Tenants


@pytest.fixture
def shared(tmp_path):
    with vectors.create(tmp_path / "s", Schema(dim=3, fields={"year": Field("int")}, tenants=True)) as made:
        tenants = [{"a"}, {"a", "b"}, {"b"}, set()]
        made.add([1, 2, 3, 4], rows(4), {"year": [1, 2, 3, 4]}, tenants)
        yield made


def seen(collection, *tenants) -> list[int]:
    found = collection.search([1, 0, 0], 9, access=Access(tenants=tenants))
    return sorted(found.ids[0, : found.n_found[0]].tolist())


def test_nobody_sees_what_is_not_theirs(shared):
    assert seen(shared, "a") == [1, 2] and seen(shared, "b") == [2, 3] and seen(shared, "a", "b") == [1, 2, 3]
    assert seen(shared) == [] and seen(shared, "c") == []
    for call in (lambda: shared.search([1, 0, 0]), lambda: shared.count(), lambda: shared.get([1])):
        with pytest.raises(AccessRequired, match="say for whom you ask"):
            call()
    assert shared.get([1, 3], access=Access(tenants={"a"}))["id"].to_pylist() == [1]


def test_plans_and_counters_tell_nothing_of_others(shared):
    alone = shared.search([1, 0, 0], 9, filter="year < 3", access=Access(tenants={"a"}))
    shared.add([9], rows(1, seed=9), {"year": [1]}, [{"b"}])
    after = shared.search([1, 0, 0], 9, filter="year < 3", access=Access(tenants={"a"}))
    assert after.plan == alone.plan and after.ids.tolist() == alone.ids.tolist()
    for name in ("vectors_scored", "rows_masked", "segments"):
        assert getattr(after.counters, name) == getattr(alone.counters, name)


def test_groups_and_principals(shared):
    shared.create_group("inner", tenants={"b"})
    shared.create_group("outer", tenants={"a"}, groups={"inner"})
    shared.set_principal("eve", groups={"outer"})
    assert shared.count(access=Access("eve")) == 3
    with pytest.raises(UsageError, match="inner > outer > inner"):
        shared.create_group("inner", groups={"outer"})
    shared.drop_group("inner")
    assert shared.count(access=Access("eve")) == 2
    assert shared.count(access=Access("mallory")) == 0


def test_an_id_that_comes_back_does_not_inherit_grants(shared):
    shared.delete([1])
    shared.add([1], rows(1), tenants=[{"b"}])
    assert seen(shared, "a") == [2] and seen(shared, "b") == [1, 2, 3]
    shared.add([2], rows(1, seed=2), on_conflict="replace")
    assert seen(shared, "a") == [2]
    shared.add([2], rows(1, seed=3), tenants=[{"c"}], on_conflict="replace")
    assert seen(shared, "a") == [] and seen(shared, "c") == [2]


def test_a_dropped_tenant_is_gone_and_purge_takes_its_own_rows(shared):
    shared.drop_tenant("a")
    assert seen(shared, "a") == [] and seen(shared, "b") == [2, 3]
    shared.drop_tenant("b", purge=True)
    shared.optimize()
    assert shared.stats().rows == 2 and shared.stats().dead_rows == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.grant([1, 99], ["a"]), "id 99 is not there; nothing was changed"),
        (lambda c: c.grant([1], "a"), r"tenants is the text 'a'; write \['a'\]"),
        (lambda c: c.grant([1], [""]), "a name of 0 bytes"),
        (lambda c: c.add([8], rows(1), tenants=["ab"]), "give a set of names for each row"),
        (lambda c: c.set_principal("eve", groups={"g"}), "no group 'g'"),
    ],
)
def test_grants_that_make_no_sense_are_refused(shared, call, message):
    with pytest.raises(UsageError, match=message):
        call(shared)
    assert seen(shared, "a") == [1, 2]


def test_a_hundred_thousand_tenants(tmp_path):
    with vectors.create(tmp_path, Schema(dim=2, tenants=True), durability="none") as made:
        count = 20_000
        angles = np.linspace(0, 3, count)
        made.add(np.arange(count), np.c_[np.cos(angles), np.sin(angles)], tenants=[{f"t{n}"} for n in range(count)])
        assert made.search([1, 0], 3, access=Access(tenants={"t777"})).ids[0].tolist() == [777, -1, -1]
        assert made.stats().tenants == count
