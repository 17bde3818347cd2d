"""Regularized evolution: the oldest dies, not the worst, so that luck does not last.

Real, Aggarwal, Huang and Le, "Regularized Evolution for Image Classifier Architecture Search" (2019). What differs:
with a cache of functions, a child that computes what is already known may be mutated again, up to three times, before
it is taken (novelty), so that late in a search evaluations go into what is new.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import bits, permutation
from windlass.patterns.equivalence_cache import EquivalenceCache
from windlass.patterns.search_space import SearchSpace

C = TypeVar("C")
_MORE_MUTATIONS = 3


@dataclass(frozen=True, slots=True)
class SearchBudget:
    """When a search ends: seconds, full evaluations, or both, whichever comes first; None is no limit."""

    seconds: float | None = None
    evaluations: int | None = None


@dataclass(frozen=True, slots=True)
class Trial(Generic[C]):
    """One candidate of a search: its fitness, whether that came from the cache, and evaluations spent so far."""

    candidate: C
    fitness: float
    from_cache: bool
    evaluations: int


@dataclass(slots=True)
class SearchResult(Generic[C]):
    """What a search found.

    Attributes:
        best: The trial of the highest fitness, the first of equal ones.
        history: All trials in order.
        stopped: Why it ended: `evaluations`, `seconds`, `candidates` or `goal`.
    """

    best: Trial[C]
    history: list[Trial[C]] = field(default_factory=list)
    stopped: str = ""


class RegularizedEvolution(Generic[C]):
    """Searches a space by tournaments in an ageing population.

    Args:
        space: Where candidates come from.
        evaluate: Their fitness; higher is better.
        cache: Answers for functions that are known; None evaluates everything.
        population: How many live at once.
        tournament: Of so many drawn from them the best has the child.
        budget: When to stop.
        novelty: Mutate a child that is known again, up to three times.

    Example:
        >>> from windlass.patterns.search_space import CellSpace
        >>> search = RegularizedEvolution(CellSpace(), lambda cell: cell.count(3), population=20, tournament=5,
        ...                               budget=SearchBudget(evaluations=300))
        >>> search.run(seed=0).best.fitness
        6.0
    """

    def __init__(
        self,
        space: SearchSpace[C],
        evaluate: Callable[[C], float],
        *,
        cache: EquivalenceCache[C] | None = None,
        population: int = 100,
        tournament: int = 10,
        budget: SearchBudget | None = None,
        novelty: bool = False,
    ) -> None:
        budget = budget or SearchBudget(evaluations=1000)
        if not 1 <= tournament <= population:
            raise UsageError(f"a tournament of {tournament} in a population of {population}")
        if budget.seconds is None and budget.evaluations is None:
            raise UsageError("a search without a limit would not end", hint="give seconds or evaluations")
        self.space, self.evaluate, self.cache, self.novelty = space, evaluate, cache, novelty
        self.population, self.tournament, self.budget = population, tournament, budget

    def run(self, seed: int = 0, *, goal: float | None = None, progress: Progress | None = None) -> SearchResult[C]:
        """Search until the budget is spent, a fitness of `goal` is reached, or all that comes is known.

        Args:
            seed: Same seed, same search.

        Raises:
            Cancelled: `progress` was cancelled.
        """
        progress, began = progress or Silent(), time.monotonic()
        alive: deque[Trial[C]] = deque()
        result: SearchResult[C] | None = None
        evaluations, step = 0, 0
        progress.start("search", self.budget.evaluations, "evaluations")
        while True:
            check_cancelled(progress)
            trial = self._try(alive, seed, step, evaluations)
            progress.advance("search", trial.evaluations - evaluations)
            evaluations, step = trial.evaluations, step + 1
            alive.append(trial)
            if len(alive) > self.population:
                alive.popleft()
            if result is None:
                result = SearchResult(trial)
            elif trial.fitness > result.best.fitness:
                result.best = trial
            result.history.append(trial)
            result.stopped = self._over(result, evaluations, step, time.monotonic() - began, goal)
            if result.stopped:
                progress.finish("search")
                return result

    def _over(self, result: SearchResult[C], evaluations: int, step: int, seconds: float, goal: float | None) -> str:
        if goal is not None and result.best.fitness >= goal:
            return "goal"
        if self.budget.evaluations is not None and evaluations >= self.budget.evaluations:
            return "evaluations"
        if self.budget.seconds is not None and seconds >= self.budget.seconds:
            return "seconds"
        # A small space is known completely at some point; then nothing is left to evaluate.
        if self.budget.evaluations is not None and step >= 100 * self.budget.evaluations:
            return "candidates"
        return ""

    def _try(self, alive: deque[Trial[C]], seed: int, step: int, evaluations: int) -> Trial[C]:
        if len(alive) < self.population:
            candidate = self.space.sample(bits(seed, "sample", step))
        else:
            drawn = permutation(seed, "tournament", step, size=len(alive))[: self.tournament]
            parent = max((alive[int(at)] for at in drawn), key=lambda trial: trial.fitness)
            candidate = self.space.mutate(parent.candidate, bits(seed, "mutate", step))
        if self.cache is None:
            return Trial(candidate, float(self.evaluate(candidate)), False, evaluations + 1)
        found = self.cache.get_or_evaluate(candidate, self.evaluate)
        for again in range(_MORE_MUTATIONS if self.novelty else 0):
            if not found.from_cache:
                break
            candidate = self.space.mutate(candidate, bits(seed, "again", step, again))
            found = self.cache.get_or_evaluate(candidate, self.evaluate)
        return Trial(candidate, found.fitness, found.from_cache, evaluations + (not found.from_cache))


class RandomSearch(Generic[C]):
    """Draws candidates independently; the baseline of every search.

    Args:
        space, evaluate, cache, budget: As of `RegularizedEvolution`; the budget counts full evaluations.
    """

    def __init__(
        self,
        space: SearchSpace[C],
        evaluate: Callable[[C], float],
        *,
        cache: EquivalenceCache[C] | None = None,
        budget: SearchBudget | None = None,
    ) -> None:
        # A population that is never full draws every candidate anew.
        self._search = RegularizedEvolution(
            space, evaluate, cache=cache, population=1 << 62, tournament=1, budget=budget
        )

    def run(self, seed: int = 0, *, goal: float | None = None, progress: Progress | None = None) -> SearchResult[C]:
        """As `RegularizedEvolution.run`."""
        return self._search.run(seed, goal=goal, progress=progress)
