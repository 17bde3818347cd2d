"""Functions over parts: the same answers wherever they run, retried once, never partial by silence."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future

import numpy as np
import pytest

from tests.vectors.test_partitioned import FIELDS, attributes
from tests.vectors.test_postings import clustered
from windlass import vectors
from windlass.bench.vectors.functions_price import simulated_price
from windlass.core.access import Access, AccessRequired
from windlass.core.errors import UsageError
from windlass.vectors.errors import CorruptSegment
from windlass.vectors.functions import CrewRunner, LaunchTree, PartCall, search_parts, serve
from windlass.vectors.schema import Schema

COUNT = 3000
EXACT = {"exact": True, "exact_rows": 0}


class Here:
    """Calls at once, in the caller's thread."""

    def __init__(self):
        self.calls: list[PartCall] = []

    def invoke(self, call):
        self.calls.append(call)
        future: Future = Future()
        try:
            future.set_result(serve(call))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def made(tmp_path):
    rows = clustered(COUNT, 16)
    schema = Schema(dim=16, fields=FIELDS, tenants=True)
    tenants = [{"even"} if number % 2 == 0 else {"odd"} for number in range(COUNT)]
    with vectors.create(tmp_path / "c", schema, durability="none") as collection:
        collection.add(np.arange(COUNT), rows, attributes(COUNT), tenants)
        collection.optimize("partitioned", params={"parts": 6})
        collection.add([COUNT, COUNT + 1], rows[:2], {"year": [2000, 2300]}, [{"even"}, {"odd"}])
        collection.delete([4, 5])
        yield collection


@pytest.mark.parametrize("text", [None, "year >= 2200", "name < 'name 020' and not seen = true", "tags contains 'b'"])
def test_functions_answer_as_the_collection_does(made, text):
    queries = clustered(9, 16, 2)
    for access in (Access(tenants={"even"}), Access(tenants={"even", "odd"}), Access(tenants={"nobody"})):
        true = made.search(queries, 12, filter=text, access=access, params={"exact_rows": 10**6})
        runner = Here()
        found = search_parts(made, queries, 12, runner=runner, filter=text, access=access, params=EXACT)
        assert found.ids.tolist() == true.ids.tolist() and found.n_found.tolist() == true.n_found.tolist()
        assert np.array_equal(found.scores, true.scores) and not found.partial
        assert found.invocations == len(runner.calls)
    with pytest.raises(AccessRequired):
        search_parts(made, queries, runner=Here())


def test_at_least_k_rows_come_with_the_parts_that_are_near(made):
    access = Access(tenants={"even", "odd"})
    for text in ("year = 2000", "year in (1999, 2001, 2450)", "year > 2600"):
        runner = Here()
        matches = made.count(text, access)
        params = {"centroid_factor": 1.0}
        found = search_parts(made, clustered(3, 16, 5), 20, runner=runner, filter=text, access=access, params=params)
        assert found.n_found.tolist() == [min(20, matches)] * 3
    assert not runner.calls and found.skipped == 3 * 6  # no year is above 2,500 in any part


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_workers_answer_the_same_and_keep_their_parts(made, kind):
    queries, access = clustered(7, 16, 3), Access(tenants={"odd"})
    here = search_parts(made, queries, 8, runner=Here(), filter="year < 2300", access=access)
    with CrewRunner(kind, 2) as runner:
        for _ in range(3):
            found = search_parts(made, queries, 8, runner=runner, filter="year < 2300", access=access)
            assert found.ids.tolist() == here.ids.tolist() and found.scores.tobytes() == here.scores.tobytes()
    assert found.opened <= 1 < found.invocations


@pytest.mark.slow
def test_ray_answers_the_same(made):
    pytest.importorskip("ray")
    queries, access = clustered(3, 16, 3), Access(tenants={"odd"})
    here = search_parts(made, queries, 8, runner=Here(), access=access)
    with CrewRunner("ray", 2) as runner:
        found = search_parts(made, queries, 8, runner=runner, access=access)
    assert found.ids.tolist() == here.ids.tolist() and found.scores.tobytes() == here.scores.tobytes()


def test_a_worker_that_is_killed_is_replaced_once(made):
    queries, access = clustered(5, 16, 3), Access(tenants={"odd"})
    here = search_parts(made, queries, 8, runner=Here(), access=access)
    with CrewRunner("processes", 1) as runner:
        search_parts(made, queries, 8, runner=runner, access=access)
        (worker,) = runner._crew._workers
        os.kill(worker.process.pid, signal.SIGKILL)
        again = search_parts(made, queries, 8, runner=runner, access=access)
    assert again.ids.tolist() == here.ids.tolist()


def test_a_part_that_cannot_be_read_is_never_left_out_silently(made):
    access, path = Access(tenants={"odd"}), made._now().parts[0].source.path("parts")
    kept = path.read_bytes()
    path.write_bytes(kept[:-1])
    asked = {"access": access, "params": EXACT}
    with CrewRunner("processes", 1) as runner:
        with pytest.raises(CorruptSegment, match=r"parts is damaged .* were written"):
            search_parts(made, clustered(2, 16), 5, runner=runner, **asked)
        found = search_parts(made, clustered(2, 16), 5, runner=runner, allow_partial=True, **asked)
        assert found.partial
        path.write_bytes(kept)
        assert not search_parts(made, clustered(2, 16), 5, runner=runner, **asked).partial


def test_a_new_segment_is_not_taken_for_the_old_one(made):
    access = Access(tenants={"even", "odd"})
    with CrewRunner("threads", 1) as runner:
        before = search_parts(made, clustered(1, 16), 5, runner=runner, access=access)
        made.delete(before.ids[0].tolist())
        made.optimize("partitioned", params={"parts": 4})
        after = search_parts(made, clustered(1, 16), 5, runner=runner, access=access)
    assert not set(after.ids[0].tolist()) & set(before.ids[0].tolist()) and after.opened >= 1


@pytest.mark.parametrize("fanout", range(1, 7))
@pytest.mark.parametrize("depth", range(1, 5))
def test_the_tree_numbers_everyone_once(fanout, depth):
    tree, seen = LaunchTree(fanout, depth), []

    def walk(number, level):
        for child in tree.children(number, level):
            seen.append(child)
            walk(child, level + 1)

    walk(-1, 0)
    assert sorted(seen) == list(range(tree.total)) and seen == sorted(seen)
    served = sorted(query for number in range(tree.total) for query in tree.share(number, 50))
    assert served == list(range(50))


def test_impossible_trees_are_refused():
    with pytest.raises(UsageError, match="fanout 0"):
        LaunchTree(0, 3)
    assert LaunchTree(4, 3).total == 84


def test_kept_parts_cost_less_in_the_simulation():
    price, seconds = simulated_price(60_000, 8, 12_000_000, 100)
    assert price.ours < price.peer and seconds.ours < seconds.peer and price.note.startswith("simulated")
