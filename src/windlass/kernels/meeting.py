"""A barrier for the threads of one compiled step.

It spins for about two microseconds, then gives the core away, then sleeps. A barrier that only spins makes a step
many times slower as soon as another process wants the core.
"""

from __future__ import annotations

from typing import Any

from windlass.kernels.compiled import called
from windlass.kernels.simd import atomic_add, atomic_load, pause, sleep_briefly, yield_core

ARRIVED, ROUND = 0, 8
"""Where in the shared int64 array the two counters lie, a cache line apart."""
SPINS, YIELDS = 150, 20


@called
def meet(state: Any, threads: int) -> None:
    """Wait until all `threads` have called this with the same `state` (int64 `[16]`, zeros at first)."""
    if threads == 1:
        return
    current = atomic_load(state, ROUND)
    if atomic_add(state, ARRIVED, 1) == threads - 1:
        atomic_add(state, ARRIVED, -threads)
        atomic_add(state, ROUND, 1)
        return
    waited = 0
    while atomic_load(state, ROUND) == current:
        waited += 1
        if waited < SPINS:
            pause()
        elif waited < SPINS + YIELDS:
            yield_core()
        else:
            sleep_briefly()
