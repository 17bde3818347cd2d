"""The tree of tenants: its laws, brute force where it looks at everything, nothing of others ever."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vectors.model import small_index
from tests.vectors.test_postings import clustered
from windlass import vectors
from windlass.core.access import Access
from windlass.core.filters import F
from windlass.vectors.errors import BadInput, CorruptSegment
from windlass.vectors.schema import Field, Schema

EVERYTHING = {"least": 10**6, "refine": 10**6, "exact_rows": 0}
NAMES = [f"t{number}" for number in range(12)]


def shared(path, rows, seed=0, **params) -> tuple[vectors.Collection, list[set[str]]]:
    """A collection with a tree, and the tenants of each row: of unlike sizes, most with rows near one another."""
    rng = np.random.default_rng(seed)
    near = rows @ rng.standard_normal((rows.shape[1], len(NAMES))).astype(np.float32)
    owned = near > np.quantile(near, np.linspace(0.4, 0.995, len(NAMES)), axis=0).diagonal()
    tenants = [{NAMES[place] for place in np.flatnonzero(mine)} for mine in owned]
    schema = Schema(dim=rows.shape[1], fields={"n": Field("int")}, tenants=True)
    made = vectors.create(path, schema, kind="tenant-tree", params=params, durability="none")
    made.add(np.arange(len(rows)), rows, {"n": list(range(len(rows)))}, tenants)
    made.optimize()
    return made, tenants


def test_looking_at_everything_is_brute_force(tmp_path):
    rows = clustered(1500, 16)
    with shared(tmp_path, rows, **small_index("tenant-tree"))[0] as made:
        made.verify(deep=True)
        for number, query in enumerate(clustered(12, 16, 3)):
            for access in (Access(tenants={NAMES[number]}), Access(tenants=NAMES[number:])):
                for text in (None, F("n") < 700):
                    asked = {"filter": text, "access": access}
                    exact = made.search(query, 15, params={"exact_rows": 10**6}, **asked)
                    found = made.search(query, 15, params=EVERYTHING, **asked)
                    assert found.ids.tolist() == exact.ids.tolist()
                    assert found.scores.tobytes() == exact.scores.tobytes()


def test_recall_with_the_usual_settings(tmp_path):
    rows, queries = clustered(6000, 16), clustered(40, 16, 5)
    with shared(tmp_path, rows)[0] as made:
        hits = total = scored = 0
        for name in NAMES[:4]:
            access = Access(tenants={name})
            exact = made.search(queries, 10, access=access, params={"exact_rows": 10**6})
            found = made.search(queries, 10, access=access, params={"exact_rows": 0})
            scored += found.counters.vectors_scored
            for one, other in zip(found.ids.tolist(), exact.ids.tolist(), strict=True):
                hits, total = hits + len(set(one) & set(other)), total + len(other)
        assert hits / total >= 0.95
        assert scored < 0.9 * 40 * sum(made.count(access=Access(tenants={name})) for name in NAMES[:4])


def leaks(made, tenants: list[set[str]], checks: int, seed: int) -> int:
    """Random changes and questions; returns how many rows were seen that may not be."""
    rng = np.random.default_rng(seed)
    looked = found_wrong = 0
    state = [set(names) for names in tenants]
    groups: dict[str, set[str]] = {}
    while looked < checks:
        kind = rng.random()
        rows = rng.integers(0, len(state), 5)
        name = str(rng.choice(NAMES))
        if kind < 0.05:
            made.grant(np.unique(rows), [name])
            for row in rows:
                state[row].add(name)
        elif kind < 0.1:
            made.revoke(np.unique(rows), [name])
            for row in rows:
                state[row].discard(name)
        elif kind < 0.12:
            groups[f"g{rng.integers(3)}"] = members = set(rng.choice(NAMES, 2).tolist())
            made.create_group(next(key for key, value in groups.items() if value is members), members)
        elif groups:
            group = str(rng.choice(list(groups)))
            made.set_principal("eve", tenants={name}, groups={group})
            may = groups[group] | {name}
            access = Access("eve") if rng.random() < 0.5 else Access(tenants=may)
            query = rng.standard_normal(made.schema.dim).astype(np.float32)
            params = {"exact_rows": int(rng.choice([0, 10**6]))}
            found = made.search(query, 200, access=access, params=params)
            ids = found.ids[0, : found.n_found[0]].tolist()
            found_wrong += sum(not (state[row] & may) for row in ids)
            assert len(ids) == min(200, sum(bool(names & may) for names in state))
            asked = rng.integers(0, len(state), 200).tolist()
            seen = made.get(list(dict.fromkeys(asked)), access=access)["id"].to_pylist()
            assert set(seen) == {row for row in asked if state[row] & may}
            looked += len(ids) + 200
    return found_wrong


def test_nothing_of_others_is_ever_seen(tmp_path):
    made, tenants = shared(tmp_path, clustered(1200, 8), **small_index("tenant-tree"))
    with made:
        assert leaks(made, tenants, 20_000, 1) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_nothing_of_others_is_seen_in_a_million_checks(tmp_path):
    made, tenants = shared(tmp_path, clustered(3000, 8), **small_index("tenant-tree"))
    with made:
        assert leaks(made, tenants, 1_000_000, 2) == 0


def test_answers_stay_the_same_byte_for_byte_while_others_change(tmp_path):
    rows = clustered(2500, 8)
    made, tenants = shared(tmp_path, rows)
    with made:
        mine, access = NAMES[1], Access(tenants={NAMES[1]})
        asked = {"k": 20, "access": access, "params": {"exact_rows": 0}}
        before = made.search(rows[:20], **asked)
        others = [row for row, names in enumerate(tenants) if mine not in names]
        made.grant(others, [NAMES[0]])
        made.revoke(others[:50], NAMES[2:])
        made.drop_tenant(NAMES[3])
        after = made.search(rows[:20], **asked)
        assert after.ids.tobytes() == before.ids.tobytes() and after.scores.tobytes() == before.scores.tobytes()
        assert after.plan == before.plan


@pytest.mark.parametrize("rows", [np.ones((300, 4), np.float32), np.ones((1, 4), np.float32)])
def test_identical_and_few_rows(tmp_path, rows):
    schema = Schema(dim=4, tenants=True)
    params = {"branching": 3, "leaf": 2}
    with vectors.create(tmp_path, schema, kind="tenant-tree", params=params, durability="none") as made:
        made.add(np.arange(len(rows)), rows, tenants=[{"a"}] * len(rows))
        made.optimize()
        found = made.search(rows[0], 400, access=Access(tenants={"a"}), params=EVERYTHING)
        assert sorted(found.ids[0, : found.n_found[0]].tolist()) == list(range(len(rows)))


def test_parameters_that_make_no_sense_are_refused(tmp_path):
    with vectors.create(tmp_path, Schema(dim=4, tenants=True), durability="none") as made:
        made.add([1], [[1, 2, 3, 4]], tenants=[{"a"}])
        for params, message in (({"beam": 3}, "no parameter 'beam'"), ({"leaf": 0}, "leaf is 0; give 1 to 100,000")):
            with pytest.raises(BadInput, match=message):
                made.optimize("tenant-tree", params=params)


def test_without_its_access_file_a_collection_does_not_open(tmp_path):
    made, _ = shared(tmp_path, clustered(50, 4))
    made.close()
    (path,) = (tmp_path / "access").iterdir()
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\0" + data[101:] if data[100] else data[:100] + b"\1" + data[101:])
    with pytest.raises(CorruptSegment, match=path.name):
        vectors.open(tmp_path)
    path.unlink()
    with pytest.raises(CorruptSegment, match="the file is missing"):
        vectors.open(tmp_path)
