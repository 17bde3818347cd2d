"""`sarathi`: does a long prompt stall the generations that are running?

Six generations run on the default model when a prompt of 2,500 tokens arrives (`--quick`: 256). The same engine and
model under four policies, by turns: prompts first, as vLLM; whole prompts beside generations, as Orca; chunks beside
generations with a fixed budget, and with a budget in seconds. Then 16 mixed requests at once against the continuous
batching of transformers (not `--quick`), decoding in batches against llama.cpp, what a scheduling decision costs, and
the same policies on the virtual clock (`sarathi_simulated`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from windlass.bench.harness import BenchContext
from windlass.bench.report import BenchReport, Metric, metric
from windlass.bench.serving import batching_peers
from windlass.bench.serving.llama_batches import BatchedLlamaCpp
from windlass.bench.serving.real_engine import Timeline, default_model, fresh_engine, request, run_all
from windlass.bench.serving.replayed import replay_metrics
from windlass.bench.serving.sarathi_simulated import simulated_metrics
from windlass.core.progress import check_cancelled
from windlass.models.cpu_engine import CpuEngine
from windlass.serving.batch import Batch, Sampled, Scheduler, StepResult
from windlass.serving.cost import StepFit
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.request import Sequence, State
from windlass.serving.scheduler import HybridFull, PrefillFirst, QueuePolicy, StallFree
from windlass.serving.step_time import measure

BUDGET = 64
DECODING = 6
LONG, LONG_QUICK = 2_500, 256


def run(context: BenchContext) -> BenchReport:
    decoder = default_model()
    step_time = _warm_up(decoder)
    long_prompt = LONG_QUICK if context.quick else LONG
    metrics = [
        *_stalls(context, decoder, step_time, long_prompt),
        *_batched_decoding(context, decoder),
        *_scheduling_cost(),
        *simulated_metrics(context),
    ]
    if not context.quick:
        metrics += _mixed_requests(context, decoder)
        metrics += replay_metrics(context, decoder)
    return context.report(
        mode="measured",
        workload=f"default model, {DECODING} generations, then a prompt of {long_prompt} tokens; policies by turns",
        metrics=metrics,
    )


def _warm_up(decoder: CpuEngine) -> StepFit:
    """Compile and touch everything; how long steps take here."""
    engine = fresh_engine(decoder, StallFree(BUDGET))
    engine.submit(request("warm", 100, 4))
    engine.run_until_idle()
    return measure(engine.executor, engine.kv)


@dataclass(frozen=True, slots=True)
class _Stall:
    worst: float
    typical: float
    first: float
    seconds: float
    cpu: float


def _policies(decode_step: float, step_time: StepFit) -> dict[str, Callable[[], Scheduler]]:
    # The strict objective of the paper: five times what a step takes when nothing but generations run.
    strict = 5 * decode_step
    return {
        "stall-free": lambda: StallFree(BUDGET),
        "stall-free, seconds": lambda: StallFree("auto", tbt_slo_s=strict, step_time=step_time),
        "prefill-first (vLLM)": lambda: PrefillFirst(max_batched_tokens=8192),
        "hybrid (Orca)": HybridFull,
    }


def _stalls(context: BenchContext, decoder: CpuEngine, step_time: StepFit, long_prompt: int) -> list[Metric]:
    decode_step = _one_stall(decoder, StallFree(BUDGET), 16).typical
    policies = _policies(decode_step, step_time)
    found: dict[str, list[_Stall]] = {name: [] for name in policies}
    for repeat in range(3):
        for name in policies if repeat % 2 == 0 else reversed(policies):
            check_cancelled(context.progress)
            found[name].append(_one_stall(decoder, policies[name](), long_prompt))
    middle = {
        name: _Stall(*(statistics.median(getattr(run, part) for run in runs) for part in _Stall.__slots__))
        for name, runs in found.items()
    }
    metrics = []
    for name in ("stall-free", "stall-free, seconds"):
        ours = middle[name]
        for peer, least in (("prefill-first (vLLM)", 4.0), ("hybrid (Orca)", 4.0)):
            judged = least if name == "stall-free" and not context.quick else None
            metrics.append(
                metric(
                    f"worst stall, {name}", "s", ours.worst, better="lower", peer=middle[peer].worst, peer_name=peer,
                    least_ratio=judged, note=_spread([run.worst for run in found[name]]),
                )
            )  # fmt: skip
        peer = "prefill-first (vLLM)"
        metrics += [
            metric(f"time to the end, {name}", "s", ours.seconds, better="lower", peer=middle[peer].seconds,
                   peer_name=peer, least_ratio=1 / 1.10 if name == "stall-free" and not context.quick else None),
            metric(f"time to the end, {name}, CPU", "s", ours.cpu, better="lower", peer=middle[peer].cpu,
                   peer_name=peer),
            metric(f"first token of the long prompt, {name}", "s", ours.first, better="lower",
                   peer=middle[peer].first, peer_name=peer),
        ]  # fmt: skip
    metrics.append(metric("step of six generations alone", "s", decode_step, better="lower"))
    return metrics


def _one_stall(decoder: CpuEngine, policy: Scheduler, long_prompt: int) -> _Stall:
    engine, line = fresh_engine(decoder, policy), Timeline()
    names = [f"g{number}" for number in range(DECODING)]
    made = 12 + long_prompt // BUDGET + 8
    for name in names:
        engine.submit(request(name, 24, made))
    run_all(engine, line, until=lambda: len(line.times.get(names[-1], ())) >= 8)
    arrival, cpu = time.monotonic(), time.process_time()
    engine.submit(request("long", long_prompt, 4))
    seconds = run_all(engine, line)
    gaps = line.gaps(names, arrival)
    return _Stall(
        max(gaps), statistics.median(gaps), line.times["long"][0] - arrival, seconds, time.process_time() - cpu
    )


def _mixed_requests(context: BenchContext, decoder: CpuEngine) -> list[Metric]:
    """16 prompts of different lengths at once: tokens a second and worst stall, against `generate_batch`."""
    shapes = [(16 + 37 * number % 200, 24) for number in range(16)]
    requests = [request(f"m{number}", prompt, made) for number, (prompt, made) in enumerate(shapes)]
    peer = batching_peers.ContinuousTransformers.load(context.workdir / "hugging_face")
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(3):
        check_cancelled(context.progress)
        engine, line = fresh_engine(decoder, StallFree(BUDGET)), Timeline()
        for entry in requests:
            engine.submit(entry)
        seconds = run_all(engine, line)
        ours.append((sum(made for _, made in shapes) / seconds, max(line.gaps(list(line.times)))))
        if peer is not None:
            theirs.append(peer.run(requests))
    del peer
    note = batching_peers.ContinuousTransformers.note
    name = batching_peers.ContinuousTransformers.name
    rate, stall = (statistics.median(run[part] for run in ours) for part in (0, 1))
    peer_rate, peer_stall = ((statistics.median(r[part] for r in theirs) if theirs else None) for part in (0, 1))
    return [
        metric("16 mixed requests", "tokens/s", rate, better="higher", peer=peer_rate, peer_name=name,
               least_ratio=1.2, note=note),
        metric("16 mixed requests, worst stall", "s", stall, better="lower", peer=peer_stall, peer_name=name,
               least_ratio=2.0, note=note),
    ]  # fmt: skip


def _batched_decoding(context: BenchContext, decoder: CpuEngine) -> list[Metric]:
    """Tokens a second of 8 and 32 generations at once, their prompts apart from the count."""
    prompt, steps = (4, 8) if context.quick else (32, 32)
    metrics = []
    peer = batching_peers.batched_llama_cpp()
    for size in (8, 32):
        ours, theirs = [], []
        for _ in range(1 if context.quick else 3):
            check_cancelled(context.progress)
            ours.append(_decoding_rate(decoder, size, prompt, steps))
            if peer is not None:
                theirs.append(peer.run(size, prompt, steps))
        metrics.append(
            metric(
                f"decoding, batch {size}", "tokens/s", statistics.median(ours), better="higher",
                peer=statistics.median(theirs) if theirs else None, peer_name=BatchedLlamaCpp.name,
                note=_spread(ours, "tokens/s"),
            )
        )  # fmt: skip
    if peer is not None:
        peer.close()
    return metrics


def _decoding_rate(decoder: CpuEngine, size: int, prompt: int, steps: int) -> float:
    engine, line = fresh_engine(decoder, StallFree(prompt * size)), Timeline()
    for number in range(size):
        engine.submit(request(f"d{number}", prompt, steps + 1))
    run_all(engine, line, until=lambda: len(line.times) == size)
    return size * steps / run_all(engine, line)


def _scheduling_cost() -> list[Metric]:
    """Milliseconds of a decision with 128 sequences running and 872 or 10,000 waiting."""

    def cost(waiting: int) -> float:
        policy, kv = StallFree(512), KVManager(PageCounts(), 1 << 20)
        for number in range(128 + waiting):
            policy.add(Sequence(request(f"s{number}", 8, 10_000)), 0.0)
        times = []
        for _ in range(60):
            started = time.perf_counter()
            batch = policy.next_batch(0.0, kv)
            times.append(time.perf_counter() - started)
            _pretend(policy, batch)
        return statistics.median(times[20:]) * 1e3

    few, many = cost(872), cost(10_000)
    return [
        metric("scheduling 1,000 sequences", "ms", few, better="lower", most=1.0, note="128 run, 872 wait"),
        metric("scheduling cost with 10,000 waiting", "of that with 872", many / few, better="lower", most=1.10),
    ]


def _pretend(policy: QueuePolicy, batch: Batch) -> None:
    """Do to the sequences what a step would have done."""
    names = [item.seq.id for item in batch.items if item.samples]
    for item in batch.items:
        assert item.seq.view is not None
        item.seq.view.advance(item.n_tokens)
        item.seq.computed += item.n_tokens
        if item.seq.id in names:
            item.seq.tokens.append(1)
            if item.seq.state is State.PREFILL:
                item.seq.move(State.DECODE)
    policy.on_step(batch, StepResult({name: Sampled(1) for name in names}, 0.01), 0.0)


def _spread(values: list[float], unit: str = "s") -> str:
    return f"{min(values):.3g} to {max(values):.3g} {unit} in {len(values)} runs"
