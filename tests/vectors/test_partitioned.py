"""Parts and their codes: bounds that hold, exact answers, filters decided on cells, at least k rows."""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors.test_postings import clustered
from windlass import vectors
from windlass.core.filter_text import parse_filter
from windlass.core.filters import F
from windlass.kernels.lookup import unpack_code
from windlass.vectors.attribute_codes import FieldCells, possible, possible_in
from windlass.vectors.columns import column
from windlass.vectors.errors import BadInput, BudgetExceeded, CorruptSegment
from windlass.vectors.masks import passing
from windlass.vectors.osq import OSQ, allocated_bits
from windlass.vectors.results import Budget
from windlass.vectors.schema import Field, Schema

FIELDS = {
    "year": Field("int"),
    "price": Field("float"),
    "name": Field("str"),
    "seen": Field("bool"),
    "tags": Field("set[str]"),
}
TYPES = {name: item.type for name, item in FIELDS.items()}


def attributes(count: int, seed: int = 0) -> dict[str, list]:
    rng = np.random.default_rng(seed)

    def some(values):
        return [None if rng.random() < 0.1 else value for value in values]

    return {
        "year": some(rng.integers(1900, 2500, count).tolist()),
        "price": some(rng.lognormal(0, 1, count).tolist()),
        "name": some([f"name {number:03d}" for number in rng.integers(0, 400, count)]),
        "seen": some((rng.random(count) < 0.5).tolist()),
        "tags": some([[tag] for tag in rng.choice(["a", "b", "c"], count)]),
    }


def made_of(path, rows, *, attrs=None, **params) -> vectors.Collection:
    fields = {} if attrs is None else FIELDS
    made = vectors.create(path, Schema(dim=rows.shape[1], fields=fields), durability="none")
    made.add(np.arange(len(rows)), rows, attrs)
    made.optimize("partitioned", params=params)
    return made


def index_of(made):
    return made._now().parts[0].index


# Codes of a few bits


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(0, 8), st.booleans())
def test_no_row_is_nearer_or_farther_than_its_code_says(seed, dim, bits, product):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((200, dim)).astype(np.float32) * rng.uniform(0, 3, dim).astype(np.float32)
    points[:, 0] = 1
    codes = OSQ.fit(points[:120], bits * dim)
    packed = codes.encode(points)
    query, every = rng.standard_normal(dim).astype(np.float32), np.arange(200)
    low, high = (codes.sums(query, packed, every, bound, product=product) for bound in ("lower", "upper"))
    if product:
        true = -(points - codes.mean) @ query
    else:
        true = ((points - query) ** 2).sum(axis=1)
    slack = 1e-4 * (1 + np.abs(true))
    assert (low <= true + slack).all() and (true <= high + slack).all()
    assert packed.shape == (200, codes.row_bytes)


