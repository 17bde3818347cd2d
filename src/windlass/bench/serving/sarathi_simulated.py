"""The simulated part of `sarathi`: how many requests a second a policy can serve within a promise.

Capacity is the highest rate of Poisson arrivals at which 99 % of the gaps between tokens stay within the promised time
and half of the requests wait at most two seconds for their first step: Mistral-7B on one A100, lengths of the Azure
conversation trace. The policies are the classes that serve real requests, in the engine that serves them; the prices
are those of `serving.cost`. `PrefillFirst` gets the best of several batch sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from windlass.bench.harness import BenchContext
from windlass.bench.report import Metric, metric
from windlass.bench.shared_data import find_shared
from windlass.core.progress import check_cancelled
from windlass.fleet.trace import read
from windlass.serving.cost import DecoderShape, IterationCost
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.scheduler import DecodeFirst, HybridFull, PrefillFirst, QueuePolicy, StallFree
from windlass.serving.simulated import ServingRun, SimBatchExecutor, VirtualClock, simulate
from windlass.sim.cost import CostModel
from windlass.sim.hardware import hardware
from windlass.sim.report import quantile
from windlass.sim.trace import RequestTrace

MISTRAL = DecoderShape(32, 4096, 32, 8, 128, 14336, 32000)
_DELAY_S = 2.0
_UNBOUNDED = EngineConfig(max_queue=1 << 30, max_queue_per_tenant=1 << 30, max_queued_tokens=1 << 40)
# Quantiles of the trace's lengths, for machines that do not have it.
_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)
_INPUTS, _OUTPUTS = (20, 1020, 2735, 4142, 6000), (5, 129, 424, 601, 1000)

Make = Callable[[IterationCost, float], QueuePolicy]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A policy under its settings; of several settings the best counts."""

    name: str
    settings: tuple[Make, ...]


CONTESTANTS = (
    Contestant("DecodeFirst", (lambda price, slo: DecodeFirst(),)),
    Contestant("HybridFull", (lambda price, slo: HybridFull(),)),
    Contestant(
        "PrefillFirst",
        (
            lambda price, slo: PrefillFirst(max_batched_tokens=1),
            lambda price, slo: PrefillFirst(max_batched_tokens=4096),
        ),
    ),
    Contestant("StallFree 512", (lambda price, slo: StallFree(512),)),
    Contestant("StallFree 2048", (lambda price, slo: StallFree(2048),)),
    Contestant("StallFree auto", (lambda price, slo: StallFree("auto", tbt_slo_s=slo, step_time=price, tile=128),)),
)


# The two that lose by far are left out of a quick run.
_QUICK = tuple(each for each in CONTESTANTS if each.name not in ("DecodeFirst", "StallFree 2048"))


def simulated_metrics(context: BenchContext) -> list[Metric]:
    """Capacities under the strict and the relaxed promise, and how our policies stand to the others."""
    price = IterationCost(CostModel(), hardware("A100"), MISTRAL)
    count, halvings = (150, 2) if context.quick else (300, 4)
    lengths, source = trace_lengths()
    trace = RequestTrace.poisson(1.0, count, lengths, context.seed)
    metrics = []
    promises = ((0.1, (2.5, 2.0, 1.1)), (0.5, (1.0, None, 0.99)))
    for slo, targets in promises[:1] if context.quick else promises:
        found = {}
        for contestant in CONTESTANTS if not context.quick else _QUICK:
            check_cancelled(context.progress)
            found[contestant.name] = max(capacity(trace, price, make, slo, halvings) for make in contestant.settings)
        metrics += _compared(found, slo, targets, f"{count} requests, {source}, price error {price.error:.0%}")
    return metrics


def capacity(trace: RequestTrace, price: IterationCost, make: Make, slo: float, halvings: int) -> float:
    """Requests a second up to which `trace`, sped up, is served within `slo`; 0 when not even 1/16 a second is."""

    gaps = int(np.maximum(trace.output_tokens - 1, 0).sum())

    def served(rate: float) -> bool:
        # Once more than one gap in a hundred is too long, the rest of the run changes nothing.
        run = serve(trace.scale_rate(rate), price, make(price, slo), give_up=(slo, gaps // 100 + 1))
        return not run.gave_up and within(run, slo)

    low, high = 0.0, 2.0
    if served(high):
        while served(high):
            low, high = high, high * 2
    else:
        while high > 1 / 16:
            high /= 2
            if served(high):
                low, high = high, high * 2
                break
        else:
            return 0.0
    for _ in range(halvings):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if served(middle) else (low, middle)
    return low


def serve(
    trace: RequestTrace, price: IterationCost, policy: QueuePolicy, give_up: tuple[float, int] | None = None
) -> ServingRun:
    """One run of the engine on a virtual clock."""
    pages = price.kv_pages(16)

    def engine(clock: VirtualClock) -> Engine:
        # Lengths are all we know of the prompts, so that none shares a prefix with another.
        kv = KVManager(PageCounts(), pages, share_prefixes=False)
        return Engine(SimBatchExecutor(price, clock), policy, kv, clock, config=_UNBOUNDED)

    return simulate(trace, engine, give_up=give_up)


def within(run: ServingRun, slo: float) -> bool:
    """Whether a run kept the promise."""
    gaps, delays = sorted(run.gaps()), sorted(run.delays())
    return (not gaps or quantile(gaps, 0.99) <= slo) and quantile(delays, 0.5) <= _DELAY_S


def trace_lengths() -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """(input tokens, output tokens) of the Azure conversation trace, or draws from its quantiles."""
    path = find_shared("serving/azure_conv_2023_part1.csv.gz")
    if path is not None:
        trace = read(path)
        return (trace.input_tokens, trace.output_tokens), "lengths of the Azure conversation trace"
    at = np.random.default_rng(0).random((2, 10_000))
    drawn = tuple(np.interp(at[i], _QUANTILES, table).astype(np.int32) for i, table in enumerate((_INPUTS, _OUTPUTS)))
    return (drawn[0], drawn[1]), "lengths drawn from quantiles of the Azure conversation trace"


def _compared(found: dict[str, float], slo: float, targets: Sequence[float | None], note: str) -> list[Metric]:
    auto, fixed = found["StallFree auto"], max(found["StallFree 512"], found.get("StallFree 2048", 0.0))
    all_of_them = ", ".join(f"{name} {rate:.2f}" for name, rate in found.items())
    best = max(auto, fixed)
    pairs = (("PrefillFirst", best), ("HybridFull", best), ("best fixed chunk", auto))
    peers = {**found, "best fixed chunk": fixed}
    return [
        metric(
            f"capacity at {slo:g} s between tokens, {'StallFree' if ours is best else 'auto'} and {name} (simulated)",
            "requests/s",
            ours,
            better="higher",
            peer=peers[name],
            peer_name=name,
            least_ratio=target,
            note=f"{note}; {all_of_them}",
        )
        for (name, ours), target in zip(pairs, targets, strict=True)
    ]
