"""Fitness by what a candidate computes, shared by processes and kept on disk.

The cache of Gillard et al., "Unified Functional Hashing in Automatic Machine Learning" (2023), in SQLite. What differs:
it outlives the process; several processes may use it, and a candidate that two of them look for at once is evaluated by
one (a claim with a lease, so that a killed one blocks nobody for long); and the rate of collisions can be measured.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from windlass.core.errors import UsageError, WorkspaceError
from windlass.core.randomness import rand
from windlass.patterns.functional_hash import FunctionalHasher, FunctionKey

C = TypeVar("C")
_FORMAT = 1
_POLL = 0.01
_TABLES = f"""
create table if not exists function_cache (
    id integer primary key, main integer not null unique, shifted integer not null, count integer not null,
    mean real not null, spread real not null, seconds real not null, used integer not null,
    claimed_by text, claimed_until real
);
create index if not exists function_cache_shifted on function_cache (shifted);
create table if not exists function_cache_format (version integer not null);
insert into function_cache_format select {_FORMAT} where not exists (select * from function_cache_format);
"""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A fitness, and where it came from.

    Attributes:
        fitness: The mean of all evaluations of this function so far.
        from_cache: Whether nothing was evaluated now.
        evaluations: How many the mean is of.
        key: Of the candidate.
    """

    fitness: float
    from_cache: bool
    evaluations: int
    key: FunctionKey


@dataclass(slots=True)
class CacheStatistics:
    """What happened since the cache was opened.

    Attributes:
        misses, partial_hits, full_hits: Requests evaluated, evaluated once more, and answered.
        verified, collisions: Hits evaluated nevertheless, and how many of them had another fitness.
        unstable: Candidates whose hash differed when taken twice: evaluated, never kept.
        seconds_saved: What the hits would have cost, less the hashes.
    """

    misses: int = 0
    partial_hits: int = 0
    full_hits: int = 0
    verified: int = 0
    collisions: int = 0
    unstable: int = 0
    seconds_saved: float = 0.0


