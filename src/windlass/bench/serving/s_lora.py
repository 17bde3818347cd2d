"""`s-lora`: many adapters of mixed ranks on one model, against switching between them.

Requests of equal length name adapters of ranks 4, 8, 16 and 32 by Zipf's law. On the default model, by turns: our
engine with 1, 16, 64 and 128 adapters registered; one adapter at a time, as engines that cannot mix them; adapters
padded to the highest rank; peft switching for each request, and peft with one adapter a row. Then the adapters' share
of a decoding step, and what planning costs while 400 adapters are asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from windlass.bench.harness import BenchContext, Timing, take_turns
from windlass.bench.report import BenchReport, Metric, metric
from windlass.bench.serving.adapter_work import RANKS, write_adapters, zipf_choices
from windlass.bench.serving.peft_peer import PeftModel
from windlass.bench.serving.real_engine import default_model
from windlass.core.program import WallClock
from windlass.models.cpu_engine import CpuEngine
from windlass.serving.adapter_pages import AdapterPages
from windlass.serving.adapter_policies import AdapterClustered
from windlass.serving.adapters import AdapterStore, EngineAdapters
from windlass.serving.batch import Scheduler
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import Request, SamplingParams, Sequence, tokens_of
from windlass.serving.scheduler import StallFree

BUDGET = 64
_CONFIG = EngineConfig(max_queue=4096, max_queue_per_tenant=4096)


@dataclass(frozen=True, slots=True)
class _Size:
    requests: int
    prompt: int
    made: int
    adapters: tuple[int, ...]
    pages: int


FULL = _Size(24, 64, 16, (1, 16, 64, 128), 900)
QUICK = _Size(8, 32, 8, (1, 64, 128), 420)


class _Served:
    """Our engine with some adapters registered, its memory empty before each run."""

    def __init__(self, model: CpuEngine, folders: list[Path], pages: int) -> None:
        self.model, self.pages = model, pages
        self.pool = model.new_pool(pages=pages)
        self.pool.data.fill(0)
        self.store = AdapterStore(model.config, self.pool.data.shape[1], pages)
        self.keys = [self.store.register(folder.name, folder).key for folder in folders]

    def run(self, prompts: list[np.ndarray], chosen: list[int], made: int, policy: Scheduler | None = None) -> Engine:
        """All requests at once, to the end."""
        adapters = EngineAdapters(self.store, self.pool)
        kv = KVManager(self.pool, self.pages, page_tokens=self.pool.page_tokens, adapters=adapters.pages)
        executor = NumbaExecutor(self.model, self.pool, adapters=adapters)
        engine = Engine(
            executor, policy or StallFree(BUDGET), kv, WallClock(), config=_CONFIG, adapters=adapters
        )  # fmt: skip
        params = SamplingParams(max_tokens=made, ignore_eos=True)
        self.handles = [
            engine.submit(Request(str(number), tokens_of(prompt.tolist()), params, adapter=self.keys[adapter]))
            for number, (prompt, adapter) in enumerate(zip(prompts, chosen, strict=True))
        ]
        engine.run_until_idle()
        kv.clear()
        return engine

    def answers(self) -> list[list[int]]:
        return [handle.sequences[0].tokens[handle.sequences[0].prompt_length :] for handle in self.handles]


def run(context: BenchContext) -> BenchReport:
    size = QUICK if context.quick else FULL
    model = default_model()
    most = max(size.adapters)
    folders = write_adapters(context.workdir / "adapters", model.config, range(most), seed=context.seed)
    rng = np.random.default_rng(context.seed)
    prompts = [rng.integers(100, 40_000, size.prompt) for _ in range(size.requests)]
    metrics = [
        *_against_peers(context, model, folders, prompts, size),
        *_kernel_share(model, folders, size),
    ]
    return context.report(
        mode="measured",
        workload=f"default model, {size.requests} requests of {size.prompt} tokens making {size.made}, adapters of "
        "ranks 4, 8, 16, 32 on q, k, v, o by Zipf's law",
        metrics=metrics,
    )


def _against_peers(
    context: BenchContext, model: CpuEngine, folders: list[Path], prompts: list[np.ndarray], size: _Size
) -> list[Metric]:
    compared = 64
    chosen = {count: zipf_choices(count, size.requests, context.seed) for count in size.adapters}
    names = [folders[adapter].name for adapter in chosen[compared]]
    # A full run loads all 64; fewer make no difference to peft but the time to load them.
    wanted = sorted(set(chosen[compared])) if context.quick else range(compared)
    peft = PeftModel.load(context.workdir / "hf", [(folders[one].name, folders[one]) for one in wanted])
    ours = {count: _Served(model, folders[:count], size.pages) for count in size.adapters}
    used = sorted(set(chosen[compared]))
    wide = write_adapters(context.workdir / "padded", model.config, used, seed=context.seed, padded_to=max(RANKS))
    padded, places = _Served(model, wide, size.pages), [used.index(adapter) for adapter in chosen[compared]]
    sides: dict[str, Callable[[], object]] = {
        f"{count} adapters": partial(ours[count].run, prompts, chosen[count], size.made) for count in size.adapters
    }
    sides["one at a time"] = lambda: ours[compared].run(
        prompts, chosen[compared], size.made, AdapterClustered(StallFree(BUDGET), 1, strict=True)
    )
    sides["padded"] = lambda: padded.run(prompts, places, size.made)
    if peft is not None:
        sides["peft swap"] = lambda: peft.swap(prompts, names, size.made)
        sides["peft mixed"] = lambda: peft.mixed(prompts, names, size.made)
    # Our side runs in seconds where peft takes many, so it is warmed up and peft is not.
    for name in sides:
        if not name.startswith("peft"):
            sides[name]()
    timings = take_turns(sides, warm_up=False, progress=context.progress)
    ours[compared].run(prompts, chosen[compared], size.made)
    return [
        *_speed_metrics(timings, size, peft.name if peft else "peft", peft.note if peft else ""),
        *_memory_metrics(ours[compared], padded, used),
        *_agreement(ours[compared].answers(), timings),
    ]


def _speed_metrics(timings: dict[str, Timing], size: _Size, peft: str, note: str) -> list[Metric]:
    """Tokens made a second, all requests at once, with 64 adapters against each peer, and with 128 against one."""
    tokens = size.requests * size.made
    judged = size is FULL

    def rate(name: str) -> float | None:
        return tokens / timings[name].wall_median if name in timings else None

    def compared(name: str, peer: str, shown: str, target: float | None, note: str = "") -> Metric:
        ours, notes = timings[name], [timings[name].spread]
        if peer in timings:
            theirs = timings[peer]
            cpu = theirs.cpu_median / ours.cpu_median
            notes += [
                f"peer {theirs.spread}",
                f"CPU seconds {ours.cpu_median:.3g} and {theirs.cpu_median:.3g}, {cpu:.2f}x",
            ]
        return metric(
            f"{name}, against {shown}", "tokens/s", tokens / ours.wall_median, better="higher", peer=rate(peer),
            peer_name=shown if peer in timings or not peer.startswith("peft") else peft,
            least_ratio=target if judged else None, note="; ".join([*notes, note] if note else notes),
        )  # fmt: skip

    found = [
        compared("64 adapters", "peft swap", f"{peft} set_adapter", 4.0, note),
        compared("64 adapters", "peft mixed", f"{peft} adapter_names", 1.5, note),
        compared("64 adapters", "one at a time", "one adapter at a time in our engine", None),
        compared("64 adapters", "padded", "padded to rank 32", None),
    ]
    return found + [
        compared(f"{count} adapters", "1 adapters", "1 adapter", 0.75 if count == 128 else None)
        for count in size.adapters[1:]
    ]


def _memory_metrics(ours: _Served, padded: _Served, used: list[int]) -> list[Metric]:
    exact = sum(ours.store.pages_of(ours.keys[adapter]) for adapter in used) * ours.pool.page_bytes
    wide = sum(padded.store.pages_of(key) for key in padded.keys) * padded.pool.page_bytes
    note = f"{len(used)} adapters of the requests, whole pages counted"
    return [
        metric("pool bytes of the adapters", "MB", exact / 1e6, better="lower", peer=wide / 1e6,
               peer_name="padded to rank 32", least_ratio=2.0, note=note),
    ]  # fmt: skip


def _agreement(answers: list[list[int]], timings: dict[str, Timing]) -> list[Metric]:
    """First tokens that peft's float32 model makes as well: the two sides do the same work."""
    if "peft mixed" not in timings:
        return []
    theirs = timings["peft mixed"].result
    same = sum(ours[0] == other[0] for ours, other in zip(answers, theirs, strict=True)) / len(answers)
    return [metric("first tokens equal to peft's", "share", same, better="higher", note="our weights have 4 bits")]


