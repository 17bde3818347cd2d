"""Functional hashes: the symbolic normal form of cells, laws of the mixer, and a cache that many processes share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patterns.cells import normal_form
from windlass.core.errors import UsageError, WorkspaceError
from windlass.patterns.cell_probe import CellProbe
from windlass.patterns.equivalence_cache import EquivalenceCache
from windlass.patterns.evolution import RandomSearch, RegularizedEvolution, SearchBudget
from windlass.patterns.functional_hash import CallableProbe, EstimatorProbe, FunctionalHasher, mix
from windlass.patterns.search_space import OPERATIONS, CellSpace

SPACE = CellSpace()


def check_classes(numbers: range) -> int:
    hasher = FunctionalHasher(CellProbe(SPACE))
    pairs = {(hasher.hash(cell).primary, normal_form(SPACE, cell)) for cell in map(SPACE.cell, numbers)}
    keys, forms = {key for key, _ in pairs}, {form for _, form in pairs}
    assert len(keys) == len(forms) == len(pairs)
    return len(keys)


def test_cells_are_equal_exactly_when_their_normal_forms_are():
    assert check_classes(range(0, SPACE.size, 13)) > 600


@pytest.mark.slow
def test_the_space_has_4660_functions():
    assert check_classes(range(SPACE.size)) == 4660


def test_texts_of_cells_come_back():
    for number in range(0, SPACE.size, 37):
        cell = SPACE.cell(number)
        assert SPACE.parse(SPACE.text(cell)) == cell
    for text in ("", "|none~0|", "|magic~0|+|none~0|none~1|+|none~0|none~1|none~2|"):
        with pytest.raises(UsageError, match="no cell"):
            SPACE.parse(text)


def test_mutations_change_one_edge_and_reach_all():
    seen = set()
    for seed in range(300):
        cell = SPACE.sample(seed)
        other = SPACE.mutate(cell, seed)
        changed = [at for at in range(6) if cell[at] != other[at]]
        assert len(changed) == 1
        seen.add((changed[0], other[changed[0]]))
    assert len(seen) == 6 * len(OPERATIONS)


def test_the_mixer_bit_for_bit():
    state = int.from_bytes(sha256(b"5 2").digest()[:8], "little") % 2**63  # 3.25 = 0.8125 * 2^2
    expected = int.from_bytes(sha256(f"{state} {int(0.625 * 2**24)}".encode()).digest()[:8], "little") % 2**63
    assert mix(5, 3.25, 24) == expected
    assert mix(0, 0.0, 24) == mix(0, -0.0, 24)
    special = [mix(0, value, 24) for value in (0.0, float("nan"), float("inf"), float("-inf"), 1.0, -1.0, 2.0, 0.5)]
    assert len(set(special)) == len(special)


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 40))
def test_rounding_changes_one_of_the_two_keys_at_most(number, bits):
    near = number * (1 + 2e-15)
    same = mix(0, number, bits) == mix(0, near, bits)
    same_shifted = mix(0, number, bits, half_a_step=True) == mix(0, near, bits, half_a_step=True)
    assert same or same_shifted or abs(near) == np.inf


def test_noise_of_another_order_of_summation_keeps_a_key():
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(2000):
        numbers = rng.standard_normal(8)
        near = numbers * (1 + 1e-12 * rng.standard_normal(8))
        probe = [FunctionalHasher(CallableProbe([()])).hash(lambda values=values: values) for values in (numbers, near)]
        kept += probe[0].primary == probe[1].primary or probe[0].shifted == probe[1].shifted
    assert kept >= 1999


def test_functions_that_compute_the_same():
    arguments = [(np.array([1.0, -2, 3]), 2.0), (np.array([0.5, 0.25, -1]), -3.0)]
    hasher = FunctionalHasher(CallableProbe(arguments))
    equal = [lambda x, a: a * (x + x), lambda x, a: 2 * a * x, lambda x, a: -(-(x * a) - x * a)]
    assert len({hasher.hash(each).primary for each in equal}) == 1
    others = [lambda x, a: a * x, lambda x, a: x, lambda x, a: 1 / 0, lambda x, a: x.tolist(), lambda x, a: [x]]

    def changes_its_input(x, a):
        x[:] = 0
        return 2 * a * np.array([1.0, -2, 3])

    keys = {hasher.hash(each).primary for each in [equal[0], *others[:3], changes_its_input]}
    assert len(keys) == 5
    assert FunctionalHasher(CallableProbe(arguments), task_version="2").hash(equal[0]).primary not in keys


def test_the_hash_is_the_same_in_another_process():
    script = (
        "from windlass.patterns.functional_hash import *; from windlass.patterns.cell_probe import CellProbe; "
        "from windlass.patterns.search_space import CellSpace; s = CellSpace(); "
        "print([FunctionalHasher(CellProbe(s)).hash(s.cell(n)).primary for n in (77, 12345)])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    hasher = FunctionalHasher(CellProbe(SPACE))
    assert done.stdout.strip() == str([hasher.hash(SPACE.cell(number)).primary for number in (77, 12345)])


def test_estimators_are_hashed_by_their_predictions():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    hasher = FunctionalHasher(EstimatorProbe(X, X @ [1.0, 2, 3]))
    same = {hasher.hash(linear.LinearRegression()).primary, hasher.hash(linear.LinearRegression(copy_X=False)).primary}
    assert len(same) == 1
    assert hasher.hash(linear.Ridge(5.0)).primary not in same


def numbers_hasher() -> FunctionalHasher:
    return FunctionalHasher(IdentityProbe())


class IdentityProbe:
    def run(self, candidate, seed):
        return [float(candidate)]


def test_the_least_recently_used_go_first():
    cache = EquivalenceCache(numbers_hasher(), max_entries=3)
    for number in (1, 2, 3, 1, 4):
        cache.get_or_evaluate(number, float)
    assert len(cache) == 3
    assert [cache.get_or_evaluate(number, float).from_cache for number in (1, 3, 4, 2)] == [True, True, True, False]
    assert (cache.statistics.misses, cache.statistics.full_hits) == (5, 4)


def test_noisy_values_are_averaged_and_forgotten():
    values = iter([1.0, 2.0, 6.0, 100.0])
    cache = EquivalenceCache(numbers_hasher(), max_evaluations=3)
    got = [cache.get_or_evaluate(5, lambda _: next(values)) for _ in range(4)]
    assert [each.fitness for each in got] == [1.0, 1.5, 3.0, 3.0]
    assert [each.from_cache for each in got] == [False, False, False, True]
    assert cache.statistics.partial_hits == 2
    cache = EquivalenceCache(numbers_hasher(), forget=1.0)
    assert [cache.get_or_evaluate(5, float).from_cache for _ in range(4)] == [False, True, False, True]


def test_collisions_are_measured_and_chance_is_not_cached():
    answers = iter([1.0, 2.0, 2.0])
    cache = EquivalenceCache(numbers_hasher(), verify=1.0)
    for _ in range(2):
        cache.get_or_evaluate(5, lambda _: next(answers))
    assert (cache.statistics.verified, cache.statistics.collisions) == (1, 1)
    draws = iter(range(100))
    restless = EquivalenceCache(FunctionalHasher(CallableProbe([()])))
    for _ in range(2):
        assert not restless.get_or_evaluate(lambda: float(next(draws)), lambda _: 1.0).from_cache
    assert restless.statistics.unstable == 2 and len(restless) == 0


def test_an_evaluation_that_fails_leaves_nothing():
    cache = EquivalenceCache(numbers_hasher())
    with pytest.raises(ZeroDivisionError):
        cache.get_or_evaluate(1, lambda _: 1 / 0)
    assert cache.get_or_evaluate(1, lambda _: float("nan")).fitness == -np.inf
    assert cache.get_or_evaluate(1, float).from_cache


def _work(path: Path, log: Path, who: int) -> None:
    cache = EquivalenceCache(numbers_hasher(), path)
    order = np.random.default_rng(who).integers(0, 40, 150)

    def evaluate(number: int) -> float:
        with open(log, "a") as file:
            file.write(f"{number}\n")
        return float(number) * 2

    for number in order:
        assert cache.get_or_evaluate(int(number), evaluate).fitness == 2 * number
    cache.close()


def test_processes_evaluate_each_function_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(tmp_path / "cache", tmp_path / "log", who)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    lines = (tmp_path / "log").read_text().split()
    assert len(lines) == len(set(lines)) == 40


def _claim_and_hang(path: Path) -> None:
    cache = EquivalenceCache(numbers_hasher(), path, lease=1.0)

    def hang(_: int) -> float:
        path.with_suffix(".claimed").touch()
        time.sleep(60)
        return 0.0

    cache.get_or_evaluate(7, hang)


def test_the_claim_of_a_killed_process_runs_out(tmp_path):
    path = tmp_path / "cache"
    worker = multiprocessing.get_context("fork").Process(target=_claim_and_hang, args=(path,))
    worker.start()
    while not path.with_suffix(".claimed").exists():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    cache = EquivalenceCache(numbers_hasher(), path, lease=1.0)
    found = cache.get_or_evaluate(7, lambda number: 70.0)
    assert (found.fitness, found.from_cache, found.evaluations) == (70.0, False, 1)
    cache.close()
    assert EquivalenceCache(numbers_hasher(), path).get_or_evaluate(7, float).fitness == 70.0


def test_a_file_of_another_kind_or_format_is_refused(tmp_path):
    (tmp_path / "junk").write_bytes(b"no database" * 100)
    with pytest.raises(WorkspaceError, match="no function cache"):
        EquivalenceCache(numbers_hasher(), tmp_path / "junk")
    EquivalenceCache(numbers_hasher(), tmp_path / "newer").close()
    with sqlite3.connect(tmp_path / "newer") as db:
        db.execute("update function_cache_format set version = 9")
    with pytest.raises(WorkspaceError, match="format 9"):
        EquivalenceCache(numbers_hasher(), tmp_path / "newer")


def test_searches_count_only_what_they_evaluate():
    def fitness(cell):
        return float(sum(cell))

    cache = EquivalenceCache(FunctionalHasher(CellProbe(SPACE)))
    search = RegularizedEvolution(
        SPACE, fitness, cache=cache, population=20, tournament=5, budget=SearchBudget(evaluations=60), novelty=True
    )
    first = search.run(3)
    assert first.stopped == "evaluations" and first.history[-1].evaluations == 60 == cache.statistics.misses
    assert sum(not trial.from_cache for trial in first.history) == 60
    plain = RegularizedEvolution(SPACE, fitness, population=20, tournament=5, budget=SearchBudget(evaluations=400))
    assert plain.run(3).best.fitness == 24.0
    assert [trial.candidate for trial in plain.run(5).history] == [trial.candidate for trial in plain.run(5).history]
    assert plain.run(5, goal=10.0).stopped == "goal"
    random = RandomSearch(SPACE, fitness, budget=SearchBudget(evaluations=30)).run(1)
    assert len(random.history) == 30
    with pytest.raises(UsageError, match="tournament"):
        RegularizedEvolution(SPACE, fitness, population=2, tournament=3)
    with pytest.raises(UsageError, match="limit"):
        RegularizedEvolution(SPACE, fitness, budget=SearchBudget())
