"""`models-base`: the default model on this processor beside llama.cpp, transformers, and the memory itself.

Everyone decodes the same tokens by turns, a few at a time; CPU seconds and wall seconds are taken for each token, the
median counts. llama.cpp runs the same file and its own Q4_0 of it, the 4-bit format it repacks for speed. The memory is
a loop that adds up as many bytes as a token reads. Peers run in child processes, and so does what a process costs (its
start, its memory). The whole run ends with the embedding model and the quality of the weight formats.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.bench.harness import BenchContext, Comparison, Timing, peer_module
from windlass.bench.models.decoding_peers import InChild, Ours, PeerLost, requantize, seconds
from windlass.bench.models.encoder_speed import encoder_rows
from windlass.bench.models.model_quality import quality_rows
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
marks = {}
def mark(name):
    marks[name] = me.memory_info().rss
messages = [{"role": "user", "content": "Name a harbour."}]
if side == "ours":
    from windlass.models import cpu_engine
    from windlass.models.generate import LocalModel
    mark("program")
    model = LocalModel.load(path)
    mark("loaded")
    next(iter(model.chat(messages, max_tokens=16)))
    marks["weights"] = model.decoder.nbytes
else:
    from llama_cpp import Llama
    mark("program")
    model = Llama(path, n_ctx=2048, n_threads=len(os.sched_getaffinity(0)), verbose=False)
    mark("loaded")
    for part in model.create_chat_completion(messages, max_tokens=16, stream=True):
        if part["choices"][0]["delta"].get("content"):
            break
first = time.time() - me.create_time()
mark("answered")
print(json.dumps({"first": first, **marks}))
"""
_COLD = "from windlass.models import cpu_engine as e; e.kernels((*e.KERNELS, *e.PACKING_KERNELS))"
Side = Ours | InChild


