"""`alisa`: reading a fifth of a long context, and what is lost and won by it.

Quality: windows of text whose last tokens are predicted one by one (teacher forced) behind a prompt that is computed in
full. Our choice of pages by the current query, the newest pages with the first one, and every so many tokens, on the
compiled engine; ALISA's rule by past attention and H2O's on the NumPy decoder; each against full attention on the same
decoder, all with the same budget. Speed: generations behind long contexts, reading a fifth against all, by turns.
Then the plan for batches that outgrow a GPU's memory, on prices of the simulator, against a fixed split (FlexGen) and
as many sequences at a time as fit (vLLM).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from windlass.bench.harness import BenchContext, take_turns
from windlass.bench.models.model_quality import evaluation_text
from windlass.bench.report import BenchReport, Metric, metric
from windlass.bench.serving.batching_peers import model_file
from windlass.bench.serving.real_engine import default_model
from windlass.bench.serving.sparse_methods import HeavyHitters, History, Method, log_likelihoods, perplexity
from windlass.core.progress import check_cancelled
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import Decoder
from windlass.models.key_sketch import KeySketch, SparseReading
from windlass.models.page_pool import PagePool
from windlass.models.token_batch import TokenBatch
from windlass.models.tokenizer import tokenizer_of
from windlass.models.weights import open_weights
from windlass.serving.batch import BatchShape
from windlass.serving.cost import DecoderShape, IterationCost
from windlass.serving.phase_plan import (
    PhaseCost,
    PhaseShape,
    in_rounds_seconds,
    plan_phases,
    static_split_seconds,
)
from windlass.serving.sparse_policy import SparsePolicy
from windlass.sim.cost import CostModel
from windlass.sim.hardware import hardware

PROMPT, PAGE = 640, 16
SPARSITIES = (0.5, 0.8)
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Size:
    windows: int
    predicted: int
    plain_windows: int
    contexts: int
    stored: int
    steps: int


FULL = _Size(8, 128, 3, 4, 7_680, 16)
QUICK = _Size(4, 48, 1, 2, 4_096, 8)


def run(context: BenchContext) -> BenchReport:
    size = QUICK if context.quick else FULL
    engine = default_model()
    source = open_weights(model_file())
    text, name = evaluation_text()
    tokens = np.array(tokenizer_of(source).encode(text[:400_000]), np.int64)
    windows = _windows(tokens, size.windows, PROMPT + size.predicted)
    metrics = [
        *_quality(context, engine, windows),
        *_plain_quality(context, Decoder(source), windows[: size.plain_windows]),
        *_speed(context, engine, size),
        *_simulated(),
    ]
    return context.report(
        mode="measured",
        workload=f"default model, {len(windows)} windows of {name}, {PROMPT} tokens and {size.predicted} predicted; "
        f"{size.contexts} contexts of {size.stored} tokens; {os.cpu_count()} cores",
        metrics=metrics,
    )


def _windows(tokens: Ints, count: int, length: int) -> list[Ints]:
    starts = np.linspace(0, len(tokens) - length, count).astype(np.int64)
    return [tokens[start : start + length] for start in starts]


def _quality(context: BenchContext, engine: CpuEngine, windows: list[Ints]) -> list[Metric]:
    """Perplexity of the windows, decoded as one batch, on the compiled engine."""
    pool = engine.new_pool(pages=len(windows) * (PROMPT // PAGE + 40) + 8)
    prompts = [pool.take_many(PROMPT // PAGE) for _ in windows]
    first = []
    for window, pages in zip(windows, prompts, strict=True):
        batch = TokenBatch.contiguous([window[:PROMPT]], [pages], [0], PAGE)
        first.append(np.asarray(engine.forward_tokens(batch, pool)[0]))
    dense = _likelihood(engine, pool, windows, prompts, first, None)
    base = math.exp(-dense)
    metrics = []
    for sparsity in SPARSITIES:
        found = {}
        for name, rule in _RULES.items():
            check_cancelled(context.progress)
            found[name] = math.exp(-_likelihood(engine, pool, windows, prompts, first, partial(rule, 1 - sparsity)))
        for name in ("local + sinks", "strided"):
            judged = 1.05 if sparsity == 0.8 and name == "local + sinks" else None
            metrics.append(
                metric(
                    f"perplexity over full attention's, {sparsity:.0%} not read, against {name}", "",
                    found["query"] / base, better="lower", peer=found[name] / base, peer_name=name, most=judged,
                    note=f"full attention {base:.2f}",
                )
            )  # fmt: skip
    return metrics


Rule = Callable[[TokenBatch, KeySketch], "tuple[TokenBatch, SparseReading | None]"]


def _by_query(ratio: float, batch: TokenBatch, sketch: KeySketch) -> tuple[TokenBatch, SparseReading | None]:
    policy = SparsePolicy(ratio)
    budgets, newest = zip(*(policy.pages(int(runs)) for runs in np.diff(batch.context_offsets)), strict=True)
    return batch, SparseReading(sketch, np.array(budgets, np.int64), np.array(newest, np.int64))


def _newest_pages(ratio: float, batch: TokenBatch, sketch: KeySketch) -> tuple[TokenBatch, SparseReading | None]:
    def keep(runs: int) -> list[tuple[int, int, int]]:
        budget = SparsePolicy(ratio).pages(runs)[0] or runs
        return [(run, 0, PAGE) for run in (0, *range(runs - budget + 1, runs))]

    return _of_runs(batch, keep), None


def _every_so_many(ratio: float, batch: TokenBatch, sketch: KeySketch) -> tuple[TokenBatch, SparseReading | None]:
    def keep(runs: int) -> list[tuple[int, int, int]]:
        budget = (SparsePolicy(ratio).pages(runs)[0] or runs) * PAGE
        near = budget // 2 // PAGE
        far = np.unique(np.linspace(0, (runs - near) * PAGE - 1, budget - near * PAGE).astype(np.int64))
        single = [(int(place) // PAGE, int(place) % PAGE, 1) for place in far]
        return [*single, *((run, 0, PAGE) for run in range(runs - near, runs))]

    return _of_runs(batch, keep), None


_RULES: dict[str, Callable[..., tuple[TokenBatch, SparseReading | None]]] = {
    "query": _by_query, "local + sinks": _newest_pages, "strided": _every_so_many,
}  # fmt: skip


def _of_runs(batch: TokenBatch, keep: Callable[[int], list[tuple[int, int, int]]]) -> TokenBatch:
    """The batch with parts (page, first slot, slots) of each context; the last page as far as it is filled."""
    pages, starts, lengths, offsets = [], [], [], [0]
    for low, high in zip(batch.context_offsets, batch.context_offsets[1:], strict=False):
        for run, start, length in keep(int(high - low)):
            pages.append(batch.context_pages[low + run])
            starts.append(start)
            lengths.append(min(length, int(batch.context_lengths[low + run]) - start))
        offsets.append(len(pages))
    table, first, many, ends = (np.array(column, np.int64) for column in (pages, starts, lengths, offsets))
    visible = np.add.reduceat(many, ends[:-1])
    return TokenBatch(
        batch.ids, batch.positions, batch.rows, batch.slots, visible, table, first, many, ends, batch.out_rows
    )  # fmt: skip


def _likelihood(
    engine: CpuEngine, pool: PagePool, windows: list[Ints], prompts: list[list[int]], first: list[NDArray[np.float32]],
    rule: Rule | None,
) -> float:  # fmt: skip
    """Mean log-likelihood of what follows the prompts."""
    length, sketch = len(windows[0]), KeySketch(pool)
    fresh = [pool.take_many(-(-(length - PROMPT) // PAGE)) for _ in windows]
    total, logits = 0.0, np.stack(first).astype(np.float32)
    for place in range(PROMPT, length):
        wide = logits.astype(np.float64)
        top = wide.max(axis=1)
        norm = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
        total += float(sum(wide[row, window[place]] - norm[row] for row, window in enumerate(windows)))
        if place + 1 < length:
            pages = [known + more for known, more in zip(prompts, fresh, strict=True)]
            ids = [window[place : place + 1] for window in windows]
            batch = TokenBatch.contiguous(ids, pages, [place] * len(windows), PAGE)
            reading = None
            if rule is not None:
                batch, reading = rule(batch, sketch)
            logits = engine.forward_tokens(batch, pool, sparse=reading)
    for page in (page for pages in fresh for page in pages):
        pool.release(page)
    return total / (len(windows) * (length - PROMPT))


def _plain_quality(context: BenchContext, decoder: Decoder, windows: list[Ints]) -> list[Metric]:
    """ALISA's own rule and H2O's, which need the attention of every layer and step."""
    found = {}
    for method in (Method, History, HeavyHitters):
        likelihoods = []
        for window in windows:
            check_cancelled(context.progress)
            likelihoods.append(log_likelihoods(decoder, window, PROMPT, 0.2, method))
        found[method.name] = perplexity(likelihoods)
    base = found[Method.name]
    note = f"{len(windows)} windows on the NumPy decoder, full attention {base:.2f}"
    return [
        metric(
            f"perplexity over full attention's, 80% not read, {name}", "", found[name] / base, better="lower", note=note
        )
        for name in (History.name, HeavyHitters.name)
    ]


def _speed(context: BenchContext, engine: CpuEngine, size: _Size) -> list[Metric]:
    """Steps of several generations behind long contexts, in memory that is full of keys and values."""
    each = size.stored // PAGE + 2
    pool = engine.new_pool(pages=size.contexts * each)
    rng = np.random.default_rng(context.seed)
    page = rng.standard_normal((pool.data.shape[1],)).astype(np.float16).view(np.uint16)
    for number in range(pool.count):
        pool.data[number] = np.roll(page, 64 * number)
    pages, sketch = [pool.take_many(each) for _ in range(size.contexts)], KeySketch(pool)
    ids = [np.array([100 + row], np.int64) for row in range(size.contexts)]

    def steps(ratio: float | None) -> None:
        for step in range(size.steps):
            batch = TokenBatch.contiguous(ids, pages, [size.stored + step] * size.contexts, PAGE)
            reading = _by_query(ratio, batch, sketch)[1] if ratio is not None else None
            engine.forward_tokens(batch, pool, sparse=reading)

    timings = take_turns({"sparse": lambda: steps(0.2), "dense": lambda: steps(None)}, progress=context.progress)
    made = size.contexts * size.steps
    ours, peer = timings["sparse"], timings["dense"]
    note = f"{ours.spread}, peer {peer.spread}; CPU seconds {ours.cpu_median:.3g} and {peer.cpu_median:.3g}"
    share = sketch.data.nbytes / pool.data.nbytes
    return [
        metric("generation, 80% not read", "tokens/s", made / ours.wall_median, better="higher",
               peer=made / peer.wall_median, peer_name="full attention", least_ratio=1.4, note=note),
        metric("bytes of the sketch over those of the keys and values", "", share, better="lower", most=1 / 16 + 1e-9),
    ]  # fmt: skip


def _simulated() -> list[Metric]:
    """Batches that outgrow one GPU, 128 tokens in and 512 out, 20 GB/s to the host's memory."""
    models = (
        (
            "OPT-6.7B on a V100 of 16 GB",
            DecoderShape(32, 4096, 32, 32, 128, 10_923, 50_272, "fp16", "fp16"),
            "V100",
            16,
        ),
        ("LLaMA-33B on an H100", DecoderShape(60, 6656, 52, 52, 128, 17_920, 32_000, "fp16", "fp16"), "H100-SXM", 80),
    )
    metrics = []
    for name, model, device, gigabytes in models:
        price = IterationCost(CostModel(), hardware(device), model)
        capacity = 0.92 * gigabytes * 1e9 - model.weight_bytes
        rows = []
        for batch in (4, 8, 16, 32, 64):
            shape = PhaseShape(batch, 128, 512, model.kv_bytes_per_token)
            cost = _phase_cost(price, batch)
            if capacity / (batch * shape.token_bytes) < 0.1 * 640:
                rows.append((batch, math.nan, math.nan, math.nan))
                continue
            plan = plan_phases(shape, capacity, 0.2, cost, grid=9)
            split = static_split_seconds(shape, capacity, cost)
            rounds, _ = in_rounds_seconds(shape, capacity, partial(_phase_cost, price))
            rows.append((batch, plan.predicted_s, split / plan.predicted_s, rounds / plan.predicted_s))
        known = [row for row in rows if not math.isnan(row[1])]
        table = ", ".join(f"batch {row[0]}: {row[2]:.2f} and {row[3]:.2f}" for row in known)
        batch, seconds, _, _ = known[-1]
        for peer, place in (("fixed split (FlexGen)", 2), ("as many as fit (vLLM)", 3)):
            metrics.append(
                metric(
                    f"{name}, batch {batch}, against {peer} (simulated)", "tokens/s", batch * 512 / seconds,
                    better="higher", peer=batch * 512 / seconds / known[-1][place], peer_name=peer,
                    least_ratio=1.4 if place == 2 else None,
                    note=f"20 GB/s link, price error {price.error:.0%}; ratios to both, {table}",
                )
            )  # fmt: skip
    return metrics


def _phase_cost(price: IterationCost, batch: int) -> PhaseCost:
    def step(read: float) -> float:
        return price.seconds(BatchShape(batch, batch, 0.0, int(batch * read)))

    def again(tokens: float) -> float:
        return price.device_seconds(BatchShape(max(1, int(batch * tokens)), 0, 0.0, 0))

    return PhaseCost(step, again, 20e9)