def test_more_bits_stand_nearer_to_the_row():
    points = clustered(2000, 16)
    errors = []
    for bits in (1, 2, 4, 8):
        codes = OSQ.fit(points, bits * 16)
        errors.append(float(((codes.decode(codes.encode(points)) - points) ** 2).sum(axis=1).mean()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-2 * errors[0]


def test_codes_are_the_cells_of_the_rows():
    points = clustered(300, 5)
    codes = OSQ.fit(points, 17)
    assert codes.widths.sum() == 17
    packed = np.ascontiguousarray(codes.encode(points)[:, :-1].T)
    turned = (points - codes.mean) @ codes.basis
    firsts = np.cumsum(1 << codes.widths) - (1 << codes.widths)
    for dim in range(5):
        cell = firsts[dim] + unpack_code(packed, codes.widths, dim)
        assert (codes.lows[cell] <= turned[:, dim]).all() and (turned[:, dim] <= codes.highs[cell]).all()


def test_bits_go_where_the_variance_is():
    assert allocated_bits(np.array([4.0**8, 1, 0]), 8).tolist() == [8, 0, 0]
    assert allocated_bits(np.array([1.0, 1, 1]), 100).tolist() == [8, 8, 8]
    assert allocated_bits(np.zeros(3), 6).tolist() == [0, 0, 0]


# Filters on cells

FILTERS = (
    "year >= 2100 and price < 1.0",
    "not (year in (1950, 1951, 2200)) or name = 'name 007'",
    "name starts with 'name 1' and not seen = true",
    "price is null or (year < 1950 and name >= 'name 300')",
    "tags contains 'a' and year > 2400",
    "not (price <= 0.5 or year != 2000)",
    "year < 0",
    "year = 2000.5 or seen is null",
)


@pytest.mark.parametrize("cells", [2, 7, 255])
@pytest.mark.parametrize("text", FILTERS)
def test_a_filter_on_cells_is_the_filter(text, cells):
    count = 3000
    listed = attributes(count)
    columns = {name: column(name, item.type, listed[name]) for name, item in FIELDS.items()}
    bound = parse_filter(text).bind(TYPES)
    made = {name: found for name, one in columns.items() if (found := FieldCells.of(one, cells)) is not None}
    kinds = {name: one[0] for name, one in made.items()}
    found = possible(bound, kinds, {name: one[1] for name, one in made.items()}, count)
    true = passing(bound, columns)
    assert (found[true] & 1).all() and not (true & (found & 1 == 0)).any()
    assert true[found == 1].all()
    if cells == 255 and "tags" not in text:
        assert ((found & 1) > 0).sum() <= true.sum() + 0.05 * count  # most are decided without values
    query = f"select id from listed where {bound.to_sql()} order by id"
    with duckdb.connect() as connection:
        connection.register("listed", pa.table({"id": list(range(count)), **listed}))
        assert [row[0] for row in connection.execute(query).fetchall()] == np.flatnonzero(true).tolist()


def test_cells_survive_packing_and_parts_without_matches_are_known():
    from windlass.vectors.packing import pack, unpack

    for values, kind in (([*range(100), None], "int"), (["b", "a", None], "str"), ([], "float")):
        cells, codes = FieldCells.of(column("x", kind, values), 16)
        again = FieldCells.restored(unpack(pack(cells.arrays())))
        for text in ("x is null", "x in (3, 4)" if kind != "str" else "x = 'a'"):
            bound = parse_filter(text).bind({"x": kind})
            assert again.outcomes(bound).tolist() == cells.outcomes(bound).tolist()
        present = np.zeros(256, np.bool_)
        present[codes] = True
        assert possible_in(parse_filter("x is null").bind({"x": kind}), {"x": cells}, {"x": present}) == (
            None in values
        )
        assert possible_in(parse_filter("y = 1").bind({"y": "int"}), {"x": cells}, {"x": present})


# The index


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_exact_is_brute_force(tmp_path, metric, dtype):
    rows = clustered(700, 12) * np.linspace(0.5, 2, 700, dtype=np.float32)[:, None]
    with vectors.create(tmp_path, Schema(dim=12, metric=metric, dtype=dtype), durability="none") as made:
        made.add(np.arange(700), rows)
        made.optimize("partitioned", params={"parts": 5})
        made.verify(deep=True)
        for query in clustered(10, 12, 4):
            true = made.search(query, 15, params={"exact_rows": 10**6})
            found = made.search(query, 15, params={"exact_rows": 0, "exact": True})
            assert found.ids.tolist() == true.ids.tolist() and found.scores.tobytes() == true.scores.tobytes()
        if metric != "ip":
            assert found.counters.vectors_scored < 700


def test_parts_are_nearly_equal(tmp_path):
    with made_of(tmp_path, clustered(3000, 8), parts=7) as made:
        sizes = np.diff(index_of(made).starts)
        assert len(sizes) == 7 and sizes.min() >= 0.89 * 3000 / 7 and sizes.max() <= 1.11 * 3000 / 7


def test_recall_under_filters_with_one_setting(tmp_path):
    both, count = clustered(8060, 32), 8000
    rows, queries = both[:count], both[count:]
    listed = attributes(count)
    anchor = rows @ rows[17]
    listed["price"] = anchor.tolist()  # correlated with the vectors
    with made_of(tmp_path, rows, attrs=listed, parts=10) as made:
        near = float(np.quantile(anchor, 0.92))
        for text in (None, "year >= 2200", "year < 2000", f"price >= {near}", "name < 'name 030' and seen = true"):
            found = made.search(queries, 10, filter=text, params={"exact_rows": 0})
            true = made.search(queries, 10, filter=text, params={"exact_rows": 10**6})
            pairs = zip(found.ids.tolist(), true.ids.tolist(), strict=True)
            assert np.mean([len(set(one) & set(other)) / 10 for one, other in pairs]) >= 0.93, text
        assert found.counters.codes_scored > 0


def test_as_many_rows_come_as_match(tmp_path):
    rows = clustered(2000, 8)
    with made_of(tmp_path, rows, attrs=attributes(2000), parts=12) as made:
        for text in ("year = 2000", "year >= 2490", "year > 2500", "name = 'name 001' or name = 'name 399'"):
            matches = made.count(text)
            found = made.search(rows[0], 25, filter=text, params={"exact_rows": 0, "centroid_factor": 1.0})
            assert found.n_found[0] == min(25, matches)
            kept = made.get(found.ids[0, : found.n_found[0]])
            assert made.search(rows[0], 5, filter=F("id").isin(kept["id"].to_pylist())).n_found[0] == min(5, matches)


@pytest.mark.parametrize("rows", [np.ones((300, 4), np.float32), np.ones((1, 4), np.float32), clustered(6, 4)])
def test_identical_and_few_rows(tmp_path, rows):
    with made_of(tmp_path, rows) as made:
        found = made.search(rows[0], 400, params={"exact_rows": 0})
        assert sorted(found.ids[0, : found.n_found[0]].tolist()) == list(range(len(rows)))


def test_what_makes_no_sense_is_refused(tmp_path):
    with made_of(tmp_path, clustered(100, 4)) as made:
        for params, message in (
            ({"bits": 3}, "no parameter 'bits'"),
            ({"k_factor": 0}, "k_factor is 0"),
            ({"parts": -1}, "parts is -1"),
        ):
            with pytest.raises(BadInput, match=message):
                made.optimize("partitioned", params=params)
        with pytest.raises(BudgetExceeded, match="building over 100 rows needs"):
            made.optimize("partitioned", budget=Budget(ram_bytes=100))
    with pytest.raises(BudgetExceeded, match=r"need .* bytes of memory, 10 are allowed"):
        vectors.open(tmp_path, memory_budget=10)


def test_damage_is_named(tmp_path):
    with made_of(tmp_path, clustered(500, 8)) as made:
        path = made._now().parts[0].source.path("parts")
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)
    with vectors.open(tmp_path) as reader, pytest.raises(CorruptSegment, match="parts is damaged at byte 0"):
        reader.search(clustered(1, 8), 5, params={"exact_rows": 0, "exact": True})
    path.unlink()
    with pytest.raises(CorruptSegment, match="parts is damaged at byte 0: the file is missing"):
        vectors.open(tmp_path)
