"""Random operations on a collection and on a dict, which must stay the same; used for every kind of index."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from windlass import vectors
from windlass.core.access import Access
from windlass.core.filter_text import parse_filter
from windlass.vectors.schema import Field, Schema

FIELDS = {"year": Field("int"), "name": Field("str"), "tags": Field("set[str]"), "weight": Field("float")}
FILTERS = ("year >= 3", "name = 'b' or tags contains 'x'", "not (weight < 0.5)", "name is null and year in (1, 2)")
TENANTS = ("a", "b", "c")


@dataclass
class Row:
    vector: np.ndarray
    attrs: dict[str, Any]
    tenants: set[str] = field(default_factory=set)


class Model:
    """A collection beside what it should hold.

    Args:
        schema: Of the collection.
        kind: Of index, made by `optimize`.
        exact: Whether searches must equal brute force; else only the rows that may be found are checked.
    """

    def __init__(
        self, path: Path, schema: Schema, *, kind: str, seed: int, params: dict[str, Any] | None = None
    ) -> None:
        self.path, self.schema, self.kind = path, schema, kind
        self.params = params or {}
        self.rng = np.random.default_rng(seed)
        self.rows: dict[Any, Row] = {}
        self.collection = vectors.create(path, schema, kind=kind, params=self.params, durability="none")

    def step(self) -> None:
        names = ["add", "add", "replace", "skip", "delete", "delete_filter", "update", "flush", "optimize", "reopen"]
        if self.schema.tenants:
            names += ["grant", "revoke", "drop", "grant"]
        getattr(self, f"_{self.rng.choice(names)}")()

    def check(self) -> None:
        """Counts, contents, filters and searches of both."""
        access = [None]
        if self.schema.tenants:
            access = [Access(tenants=names) for names in ({"a"}, {"b", "c"}, {"nobody"}, set())]
        for one in access:
            seen = {key: row for key, row in self.rows.items() if one is None or row.tenants & set(one.tenants)}
            assert self.collection.count(access=one) == len(seen)
            for text in (None, self.rng.choice(FILTERS)):
                self._check_search(seen, text, one)
            table = self.collection.get(sorted(self.rows), access=one).to_pydict()
            assert table["id"] == [key for key in sorted(self.rows) if key in seen]
            for place, key in enumerate(table["id"]):
                assert {name: table[name][place] for name in FIELDS} == seen[key].attrs
                np.testing.assert_allclose(table["vector"][place], self._stored(seen[key].vector), rtol=1e-6)

    def _check_search(self, seen: dict[Any, Row], text: str | None, access: Access | None) -> None:
        wanted = None if text is None else parse_filter(text)
        chosen = {k: row for k, row in seen.items() if wanted is None or wanted.matches({**row.attrs, "id": k})}
        assert self.collection.count(text, access) == len(chosen)
        query, k = self._vectors(1)[0], int(self.rng.integers(0, 6))
        asked = {"params": {**self.search_params(), "exact_rows": 0}, "filter": text, "access": access}
        found = self.collection.search(query, k, **asked)
        keys = found.ids[0, : found.n_found[0]].tolist()
        assert set(keys) <= set(chosen) and len(set(keys)) == len(keys) == min(k, len(chosen))
        stored = {key: self._stored(row.vector) for key, row in chosen.items()}
        query = self.schema.checked(query[None])[0].astype(np.float64)
        scores = {key: self._score(query, vector) for key, vector in stored.items()}
        np.testing.assert_allclose(found.scores[0, : len(keys)], [scores[key] for key in keys], atol=1e-4, rtol=1e-4)
        best = sorted(scores.values(), reverse=True)[: len(keys)]
        np.testing.assert_allclose(found.scores[0, : len(keys)], best, atol=1e-4, rtol=1e-4)

    def search_params(self) -> dict[str, Any]:
        """Under which a search must find the true nearest rows."""
        everything = {"postings": {"margin": 1e6, "max_postings": 1_000_000, "probed": 1.0}}
        everything["tenant-tree"] = {"least": 1_000_000, "refine": 1_000_000}
        everything["partitioned"] = {"exact": True}
        return everything.get(self.kind, {})

    def _score(self, query: np.ndarray, vector: np.ndarray) -> float:
        if self.schema.metric == "l2":
            return -float(((query - vector) ** 2).sum())
        return float(query @ vector)

    def _stored(self, vector: np.ndarray) -> np.ndarray:
        """The numbers that the collection keeps of it."""
        return self.schema.decode(*self.schema.encode(self.schema.checked(vector[None])))[0].astype(np.float64)

    def _vectors(self, count: int) -> np.ndarray:
        return self.rng.standard_normal((count, self.schema.dim)).astype(np.float32)

    def _key(self, number: int) -> Any:
        return number if self.schema.ids == "int" else f"id-{number}"

    def _new_rows(self, keys: list[Any]) -> dict[Any, Row]:
        rng, found = self.rng, {}
        for key, vector in zip(keys, self._vectors(len(keys)), strict=True):
            attrs = {
                "year": None if rng.random() < 0.2 else int(rng.integers(0, 6)),
                "name": None if rng.random() < 0.2 else str(rng.choice(["a", "b", "c"])),
                "tags": None if rng.random() < 0.2 else sorted({"x", "y", "z"} & set(rng.choice(list("xyzw"), 2))),
                "weight": None if rng.random() < 0.2 else float(rng.random()),
            }
            tenants = {name for name in TENANTS if rng.random() < 0.4} if self.schema.tenants else set()
            found[key] = Row(vector, attrs, tenants)
        return found

    def _put(self, rows: dict[Any, Row], on_conflict: str) -> None:
        attrs = {name: [row.attrs[name] for row in rows.values()] for name in FIELDS}
        tenants = [row.tenants for row in rows.values()] if self.schema.tenants else None
        matrix = np.stack([row.vector for row in rows.values()])
        self.collection.add(list(rows), matrix, attrs, tenants, on_conflict=on_conflict)

    def _add(self) -> None:
        unused = [key for key in map(self._key, range(60)) if key not in self.rows]
        if unused:
            chosen = self.rng.permutation(len(unused))[: self.rng.integers(1, 12)]
            rows = self._new_rows([unused[place] for place in chosen])
            self._put(rows, "error")
            self.rows |= rows

    def _some(self) -> list[Any]:
        known = list(self.rows)
        return [known[place] for place in self.rng.permutation(len(known))[: self.rng.integers(1, 8)]]

    def _replace(self) -> None:
        rows = self._new_rows(list(dict.fromkeys([*self._some(), self._key(int(self.rng.integers(60)))])))
        self._put(rows, "replace")
        self.rows |= rows

    def _skip(self) -> None:
        rows = self._new_rows(list(dict.fromkeys([*self._some(), self._key(int(self.rng.integers(60)))])))
        self._put(rows, "skip")
        self.rows = rows | self.rows

    def _delete(self) -> None:
        gone = self._some()
        assert self.collection.delete([*gone, self._key(999)]) == len(gone)
        for key in gone:
            del self.rows[key]

    def _delete_filter(self) -> None:
        text = "weight > 0.8"
        gone = [key for key, row in self.rows.items() if parse_filter(text).matches(row.attrs)]
        assert self.collection.delete(filter=text) == len(gone)
        for key in gone:
            del self.rows[key]

    def _update(self) -> None:
        keys = self._some()
        if keys:
            years = [int(year) for year in self.rng.integers(0, 6, len(keys))]
            self.collection.update_attrs(keys, {"year": years})
            for key, year in zip(keys, years, strict=True):
                self.rows[key].attrs["year"] = year

    def _flush(self) -> None:
        self.collection.flush()

    def _optimize(self) -> None:
        self.collection.optimize()
        if self.rows:
            assert [segment["kind"] for segment in self.collection.stats().segments] == [self.kind]

    def _reopen(self) -> None:
        self.collection.close()
        self.collection = vectors.open(self.path, mode="rw", durability="none")

    def _grant(self) -> None:
        keys, tenant = self._some(), str(self.rng.choice(TENANTS))
        self.collection.grant(keys, [tenant])
        for key in keys:
            self.rows[key].tenants.add(tenant)

    def _revoke(self) -> None:
        keys, tenant = self._some(), str(self.rng.choice(TENANTS))
        self.collection.revoke(keys, [tenant])
        for key in keys:
            self.rows[key].tenants.discard(tenant)

    def _drop(self) -> None:
        tenant, purge = str(self.rng.choice(TENANTS)), bool(self.rng.random() < 0.3)
        self.collection.drop_tenant(tenant, purge=purge)
        if purge:
            self.rows = {key: row for key, row in self.rows.items() if row.tenants != {tenant}}
        for row in self.rows.values():
            row.tenants.discard(tenant)


def small_index(kind: str, dtype: str = "f32") -> dict[str, Any]:
    """Parameters under which an index over a few dozen rows has several of everything, and scores are exact."""
    small = {"postings": {"head_ratio": 0.2, "posting_vectors": 4, "vector_dtype": dtype}}
    small["tenant-tree"] = {"branching": 3, "leaf": 4, "shortlist": 3}
    small["partitioned"] = {"parts": 3, "bits_per_dim": 2.0}
    return small.get(kind, {})


def run_sequence(
    path: Path, kind: str, seed: int, params: dict[str, Any] | None = None, *, tenants: bool | None = None
) -> None:
    """One sequence of operations on a schema drawn from `seed`."""
    rng = np.random.default_rng([seed, 7])
    schema = Schema(
        dim=int(rng.integers(1, 12)),
        metric=str(rng.choice(["cosine", "ip", "l2"])),  # type: ignore[arg-type]
        dtype=str(rng.choice(["f32", "f16", "i8"])),  # type: ignore[arg-type]
        fields=FIELDS,
        tenants=bool(rng.random() < 0.5) if tenants is None else tenants,
        ids=str(rng.choice(["int", "str"])),  # type: ignore[arg-type]
    )
    model = Model(path, schema, kind=kind, seed=seed, params=params or small_index(kind, schema.dtype))
    for _ in range(int(rng.integers(4, 18))):
        model.step()
        model.check()
    model.collection.verify(deep=True)
    model.collection.close()