def _kernel_share(model: CpuEngine, folders: list[Path], size: _Size) -> list[Metric]:
    """What adapters cost a step that decodes eight sequences, each with another adapter."""
    served = _Served(model, folders[:8], size.pages)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(100, 40_000, 16) for _ in range(8)]

    def step_seconds(with_adapters: bool) -> float:
        adapters = EngineAdapters(served.store, served.pool)
        kv = KVManager(served.pool, served.pages, page_tokens=served.pool.page_tokens, adapters=adapters.pages)
        executor = NumbaExecutor(model, served.pool, adapters=adapters)
        engine = Engine(executor, StallFree(256), kv, WallClock(), config=_CONFIG, adapters=adapters)
        params = SamplingParams(max_tokens=24, ignore_eos=True)
        for number, prompt in enumerate(prompts):
            key = served.keys[number] if with_adapters else None
            engine.submit(Request(str(number), tokens_of(prompt.tolist()), params, adapter=key))
        times = []
        while engine.busy:
            started = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - started)
        kv.clear()
        return float(np.median(times[4:20]))

    plain, adapted = [], []
    for _ in range(3):
        plain.append(step_seconds(False))
        adapted.append(step_seconds(True))
    share = 1 - float(np.median(plain)) / float(np.median(adapted))
    note = (
        f"{1e3 * float(np.median(adapted)):.1f} ms with, {1e3 * float(np.median(plain)):.1f} ms without, ranks 4 to 32"
    )
    return [
        metric("adapters' share of a step at batch 8", "share", share, better="lower", most=0.35, note=note),
        _planning_cost(),
    ]


def _planning_cost() -> Metric:
    """What a step's admission costs while 400 requests wait, each for an adapter of its own."""
    kv = KVManager(PageCounts(), 4096, adapters=AdapterPages(lambda key: 4))
    policy = AdapterClustered(StallFree(512), 32)
    for number in range(400):
        prompt = tokens_of(range(100, 108))
        request = Request(str(number), prompt, SamplingParams(max_tokens=64), adapter=f"a{number * 25}")
        policy.add(Sequence(request), 0.0)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        policy.next_batch(0.0, kv)
        times.append(time.perf_counter() - started)
    return metric(
        "planning a step while 400 adapters are asked for",
        "ms",
        1e3 * float(np.median(times)),
        better="lower",
        most=1.0,
    )
