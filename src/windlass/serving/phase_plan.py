"""When keys and values outgrow the fast memory: what moves below, and from when on some is computed again instead.

ALISA's three phases (Zhao et al., ISCA 2024) of a batch that generates together: everything in fast memory; the oldest
part below, of which each step loads what it selected; and from some length on a share of what lies below is dropped,
and computed again when it is selected. Different here: as much moves below as the memory forces and no more, which is
never worse; loading runs beside computing; every step is priced by a callable, so that the same plan serves a simulated
device and a measured one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from windlass.core.errors import UsageError

DROPPED = tuple(step / 10 for step in range(11))
"""Shares of the lower tier that are tried as dropped."""


@dataclass(frozen=True, slots=True)
class PhaseShape:
    """A batch that generates together: `sequences`, tokens of each `prompt`, tokens `made`, and bytes of keys and
    values of one token of one sequence in all layers.
    """

    sequences: int
    prompt: int
    made: int
    token_bytes: float


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What steps cost.

    Attributes:
        step: Seconds of a step of the whole batch in which each sequence reads so many tokens.
        again: Seconds to compute so many tokens of every sequence again.
        link: Bytes a second between the two memories.
    """

    step: Callable[[float], float]
    again: Callable[[float], float]
    link: float


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """When the phases begin, in tokens made.

    Attributes:
        alpha: Share of the context that lies below at the end.
        beta: Share of what lies below that is dropped and computed again.
        p1, p2: First step of the second and of the third phase; `made` when it is never reached.
        predicted_s: Seconds of all steps.
        loaded_bytes, stored_bytes: Moved up and down over all steps.
    """

    alpha: float
    beta: float
    p1: int
    p2: int
    predicted_s: float
    loaded_bytes: float
    stored_bytes: float


def plan_phases(
    shape: PhaseShape, capacity_bytes: float, ratio: float, cost: PhaseCost, *, grid: int = 17
) -> PhasePlan:
    """The cheapest plan over a grid of when to begin dropping and how much.

    Args:
        shape: The batch.
        capacity_bytes: Fast memory for keys and values.
        ratio: Share of its context that a token reads, half of it the newest; 1 reads everything.
        cost: Of steps and links.
        grid: How many beginnings of the third phase are tried.

    Raises:
        UsageError: the ratio is outside (0, 1], or not even the newest tokens fit.
    """
    if not 0 < ratio <= 1:
        raise UsageError(f"ratio is {ratio}, expected more than 0 and at most 1")
    capacity = capacity_bytes / (shape.sequences * shape.token_bytes)
    if capacity < ratio / 2 * (shape.prompt + shape.made):
        raise UsageError(
            f"fast memory holds {capacity:.0f} tokens of every sequence, the newest "
            f"{ratio / 2 * (shape.prompt + shape.made):.0f} must fit",
            hint="take fewer sequences at once",
        )
    p1 = min(shape.made, max(0, math.floor(capacity) - shape.prompt))
    steps = [_Step.at(shape, capacity, ratio, made) for made in range(shape.made)]
    best: PhasePlan | None = None
    for p2 in sorted({p1 + round((shape.made - p1) * place / (grid - 1)) for place in range(grid)}):
        for beta in DROPPED if p2 < shape.made else (0.0,):
            plan = _priced(shape, steps, p1, p2, beta, cost)
            if best is None or plan.predicted_s < best.predicted_s:
                best = plan
    assert best is not None
    return best


@dataclass(frozen=True, slots=True)
class _Step:
    """Tokens of each sequence that a step reads, needs from below, and moves down."""

    read: float
    up: float
    down: float
    below: float

    @staticmethod
    def at(shape: PhaseShape, capacity: float, ratio: float, made: int) -> _Step:
        stored = shape.prompt + made + 1
        below = max(0.0, stored - capacity)
        newest = ratio / 2 * stored if ratio < 1 else 0.0
        # What is selected among the older tokens lies below as often as they do.
        chosen = ratio * stored - newest
        up = chosen * min(1.0, below / (stored - newest))
        before = max(0.0, stored - 1 - capacity)
        return _Step(ratio * stored, up, below - before if made else below, below)


def _priced(shape: PhaseShape, steps: Sequence[_Step], p1: int, p2: int, beta: float, cost: PhaseCost) -> PhasePlan:
    seconds, loaded, stored = 0.0, 0.0, 0.0
    token = shape.sequences * shape.token_bytes
    for made, step in enumerate(steps):
        again = beta * step.up if made >= p2 else 0.0
        down = step.down * (1 - beta if made >= p2 else 1.0)
        moved = token * (step.up - again + down)
        seconds += max(cost.step(step.read), moved / cost.link) + (cost.again(again) if again else 0.0)
        loaded += token * (step.up - again)
        stored += token * down
    last = steps[-1]
    alpha = last.below / (shape.prompt + shape.made)
    return PhasePlan(alpha, beta if p2 < shape.made else 0.0, p1, p2, seconds, loaded, stored)


def static_split_seconds(shape: PhaseShape, capacity_bytes: float, cost: PhaseCost) -> float:
    """The same batch, read in full, with one share of every sequence below from the beginning (FlexGen's split)."""
    capacity = capacity_bytes / (shape.sequences * shape.token_bytes)
    longest = shape.prompt + shape.made
    below, token = max(0.0, 1 - capacity / longest), shape.sequences * shape.token_bytes
    seconds = 0.0
    for made in range(shape.made):
        stored = shape.prompt + made + 1
        seconds += max(cost.step(stored), below * stored * token / cost.link)
    return seconds


def in_rounds_seconds(shape: PhaseShape, capacity_bytes: float, price: Callable[[int], PhaseCost]) -> tuple[float, int]:
    """The same sequences, read in full, as many at a time as fit fast memory whole (vLLM's way); and how many fit.

    Args:
        price: Costs of a batch of so many sequences.
    """
    fit = min(shape.sequences, int(capacity_bytes / (shape.token_bytes * (shape.prompt + shape.made))))
    if fit == 0:
        return math.inf, 0
    seconds, left = 0.0, shape.sequences
    while left > 0:
        size = min(fit, left)
        cost = price(size)
        seconds += sum(cost.step(shape.prompt + made + 1) for made in range(shape.made))
        left -= size
    return seconds, fit
