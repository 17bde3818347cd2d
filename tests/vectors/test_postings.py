"""The index of postings: its laws, brute force where it looks at everything, recall where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors.model import small_index
from windlass import vectors
from windlass.core.errors import Cancelled
from windlass.core.progress import Silent
from windlass.kernels.kmeans import unit_rows
from windlass.kernels.postings import close_heads, near_heads, quantized
from windlass.vectors.clustering import closure_assign, group_heads, select_heads
from windlass.vectors.errors import BadInput, BudgetExceeded, CorruptSegment
from windlass.vectors.postings import PostingIndex
from windlass.vectors.results import Budget
from windlass.vectors.schema import Field, Schema

EVERYTHING = {"margin": 1e6, "max_postings": 10**6, "probed": 1.0, "exact_rows": 0}


def clustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    middles = rng.standard_normal((max(4, count // 60), dim))
    return (middles[rng.integers(0, len(middles), count)] + 0.4 * rng.standard_normal((count, dim))).astype(np.float32)


def indexed(path, rows, params=None, schema=None, attrs=None) -> vectors.Collection:
    schema = schema or Schema(dim=rows.shape[1])
    made = vectors.create(path, schema, kind="postings", params=params or {}, durability="none")
    made.add(np.arange(len(rows)), rows, attrs)
    made.optimize()
    return made


def index_of(collection) -> PostingIndex:
    found = collection.snapshot()._fixed.parts[0].index
    assert isinstance(found, PostingIndex)
    return found


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_looking_at_everything_is_brute_force(tmp_path, metric, dtype):
    rows = clustered(400, 24)
    schema = Schema(dim=24, metric=metric, dtype=dtype)
    with indexed(tmp_path, rows, {"vector_dtype": dtype}, schema) as made:
        for query in clustered(10, 24, 1):
            exact = made.search(query, 20)
            found = made.search(query, 20, params=EVERYTHING)
            assert exact.plan.startswith("exact") and found.plan.startswith("postings")
            assert found.ids.tolist() == exact.ids.tolist()
            assert found.scores.tobytes() == exact.scores.tobytes()


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 300),
    distinct=st.integers(1, 300),
    ratio=st.sampled_from([0.02, 0.2, 1.0]),
    replicas=st.integers(1, 8),
    posting_vectors=st.sampled_from([1, 5, 118]),
    seed=st.integers(0, 99),
)
def test_every_row_is_somewhere_and_never_twice_in_one_place(
    tmp_path_factory, count, distinct, ratio, replicas, posting_vectors, seed
):
    rows = clustered(min(count, distinct), 6, seed)[np.arange(count) % min(count, distinct)]
    params = {"head_ratio": ratio, "replicas": replicas, "posting_vectors": posting_vectors}
    with indexed(tmp_path_factory.mktemp("c"), rows, params) as made:
        index = index_of(made)
        index.verify()
        found = made.search(rows[0], count, params=EVERYTHING)
        assert sorted(found.ids[0].tolist()) == list(range(count))


def test_heads_are_kept_by_the_relative_neighbourhood_rule():
    rows = unit_rows(clustered(600, 12))
    heads_at = select_heads(lambda rows_: rows[rows_], 600, 60, seed=0, progress=Silent())
    assert 30 <= len(heads_at) <= 120 and len(np.unique(heads_at)) == len(heads_at)
    heads = rows[heads_at]
    centres, groups = group_heads(heads, seed=0)
    kept, distances, sizes = closure_assign(
        lambda rows_: rows[rows_], 600, heads, centres, groups,
        candidates=64, replicas=8, rng_factor=1.0, probed=10**6, progress=Silent(),
    )  # fmt: skip
    apart = ((rows[:, None].astype(np.float64) - heads[None]) ** 2).sum(2)
    between = ((heads[:, None].astype(np.float64) - heads[None]) ** 2).sum(2)
    for row in range(600):
        mine = kept[row, : sizes[row]]
        np.testing.assert_allclose(distances[row, : sizes[row]], apart[row, mine], atol=1e-5)
        assert apart[row, mine[0]] <= apart[row].min() + 1e-5
        expected: list[int] = []
        for head in np.argsort(apart[row], kind="stable")[:64]:
            if all(between[head, other] > apart[row, head] * 1.0001 for other in expected):
                expected.append(int(head))
            if len(expected) == 8:
                break
        assert mine.tolist() == expected


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 60), dim=st.integers(1, 150), metric=st.sampled_from([0, 1]), seed=st.integers(0, 999))
def test_heads_are_found_as_their_codes_say(count, dim, metric, seed):
    rng = np.random.default_rng(seed)
    heads, query = rng.standard_normal((count, dim)).astype(np.float32), rng.standard_normal(dim).astype(np.float32)
    (codes, scales), (asked, asked_scale) = quantized(heads), quantized(query[None])
    squares = np.einsum("ij,ij->i", heads, heads)
    products = (codes.astype(np.int64) @ asked[0].astype(np.int64)) * scales.astype(np.float64) * asked_scale[0]
    expected = -products if metric == 0 else squares + query @ query - 2 * products
    starts, centres = np.array([0, count // 2, count]), rng.standard_normal((2, dim)).astype(np.float32)
    out, found_heads = np.empty(7, np.float32), np.empty(7, np.int64)
    found, looked = near_heads(
        codes.view(np.uint8).reshape(-1), scales, squares, starts, centres.reshape(-1), (centres**2).sum(1), 2, query,
        metric, out, found_heads, np.arange(max(2, count)),
    )  # fmt: skip
    assert looked == count and found == min(7, count)
    np.testing.assert_allclose(out[:found], np.sort(expected)[:found], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(out[:found], expected[found_heads[:found]], rtol=1e-4, atol=1e-3)


def test_recall_is_what_was_asked_for_and_grows_with_the_margin(tmp_path):
    both = clustered(4060, 24)
    rows, queries = both[:4000], both[4000:]
    with indexed(tmp_path, rows) as made:
        exact = made.search(queries, 10, params={"exact_rows": 10**6}).ids

        def reached(**asked):
            found = made.search(queries, 10, **asked)
            return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.ids.tolist(), exact.tolist(), strict=True)])

        by_margin = [reached(params={"margin": margin, "exact_rows": 0}) for margin in (0.6, 0.9, 1.2, 2.0)]
        assert by_margin == sorted(by_margin) and by_margin[0] < by_margin[-1]
        assert reached(recall=0.9) >= 0.85 and reached(recall=0.98) >= 0.95
        cheap, dear = (made.search(queries, 10, recall=recall).counters for recall in (0.8, 0.99))
        assert cheap.vectors_scored < dear.vectors_scored < 60 * 4000
        assert cheap.stop_reason == "margin"


def test_filters_are_met_and_as_many_rows_come_as_there_are(tmp_path):
    rows = clustered(5000, 16)
    schema = Schema(dim=16, fields={"n": Field("int")})
    with indexed(tmp_path, rows, schema=schema, attrs={"n": list(range(5000))}) as made:
        for text, matches in (("n < 2500", 2500), ("n < 100", 100), ("n in (3, 4999)", 2), ("n < 0", 0)):
            found = made.search(rows[3], 20, filter=text, params={"exact_rows": 0})
            assert found.n_found[0] == min(20, matches)
            exact = made.search(rows[3], 20, filter=text, params={"exact_rows": 10**6})
            assert set(found.ids[0, : found.n_found[0]].tolist()) <= set(range(5000))
            if matches <= 100:
                assert len(set(found.ids[0].tolist()) & set(exact.ids[0].tolist())) >= 0.9 * min(20, matches)
            assert made.count(text) == matches


def test_deleted_rows_are_never_found(tmp_path):
    rows = clustered(3000, 16)
    with indexed(tmp_path, rows) as made:
        nearest = made.search(rows[0], 10).ids[0].tolist()
        made.delete(nearest)
        assert not set(made.search(rows[0], 10, params={"exact_rows": 0}).ids[0].tolist()) & set(nearest)


@pytest.mark.parametrize("rows", [np.ones((500, 8), np.float32), np.ones((1, 8), np.float32), clustered(49, 8)])
def test_identical_and_few_rows(tmp_path, rows):
    with indexed(tmp_path, rows, small_index("postings")) as made:
        found = made.search(rows[0], 600, params=EVERYTHING)
        assert sorted(found.ids[0, : found.n_found[0]].tolist()) == list(range(len(rows)))
        assert made.search(rows[0], 3).n_found[0] == min(3, len(rows))


def test_the_same_seed_builds_the_same_index(tmp_path):
    rows = clustered(800, 8)
    built = []
    for name in ("a", "b"):
        with indexed(tmp_path / name, rows) as made:
            index = index_of(made)
            built.append((index._head_rows.tobytes(), index._bytes.tobytes(), index._margins))
    assert built[0] == built[1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"heads": 3}, "no parameter 'heads'; it has candidates"),
        ({"replicas": 0}, "replicas is 0; give 1 to 64"),
        ({"head_ratio": True}, "head_ratio is True"),
        ({"vector_dtype": "f64"}, "vector_dtype is 'f64'"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(tmp_path, params, message):
    with vectors.create(tmp_path, Schema(dim=4), durability="none") as made:
        made.add([1], [[1, 2, 3, 4]])
        with pytest.raises(BadInput, match=message):
            made.optimize("postings", params=params)
        assert made.count() == 1 and made.verify(deep=True).rows == 1


def test_budgets_are_kept(tmp_path):
    with indexed(tmp_path, clustered(2000, 16)) as made:
        with pytest.raises(BudgetExceeded, match=r"building over 2,000 rows needs about .* 1,000 are allowed"):
            made.optimize(budget=Budget(ram_bytes=1000))
        assert made.count() == 2000
    with pytest.raises(BudgetExceeded, match=r"needs .* bytes of memory, 100 are allowed"):
        vectors.open(tmp_path, memory_budget=100)
    vectors.open(tmp_path, memory_budget=1 << 20).close()


def test_building_stops_when_asked(tmp_path):
    class Impatient(Silent):
        def advance(self, stage, done=1, detail=""):
            self.cancel()

    with vectors.create(tmp_path, Schema(dim=8), durability="none") as made:
        made.add(np.arange(3000), clustered(3000, 8))
        with pytest.raises(Cancelled):
            made.optimize("postings", progress=Impatient())
        assert made.count() == 3000 and made.verify(deep=True)


def test_a_damaged_posting_is_found_when_it_is_read(tmp_path):
    rows = clustered(3000, 16)
    with indexed(tmp_path, rows) as made:
        index = index_of(made)
        start = int(index._starts[5])
        path = index._file
    data = bytearray(path.read_bytes())
    data[start + 200] ^= 1
    path.write_bytes(data)
    with vectors.open(tmp_path) as reader:
        with pytest.raises(CorruptSegment, match=f"postings is damaged at byte {start}"):
            reader.search(rows, 10, params=EVERYTHING)
        with pytest.raises(CorruptSegment, match="postings is damaged"):
            reader.verify()
    path.write_bytes(data[:-4096])
    with pytest.raises(CorruptSegment, match="were written"):
        vectors.open(tmp_path)


def test_the_rule_drops_a_head_behind_another():
    """Two heads in one direction: only the nearer is kept; one in the other direction stays."""
    heads = np.array([[1, 0], [1.5, 0], [-1, 0]], np.float32)
    kept, distances, sizes = np.full((1, 3), -1, np.int32), np.empty((1, 3), np.float32), np.zeros(1, np.int64)
    squares = (heads**2).sum(1)
    point = np.array([[0.1, 0]], np.float32)
    close_heads(
        point @ heads.T, (point**2).sum(1), np.arange(3), heads.reshape(-1), squares, 2, 3, np.float32(1), kept,
        distances, sizes,
    )  # fmt: skip
    assert kept[0, : sizes[0]].tolist() == [0, 2]
