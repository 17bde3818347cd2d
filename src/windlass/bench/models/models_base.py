"""`models-base`: the default model on this processor beside llama.cpp, transformers, and the memory itself.

Everyone decodes the same tokens by turns, a few at a time; CPU seconds and wall seconds are taken for each token, the
median counts. llama.cpp runs the same file and its own Q4_0 of it, the 4-bit format it repacks for speed. The memory is
a loop that adds up as many bytes as a token reads. What a process costs (its start, its memory) is measured in child
processes of the same interpreter.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.models.decoding_peers import Decoding, LlamaCpp, Ours, Transformers, requantize
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.progress import check_cancelled
from windlass.core.settings import Settings
from windlass.kernels.compiled import compiled
from windlass.kernels.isa import LANES
from windlass.kernels.simd import add_float, load_float, sum_lanes, zero_float
from windlass.kernels.tile_layout import packed_bytes
from windlass.models import cpu_engine, cpu_tables, store
from windlass.models.cpu_engine import CpuEngine

_LLAMA, _LLAMA_Q4_0, _TORCH, _MEMORY = "llama.cpp, same file", "llama.cpp, Q4_0", "transformers", "reading the bytes"
_TURN = 8
_BUSY = "while True: pass"
_CHILD = """
import json, os, sys, time
import psutil
me = psutil.Process()
path, side = sys.argv[1:]
if side == "ours":
    from windlass.models.generate import LocalModel
    before = me.memory_info().rss
    model = LocalModel.load(path)
    loaded = me.memory_info().rss
    next(iter(model.chat([{"role": "user", "content": "Name a harbour."}], max_tokens=16)))
else:
    from llama_cpp import Llama
    before = me.memory_info().rss
    model = Llama(path, n_ctx=2048, n_threads=len(os.sched_getaffinity(0)), verbose=False)
    loaded = me.memory_info().rss
    chat = model.create_chat_completion([{"role": "user", "content": "Name a harbour."}], max_tokens=16, stream=True)
    for part in chat:
        if part["choices"][0]["delta"].get("content"):
            break
first = time.time() - me.create_time()
print(json.dumps({"first": first, "before": before, "loaded": loaded, "after": me.memory_info().rss}))
"""


@dataclass
class _Tokens:
    """Seconds of each token of one side."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)

    @property
    def median_wall(self) -> float:
        return statistics.median(self.wall)

    def __str__(self) -> str:
        wall, cpu = (f"{min(part) * 1e3:.2f} / {statistics.median(part) * 1e3:.2f}" for part in (self.wall, self.cpu))
        return f"min / median ms a token: wall {wall}, CPU {cpu}"


def run(context: BenchContext) -> BenchReport:
    path = store.locate(Settings().models.decoder)
    tokens = np.random.default_rng(context.seed).integers(0, 40_000, 3 * cpu_engine.PREFILL_CHUNK + 4096).tolist()
    q4_0 = _q4_0(path, context)
    metrics = list(_process_metrics(path, repeats=1 if context.quick else 3))
    for threads in (1,) if context.quick else (1, 2):
        check_cancelled(context.progress)
        engine = CpuEngine.load(path, threads=threads)
        peers = {_LLAMA: LlamaCpp(path, threads), _LLAMA_Q4_0: LlamaCpp(q4_0, threads)} if q4_0 else {}
        metrics += _decode_metrics(context, engine, peers, tokens, threads)
        metrics += _prefill_metrics(context, engine, peers, tokens, threads)
        if threads == 1:
            metrics += _slope_metrics(context, engine, tokens)
            metrics += _torch_metrics(context, path, engine, tokens)
        engine.close()
    if not context.quick:
        metrics.append(_loaded_machine(path, tokens))
    return context.report(mode="measured", workload=f"{path.name}, greedy and all logits", metrics=metrics)


def _q4_0(path: Path, context: BenchContext) -> Path | None:
    if peer_module("llama_cpp") is None:
        return None
    target = context.workdir / "q4_0.gguf"
    requantize(path, target)
    return target