class EquivalenceCache(Generic[C]):
    """Evaluates candidates, each function once.

    Args:
        hasher: Makes the keys.
        path: A database file, made when missing; None keeps all in memory, for one process.
        max_entries: The least recently used go beyond it.
        max_evaluations: A function is evaluated so often, and the mean is used: more than 1 for noisy fitness.
        forget: Chance that a function is forgotten after a hit, so that a lucky value cannot rule for ever.
        verify: Share of the hits that are evaluated nevertheless, to measure how often different functions collide.
        lease: Seconds after which a claim counts as left by a killed process; longer than any evaluation.

    Raises:
        WorkspaceError: The file is no cache, or of a newer format.

    Example:
        >>> from windlass.patterns.functional_hash import CallableProbe
        >>> cache = EquivalenceCache(FunctionalHasher(CallableProbe([(2.0,), (3.0,)])))
        >>> cache.get_or_evaluate(lambda x: x + x, lambda candidate: 7.0).from_cache
        False
        >>> cache.get_or_evaluate(lambda x: 2 * x, lambda candidate: 8.0).fitness
        7.0
    """

    def __init__(
        self,
        hasher: FunctionalHasher[C],
        path: Path | None = None,
        *,
        max_entries: int = 100_000,
        max_evaluations: int = 1,
        forget: float = 0.0,
        verify: float = 0.0,
        lease: float = 600.0,
    ) -> None:
        if max_entries < 1 or max_evaluations < 1:
            raise UsageError("max_entries and max_evaluations must be 1 or more")
        if not (0 <= forget <= 1 and 0 <= verify <= 1):
            raise UsageError("forget and verify are chances between 0 and 1")
        self.hasher, self.path = hasher, path
        self.max_entries, self.max_evaluations, self.forget, self.verify = max_entries, max_evaluations, forget, verify
        self.lease, self.statistics = lease, CacheStatistics()
        self._who, self._requests = f"{os.getpid()}-{time.monotonic_ns()}", 0
        self._db = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None)
        try:
            if path is not None:
                self._db.execute("pragma journal_mode = wal")
            self._db.executescript(_TABLES)
            version = self._db.execute("select version from function_cache_format").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise WorkspaceError(f"{path} is no function cache: {error}", hint="move it away") from error
        if version != _FORMAT:
            raise WorkspaceError(f"{path} has format {version}, this Windlass reads {_FORMAT}", hint="move it away")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __len__(self) -> int:
        return int(self._db.execute("select count(*) from function_cache where count > 0").fetchone()[0])

    def get_or_evaluate(self, candidate: C, evaluate: Callable[[C], float]) -> Evaluated:
        """The fitness of a candidate, from the cache when its function is known.

        Args:
            evaluate: Its errors pass through, and leave nothing behind. NaN counts as minus infinity.
        """
        key = self.hasher.hash(candidate)
        self._requests += 1
        while True:
            row = self._claim_or_read(key)
            if row is None:
                return self._evaluate_new(candidate, key, evaluate)
            count, mean, seconds = row
            if count == 0:  # somebody else is at it
                time.sleep(_POLL)
                continue
            if count < self.max_evaluations:
                self.statistics.partial_hits += 1
                count, mean = self._add(key, _measured(evaluate, candidate))
                return Evaluated(mean, False, count, key)
            self.statistics.full_hits += 1
            self.statistics.seconds_saved += seconds - key.seconds
            if self.verify and rand(self.hasher.seed, "verify", self._requests) < self.verify:
                self.statistics.verified += 1
                again = _measured(evaluate, candidate)[0]
                self.statistics.collisions += not math.isclose(again, mean, rel_tol=1e-6, abs_tol=1e-9)
            if self.forget and rand(self.hasher.seed, "forget", self._requests) < self.forget:
                self._db.execute("delete from function_cache where main = ?", (self._main_of(key),))
            return Evaluated(mean, True, count, key)

    def _main_of(self, key: FunctionKey) -> int | None:
        found = self._db.execute(
            "select main from function_cache where main = ? or shifted = ? order by main <> ? limit 1",
            (key.primary, key.shifted, key.primary),
        ).fetchone()
        return None if found is None else int(found[0])

    def _claim_or_read(self, key: FunctionKey) -> tuple[int, float, float] | None:
        """(count, mean, seconds) of the function; None when it is ours to evaluate. A count of 0 is another's claim."""
        now = time.time()
        with _transaction(self._db):
            main = self._main_of(key)
            if main is None:
                self._db.execute(
                    "insert into function_cache (main, shifted, count, mean, spread, seconds, used, claimed_by, "
                    "claimed_until) values (?, ?, 0, 0, 0, 0, ?, ?, ?)",
                    (key.primary, key.shifted, time.monotonic_ns(), self._who, now + self.lease),
                )
                return None
            row = self._db.execute(
                "select count, mean, seconds, claimed_until from function_cache where main = ?", (main,)
            ).fetchone()
            if row[0] == 0 and row[3] < now:
                self._db.execute(
                    "update function_cache set claimed_by = ?, claimed_until = ? where main = ?",
                    (self._who, now + self.lease, main),
                )
                return None
            self._db.execute("update function_cache set used = ? where main = ?", (time.monotonic_ns(), main))
        return int(row[0]), float(row[1]), float(row[2])

    def _evaluate_new(self, candidate: C, key: FunctionKey, evaluate: Callable[[C], float]) -> Evaluated:
        self.statistics.misses += 1
        try:
            fitness, seconds = _measured(evaluate, candidate)
            again = self.hasher.hash(candidate)
        except BaseException:
            self._drop_claim(key)
            raise
        if (again.primary, again.shifted) != (key.primary, key.shifted):
            self.statistics.unstable += 1
            self._drop_claim(key)
            return Evaluated(fitness, False, 1, key)
        count, mean = self._add(key, (fitness, seconds))
        self._trim()
        return Evaluated(mean, False, count, key)

    def _drop_claim(self, key: FunctionKey) -> None:
        self._db.execute("delete from function_cache where main = ? and count = 0", (self._main_of(key),))

    def _add(self, key: FunctionKey, measured: tuple[float, float]) -> tuple[int, float]:
        """Take one more evaluation into the running mean; the count and mean after it."""
        fitness, seconds = measured
        with _transaction(self._db):
            main = self._main_of(key)
            row = self._db.execute("select count, mean, spread from function_cache where main = ?", (main,)).fetchone()
            count, mean, spread = (0, 0.0, 0.0) if row is None else row
            count += 1
            if math.isinf(fitness) or math.isinf(mean):
                mean = fitness if count == 1 else min(fitness, mean)
            else:
                off = fitness - mean
                mean += off / count
                spread += off * (fitness - mean)
            if row is not None:
                self._db.execute(
                    "update function_cache set count = ?, mean = ?, spread = ?, seconds = ?, claimed_by = null, "
                    "claimed_until = null where main = ?",
                    (count, mean, spread, seconds, main),
                )
        return count, mean

    def _trim(self) -> None:
        beyond = len(self) - self.max_entries
        if beyond > 0:
            self._db.execute(
                "delete from function_cache where id in "
                "(select id from function_cache where count > 0 order by used limit ?)",
                (beyond,),
            )


def _measured(evaluate: Callable[[C], float], candidate: C) -> tuple[float, float]:
    began = time.perf_counter()
    fitness = float(evaluate(candidate))
    return (-math.inf if math.isnan(fitness) else fitness), time.perf_counter() - began


class _transaction:
    """A write transaction from its first statement on, so that two processes cannot both see that nothing is there."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __enter__(self) -> None:
        self.db.execute("begin immediate")

    def __exit__(self, kind: Any, *_: object) -> None:
        self.db.execute("commit" if kind is None else "rollback")