@dataclass
class _Tokens:
    """Seconds of each token of one side."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, taken: tuple[float, float]) -> None:
        self.wall.append(taken[0])
        self.cpu.append(taken[1])

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
        peers: dict[str, InChild] = {}
        if q4_0:
            files = ((_LLAMA, path), (_LLAMA_Q4_0, q4_0))
            peers = {name: InChild("LlamaCpp", str(file), threads) for name, file in files}
        metrics += _decode_metrics(context, engine, peers, tokens, threads)
        metrics += _prefill_metrics(context, engine, peers, tokens, threads)
        for peer in peers.values():
            peer.close()
        if threads == 1:
            metrics += _slope_metrics(context, engine, tokens)
            metrics += _torch_metrics(context, path, engine, tokens)
        engine.close()
    if not context.quick:
        metrics.append(_loaded_machine(path, tokens))
        metrics += quality_rows(context)
        metrics += encoder_rows(context)
    return context.report(mode="measured", workload=f"{path.name}, greedy and all logits", metrics=metrics)


def _q4_0(path: Path, context: BenchContext) -> Path | None:
    if peer_module("llama_cpp") is None:
        return None
    target = context.workdir / "q4_0.gguf"
    requantize(path, target)
    return target


def _decode_metrics(
    context: BenchContext, engine: CpuEngine, peers: dict[str, InChild], tokens: Sequence[int], threads: int
) -> Iterator[Metric]:
    count, named = 32 if context.quick else 128, f"{threads} thread" + "s" * (threads > 1)
    for start in (32,) if context.quick else (32, 1024):
        all_bytes, greedy_bytes = (_bytes_a_token(engine, start + count // 2, greedy) for greedy in (False, True))
        memory = {name: _Reading(size, threads) for name, size in (("all", all_bytes), ("greedy", greedy_bytes))}
        sides: dict[str, Side] = {"all": Ours(engine), "greedy": Ours(engine, greedy=True), **peers}
        times, lost = _by_turns(sides, memory, tokens, start, count)
        where = f"after {start}, {named}"
        for name, least in ((_LLAMA, 2.5), (_LLAMA_Q4_0, 1.5)):
            peer = times.get(name)
            # The peer computes all logits each time, so the target is for the like.
            note = f"{times['all']}; peer {peer}" if peer else f"{times['all']}{lost.get(name, '')}"
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
    sides: dict[str, Side], memory: dict[str, _Reading], tokens: Sequence[int], start: int, count: int
) -> tuple[dict[str, _Tokens], dict[str, str]]:
    """Every side takes a few tokens, then the next one, until all have `count`; and why some peers did not."""
    times = {name: _Tokens() for name in [*sides, *(f"memory, {name}" for name in memory)]}
    lost: dict[str, str] = {}

    def turn(name: str, calls: list[tuple[Any, ...]], times: _Tokens) -> None:
        if name in lost:
            return
        try:
            for call in calls:
                times.add(sides[name].timed(*call))
        except PeerLost as error:
            lost[name] = f"; {error}"

    for name in sides:
        turn(name, [("reset",), ("prefill", tokens[:start]), ("step", tokens[start])], _Tokens())
    for at in range(0, count, _TURN):
        for name in sides:
            turn(name, [("step", token) for token in tokens[start + 1 + at : start + 1 + at + _TURN]], times[name])
        for name, reading in memory.items():
            for _ in range(_TURN):
                times[f"memory, {name}"].add(seconds(reading))
    return {name: found for name, found in times.items() if name not in lost}, lost


def _prefill_metrics(
    context: BenchContext, engine: CpuEngine, peers: dict[str, InChild], tokens: Sequence[int], threads: int
) -> Iterator[Metric]:
    for length in (64,) if context.quick else (64, 256):
        ours = Ours(engine)
        for name in (_LLAMA, _LLAMA_Q4_0):
            both = _prefills(ours, peers.get(name), tokens[:length])
            yield from both.metrics(
                f"prompt of {length}, {threads} thread" + "s" * (threads > 1), peer_name=name,
                least_ratio=2.0 if name == _LLAMA else None,
            )  # fmt: skip


def _prefills(ours: Ours, peer: InChild | None, prompt: Sequence[int]) -> Comparison:
    """Three prompts each by turns, after one that does not count."""
    found: list[list[tuple[float, float]]] = [[], []]
    for _ in range(4):
        for side, seen in zip((ours, peer), found, strict=True):
            try:
                if side is not None:
                    side.timed("reset")
                    seen.append(side.timed("prefill", prompt))
            except PeerLost:
                peer = None
    first, *timings = [
        Timing(tuple(wall for wall, _ in seen[1:]), tuple(cpu for _, cpu in seen[1:]), None)
        for seen in found
        if len(seen) == 4
    ]
    return Comparison(first, timings[0] if timings else None)


def _slope_metrics(context: BenchContext, engine: CpuEngine, tokens: Sequence[int]) -> Iterator[Metric]:
    long = 1024 if context.quick else 3072
    config = engine.config
    size = 4 * config.n_layers * config.n_kv_heads * config.head_dim
    reading = {"context": _Reading(size * (long - 32), 1)}
    pair = {"short": Ours(engine), "long": Ours(engine)}
    pair["long"].prefill(tokens[:long])
    pair["short"].prefill(tokens[:32])
    times = {name: _Tokens() for name in (*pair, "context")}
    for _ in range(6):
        for name, side in pair.items():
            for token in tokens[:4]:
                times[name].add(side.timed("step", token))
            times["context"].add(seconds(reading["context"]))
    more = times["long"].median_cpu - times["short"].median_cpu
    yield metric(
        f"what {long - 32} more tokens of context cost, over reading their keys and values", "ratio",
        more / times["context"].median_cpu, better="lower", most=1.3,
        note=f"{more / (long - 32) * 1e6:.2f} us a token of context, {size} B each",
    )  # fmt: skip


def _torch_metrics(context: BenchContext, path: Path, engine: CpuEngine, tokens: Sequence[int]) -> Iterator[Metric]:
    there = all(peer_module(name) is not None for name in ("torch", "transformers", "accelerate"))
    for dtype in () if context.quick else ("float32", "bfloat16"):
        sides: dict[str, Side] = {"ours": Ours(engine)}
        note = ""
        try:
            if there:
                sides["peer"] = InChild("Transformers", str(path), dtype, 1, limit=120.0)
        except PeerLost as error:
            note = str(error)
        times, lost = _by_turns(sides, {}, tokens, 32, 16)
        yield metric(
            "token with all logits after 32, 1 thread, CPU", "ms", times["ours"].median_cpu * 1e3, better="lower",
            peer=times["peer"].median_cpu * 1e3 if "peer" in times else None, peer_name=f"{_TORCH}, {dtype}",
            note=note or lost.get("peer", ""),
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
    parts = found["ours"][0]
    yield metric(
        "memory that the model adds to a process, over the file", "ratio", better="lower", most=1.2,
        **both(lambda one: (one["answered"] - one["program"]) / file),
        note=f"file {file / 1e6:.1f} MB; Python and the modules {parts['program'] / 1e6:.1f}, weights "
        f"{parts['weights'] / 1e6:.1f}, tokenizer and the rest of loading "
        f"{(parts['loaded'] - parts['program'] - parts['weights']) / 1e6:.1f}, first answer "
        f"{(parts['answered'] - parts['loaded']) / 1e6:.1f}",
    )  # fmt: skip
    yield metric(
        "resident memory of the whole process", "MB", **both(lambda one: one["answered"] / 1e6), better="lower"
    )
    ours = [seconds(lambda: CpuEngine.load(path).close())[0] for _ in range(4)][1:]
    peer = [_loading(path) for _ in range(3)] if llama else []
    yield metric(
        "loading", "s", statistics.median(ours), better="lower", most=1.0,
        peer=statistics.median(peer) if peer else None, peer_name=_LLAMA,
    )  # fmt: skip
    yield metric(
        "compiling every kernel of the engine once, CPU",
        "s",
        _cold_seconds(),
        better="lower",
        most=25.0,
        note="in processes beside the one that waits",
    )


def _loading(path: Path) -> float:
    peer = InChild("LlamaCpp", str(path), 2)
    peer.close()
    return peer.loading


def _cold_seconds() -> float:
    """CPU seconds of a process that finds no compiled kernels, and of those it starts."""
    with tempfile.TemporaryDirectory(prefix="windlass-cold-") as folder:
        before = os.times()
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        subprocess.run([sys.executable, "-c", _COLD], env=environment, check=True, timeout=300)
        after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def _child(path: Path, side: str) -> dict[str, float]:
    run = subprocess.run([sys.executable, "-c", _CHILD, str(path), side], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def _loaded_machine(path: Path, tokens: Sequence[int]) -> Metric:
    """Two threads against one while another program keeps a core busy."""
    sides: dict[str, Side] = {str(threads): Ours(CpuEngine.load(path, threads=threads)) for threads in (1, 2)}
    with _busy_core():
        times, _ = _by_turns(sides, {}, tokens, 32, 64)
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