def _decode_metrics(
    context: BenchContext, engine: CpuEngine, peers: dict[str, LlamaCpp], tokens: Sequence[int], threads: int
) -> Iterator[Metric]:
    count, named = 32 if context.quick else 128, f"{threads} thread" + "s" * (threads > 1)
    for start in (32,) if context.quick else (32, 1024):
        all_bytes, greedy_bytes = (_bytes_a_token(engine, start + count // 2, greedy) for greedy in (False, True))
        memory = {name: _Reading(size, threads) for name, size in (("all", all_bytes), ("greedy", greedy_bytes))}
        sides: dict[str, Decoding] = {"all": Ours(engine), "greedy": Ours(engine, greedy=True), **peers}
        times = _by_turns(sides, memory, tokens, start, count)
        where = f"after {start}, {named}"
        for name, least in ((_LLAMA, 2.5), (_LLAMA_Q4_0, 1.5)):
            peer = times.get(name)
            # The peer computes all logits each time, so the target is for the like.
            note = f"{times['all']}; peer {peer}" if peer else str(times["all"])
            yield metric(
                f"token with all logits {where}, CPU", "ms", times["all"].median_cpu * 1e3, better="lower",
                peer=peer.median_cpu * 1e3 if peer else None, peer_name=name,
                least_ratio=least if threads == 1 else None, note=note,
            )  # fmt: skip
            yield metric(
                f"greedy token {where}, CPU", "ms", times["greedy"].median_cpu * 1e3, better="lower",
                peer=peer.median_cpu * 1e3 if peer else None, peer_name=name,
                note=f"{times['greedy']}; the peer computes all logits",
            )  # fmt: skip
            yield metric(
                f"token with all logits {where}, wall", "ms", times["all"].median_wall * 1e3, better="lower",
                peer=peer.median_wall * 1e3 if peer else None, peer_name=name, note=str(times["all"]),
            )  # fmt: skip
        for name, said, size in (("all", "all logits", all_bytes), ("greedy", "greedy", greedy_bytes)):
            ours, reading = times[name], times[f"memory, {name}"]
            share = reading.median_wall / ours.median_wall
            target = {1: 0.85, 2: 0.8}[threads] if start == 32 else None
            yield metric(
                f"share of streaming, {said}, {where}", "share", share, better="higher", least=target,
                note=f"{size / 1e6:.1f} MB a token read in {reading.median_wall * 1e3:.2f} ms",
            )  # fmt: skip


def _by_turns(
    sides: dict[str, Decoding], memory: dict[str, _Reading], tokens: Sequence[int], start: int, count: int
) -> dict[str, _Tokens]:
    """Every side takes a few tokens, then the next one, until all have `count`."""
    times = {name: _Tokens() for name in [*sides, *(f"memory, {name}" for name in memory)]}
    for side in sides.values():
        side.reset()
        side.prefill(tokens[:start])
        side.step(tokens[start])
    for at in range(0, count, _TURN):
        for name, side in sides.items():
            for token in tokens[start + 1 + at : start + 1 + at + _TURN]:
                _time(times[name], lambda side=side, token=token: side.step(token))  # type: ignore[misc]
        for name, reading in memory.items():
            for _ in range(_TURN):
                _time(times[f"memory, {name}"], reading)
    return times


def _time(times: _Tokens, work: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    times.cpu.append(time.process_time() - cpu)
    times.wall.append(time.perf_counter() - wall)


def _prefill_metrics(
    context: BenchContext, engine: CpuEngine, peers: dict[str, LlamaCpp], tokens: Sequence[int], threads: int
) -> Iterator[Metric]:
    for length in (64,) if context.quick else (64, 256):
        for name in (_LLAMA, _LLAMA_Q4_0):
            peer = peers.get(name)
            found = compare(_prefill(Ours(engine), tokens, length), _prefill(peer, tokens, length) if peer else None)
            yield from found.metrics(
                f"prompt of {length}, {threads} thread" + "s" * (threads > 1), peer_name=name,
                least_ratio=2.0 if name == _LLAMA else None,
            )  # fmt: skip


def _prefill(side: Decoding, tokens: Sequence[int], length: int) -> Callable[[], None]:
    def work() -> None:
        side.reset()
        side.prefill(tokens[:length])

    return work


def _slope_metrics(context: BenchContext, engine: CpuEngine, tokens: Sequence[int]) -> Iterator[Metric]:
    long = 1024 if context.quick else 3072
    config = engine.config
    size = 4 * config.n_layers * config.n_kv_heads * config.head_dim
    reading = {"context": _Reading(size * (long - 32), 1)}
    pair: dict[str, Decoding] = {"short": Ours(engine), "long": Ours(engine)}
    pair["long"].prefill(tokens[:long])
    pair["short"].prefill(tokens[:32])
    times = {name: _Tokens() for name in (*pair, "context")}
    for _ in range(6):
        for name, side in pair.items():
            for token in tokens[:4]:
                _time(times[name], lambda side=side, token=token: side.step(token))  # type: ignore[misc]
            _time(times["context"], reading["context"])
    more = times["long"].median_cpu - times["short"].median_cpu
    yield metric(
        f"what {long - 32} more tokens of context cost, over reading their keys and values", "ratio",
        more / times["context"].median_cpu, better="lower", most=1.3,
        note=f"{more / (long - 32) * 1e6:.2f} us a token of context, {size} B each",
    )  # fmt: skip


def _torch_metrics(context: BenchContext, path: Path, engine: CpuEngine, tokens: Sequence[int]) -> Iterator[Metric]:
    there = all(peer_module(name) is not None for name in ("torch", "transformers", "accelerate"))
    for dtype in () if context.quick else ("float32", "bfloat16"):
        sides: dict[str, Decoding] = {"ours": Ours(engine)}
        if there:
            sides["peer"] = Transformers(path, dtype, 1)
        times = _by_turns(sides, {}, tokens, 32, 16)
        yield metric(
            "token with all logits after 32, 1 thread, CPU", "ms", times["ours"].median_cpu * 1e3, better="lower",
            peer=times["peer"].median_cpu * 1e3 if there else None, peer_name=f"{_TORCH}, {dtype}",
        )  # fmt: skip


def _process_metrics(path: Path, *, repeats: int) -> Iterator[Metric]:
    """Loading, the first token of a fresh process, and resident memory."""
    file, llama = path.stat().st_size, peer_module("llama_cpp") is not None
    _child(path, "ours")  # so that the kernels are compiled and the file is in the page cache
    found: dict[str, list[dict[str, float]]] = {"ours": [], "llama": []}
    for _ in range(repeats):
        for side in ("ours", "llama") if llama else ("ours",):
            found[side].append(_child(path, side))

    def middle(side: str, of: Callable[[dict[str, float]], float]) -> float | None:
        return statistics.median(of(one) for one in found[side]) if found[side] else None

    def both(of: Callable[[dict[str, float]], float]) -> dict[str, Any]:
        ours = middle("ours", of)
        assert ours is not None
        return {"ours": ours, "peer": middle("llama", of), "peer_name": _LLAMA}

    yield metric("first word of an answer, from process start", "s", **both(lambda one: one["first"]),
                 better="lower", most=1.5)  # fmt: skip
    yield metric(
        "memory that the model adds to a process, over the file", "ratio", better="lower", most=1.2,
        **both(lambda one: (one["after"] - one["before"]) / file), note=f"the file has {file / 1e6:.1f} MB",
    )  # fmt: skip
    yield metric("resident memory of the whole process", "MB", **both(lambda one: one["after"] / 1e6), better="lower")
    loading = compare(lambda: CpuEngine.load(path).close(), (lambda: LlamaCpp(path, 2)) if llama else None)
    for item in loading.metrics("loading", peer_name=_LLAMA):
        yield (
            item
            if "CPU" in item.name
            else metric(
                item.name,
                item.unit,
                item.ours,
                better="lower",
                peer=item.peer,
                peer_name=_LLAMA,
                most=1.0,
                note=item.note,
            )
        )


def _child(path: Path, side: str) -> dict[str, float]:
    run = subprocess.run([sys.executable, "-c", _CHILD, str(path), side], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def _loaded_machine(path: Path, tokens: Sequence[int]) -> Metric:
    """Two threads against one while another program keeps a core busy."""
    sides: dict[str, Decoding] = {str(threads): Ours(CpuEngine.load(path, threads=threads)) for threads in (1, 2)}
    with _busy_core():
        times = _by_turns(sides, {}, tokens, 32, 64)
    return metric(
        "two threads, beside a program that never waits", "ms", times["2"].median_wall * 1e3, better="lower",
        peer=times["1"].median_wall * 1e3, peer_name="one thread", least_ratio=0.95,
        note=f"{times['2']}; one thread {times['1']}",
    )  # fmt: skip


@contextmanager
def _busy_core() -> Iterator[None]:
    other = subprocess.Popen([sys.executable, "-c", _BUSY])
    try:
        time.sleep(0.5)
        yield
    finally:
        other.kill()
        other.wait()


def _bytes_a_token(engine: CpuEngine, context: int, greedy: bool) -> int:
    """Weights, keys and values that one token reads."""
    plan, config = engine.packed.plan, engine.config
    head = plan[-1, cpu_tables.COARSE if greedy and engine.packed.has_coarse_head else cpu_tables.HEAD]
    matrices = [*plan[:-1].reshape(-1, plan.shape[-1]), head]
    weights = sum(packed_bytes(int(kind), int(rows), 32 * int(blocks)) for kind, _, _, rows, blocks, _ in matrices)
    return weights + context * 4 * config.n_layers * config.n_kv_heads * config.head_dim


class _Reading:
    """Adds up a block of memory, shared among threads."""

    def __init__(self, size: int, threads: int) -> None:
        self._parts = np.array_split(np.ones(-(-size // 4), np.float32), threads)
        _add_up(self._parts[0][:64])

    def __call__(self) -> None:
        others = [threading.Thread(target=_add_up, args=(part,)) for part in self._parts[1:]]
        for other in others:
            other.start()
        _add_up(self._parts[0])
        for other in others:
            other.join()


@compiled
def _add_up(numbers: NDArray[np.float32]) -> float:
    a, b, c, d = zero_float(), zero_float(), zero_float(), zero_float()
    for at in range(0, numbers.shape[0] - 4 * LANES + 1, 4 * LANES):
        a = add_float(a, load_float(numbers, at))
        b = add_float(b, load_float(numbers, at + LANES))
        c = add_float(c, load_float(numbers, at + 2 * LANES))
        d = add_float(d, load_float(numbers, at + 3 * LANES))
    total: float = sum_lanes(add_float(add_float(a, b), add_float(c, d)))
    return total
