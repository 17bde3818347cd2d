"""`cache-craft`: how soon does an answer begin when its passages were read before, in another order?

Questions of XQuAD about six articles (`--quick`: two), each over three of the article's five passages in random order,
some asked often (Zipf), so that most passages were seen before, as in the paper's production traces. After a warm-up,
every question goes by turns through engines that share nothing but the weights: one that computes everything, one with
the prefix tree (what other engines have), copies without repair, the paper's rule of which tokens are repaired (not
`--quick`), and ours. The known answer is forced, so that what the model finds likely can be compared with the full
computation token by token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.bench.harness import BenchContext
from windlass.bench.report import BenchReport, Metric, metric
from windlass.bench.serving.passage_questions import PassageQuestion, drawn_questions
from windlass.bench.serving.real_engine import local_model
from windlass.core.program import WallClock
from windlass.core.progress import check_cancelled
from windlass.models.generate import LocalModel
from windlass.serving.chunk_cache import ChunkOptions
from windlass.serving.engine import Engine
from windlass.serving.kv import KVManager
from windlass.serving.local_engine import chunk_cache
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import Request, SamplingParams, tokens_of
from windlass.serving.scheduler import StallFree

PASSAGES, PAGES, BUDGET, MOST_FORCED = 3, 1200, 64, 8
FULL, PREFIX, NAIVE, OURS = "full computation", "prefix tree", "copies without repair", "ours"


def run(context: BenchContext) -> BenchReport:
    model = local_model()
    count, some = (6, 2) if context.quick else (24, 6)
    questions = drawn_questions(2 * count, PASSAGES, some, context.seed + 7)
    sides = _sides(model, context.quick)
    for question in questions[:count]:
        for name, side in sides.items():
            check_cancelled(context.progress)
            if name != FULL:
                side.ask(question)
    for side in sides.values():
        side.forget()
    for number, question in enumerate(questions[count:]):
        for side in sides.values() if number % 2 == 0 else reversed(sides.values()):
            check_cancelled(context.progress)
            side.ask(question)
    return context.report(
        mode="measured",
        workload=f"{count} questions after {count} of warm-up about {some} XQuAD articles, {PASSAGES} passages each, "
        "default model, by turns",
        metrics=_metrics(sides, context.quick),
    )


@dataclass(slots=True)
class _Asked:
    first_token: float
    cpu: float
    computed: int
    passage_tokens: int
    logits: NDArray[np.float64]


class _Side:
    """An engine of its own, and what came of each question."""

    def __init__(self, model: LocalModel, chunks: ChunkOptions | None, *, prefixes: bool) -> None:
        decoder: Any = model.decoder
        self._tokenizer = model.tokenizer
        pool = decoder.new_pool(pages=PAGES)
        cache = None if chunks is None else chunk_cache(decoder, pool, model.fingerprint, chunks)
        kv = KVManager(pool, PAGES, share_prefixes=prefixes, revision=model.fingerprint, chunks=cache)
        self._heard = _Heard(decoder)
        executor = NumbaExecutor(self._heard, pool)
        self._engine = Engine(executor, StallFree(BUDGET), kv, WallClock())
        self._reuse = chunks is not None
        self.asked: list[_Asked] = []
        self.repaired = self.taken = 0

    def ask(self, question: PassageQuestion) -> None:
        prompt, segments = question.prompt(self._tokenizer)
        forced = self._tokenizer.encode(" " + question.answer)[:MOST_FORCED]
        vocabulary = self._heard.config.vocab_size
        self._heard.logits.clear()
        request = Request(
            f"q{len(self.asked)}", tokens_of(prompt), SamplingParams(
                max_tokens=len(forced), ignore_eos=True, constraint=lambda: _Forced(forced, vocabulary)
            ),
            segments=segments, reuse_chunks=self._reuse,
        )  # fmt: skip
        before, cpu, started = self._engine.metrics.computed_tokens, time.process_time(), time.perf_counter()
        handle = self._engine.submit(request)
        while handle.sequences[0].made == 0:
            self._engine.step()
        first, cpu = time.perf_counter() - started, time.process_time() - cpu
        computed = self._engine.metrics.computed_tokens - before
        self._engine.run_until_idle()
        named = handle.approximations.get("chunks", {})
        self.taken += int(named.get("reused_tokens", 0) + named.get("repaired_tokens", 0))
        self.repaired += int(named.get("repaired_tokens", 0))
        of_passages = sum(segment.stop - segment.start for segment in segments if segment.kind == "chunk")
        self.asked.append(_Asked(first, cpu, computed, of_passages, np.concatenate(self._heard.logits)))

    def forget(self) -> None:
        """The warm-up is over."""
        self.asked.clear()
        self.taken = self.repaired = 0


class _Forced:
    """Holds an answer to given tokens; a `Constraint`."""

    done = False

    def __init__(self, tokens: list[int], vocabulary: int) -> None:
        self._left, self._vocabulary = iter(tokens), vocabulary

    def allowed(self) -> NDArray[np.bool_]:
        mask = np.zeros(self._vocabulary, np.bool_)
        mask[next(self._left)] = True
        return mask

    def take(self, token: int) -> None:
        pass


@dataclass
class _Heard:
    """The model, and all logits it gave."""

    decoder: Any
    logits: list[NDArray[np.float32]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = self.decoder.config

    def forward_tokens(self, *args: Any, **options: Any) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self.decoder.forward_tokens(*args, **options)
        if len(logits):
            self.logits.append(logits)
        return logits


def _sides(model: LocalModel, quick: bool) -> dict[str, _Side]:
    options: dict[str, tuple[ChunkOptions | None, bool]] = {
        FULL: (None, False),
        PREFIX: (None, True),
        NAIVE: (ChunkOptions(alpha=0.0), True),
        OURS: (ChunkOptions(), True),
    }
    if not quick:
        options["the paper's rule"] = (ChunkOptions(probe_tokens=0, head_tokens=0), True)
    return {name: _Side(model, chunks, prefixes=prefixes) for name, (chunks, prefixes) in options.items()}


def _metrics(sides: dict[str, _Side], quick: bool) -> list[Metric]:
    def total(name: str, of: Callable[[_Asked], float]) -> float:
        return sum(map(of, sides[name].asked))

    def middle(name: str, of: Callable[[_Asked], float]) -> float:
        return statistics.median(map(of, sides[name].asked))

    ours, found = sides[OURS], []
    passages = sum(each.passage_tokens for each in ours.asked)
    for peer, least in ((PREFIX, 1 / 0.49), (FULL, 1 / 0.35)):
        found.append(
            metric(
                "prompt tokens computed", "tokens", total(OURS, lambda each: each.computed), better="lower",
                peer=total(peer, lambda each: each.computed), peer_name=peer, least_ratio=least,
                note=f"{passages} tokens of passages, {ours.taken} of them taken, {ours.repaired} of these repaired",
            )
        )  # fmt: skip
        found += [
            metric("time to first token, median", "s", middle(OURS, lambda each: each.first_token), better="lower",
                   peer=middle(peer, lambda each: each.first_token), peer_name=peer,
                   least_ratio=1.6 if peer == PREFIX else None),
            metric("time to first token, all questions", "s", total(OURS, lambda each: each.first_token),
                   better="lower", peer=total(peer, lambda each: each.first_token), peer_name=peer),
            metric("time to first token, all questions, CPU", "s", total(OURS, lambda each: each.cpu), better="lower",
                   peer=total(peer, lambda each: each.cpu), peer_name=peer),
        ]  # fmt: skip
    naive = _against_full(sides, NAIVE)[0]
    for name in sides:
        if name in (FULL, PREFIX):
            continue
        divergence, agreement = _against_full(sides, name)
        share = total(name, lambda each: each.computed) / total(FULL, lambda each: each.computed)
        found.append(
            metric(
                f"KL to the full computation, {name}", "nats", divergence, better="lower", peer=naive, peer_name=NAIVE,
                least_ratio=2.0 if name == OURS and not quick else None, note=f"computes {share:.3f} of all tokens",
            )
        )  # fmt: skip
        found.append(
            metric(
                f"same likeliest token, {name}", "share", agreement, better="higher",
                least=0.95 if name == OURS and not quick else None,
            )
        )  # fmt: skip
    found.append(
        metric("KL to the full computation, prefix tree", "nats", _against_full(sides, PREFIX)[0], better="lower",
               most=1e-6, note="exact")
    )  # fmt: skip
    return found


def _against_full(sides: dict[str, _Side], name: str) -> tuple[float, float]:
    """Mean KL divergence over all forced tokens, and the share of them whose likeliest token is the same."""
    divergences, same = [], []
    for full, other in zip(sides[FULL].asked, sides[name].asked, strict=True):
        p, q = _log_softmax(full.logits), _log_softmax(other.logits)
        divergences += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        same += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
    return float(np.mean(divergences)), float(np.mean(same))


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
