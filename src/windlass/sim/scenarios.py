"""What a scenario file can ask of the simulator itself. Kinds of other areas stand in their own packages.

    kind = "operators"                 kind = "collectives"              kind = "prefill"
    devices = ["H100", "A100"]         cluster = "2x8xA100-IB"           cluster = "1x8xH100"
    dtype = "bf16"                     bytes = [65536, 268435456]        tokens = [1024, 8192]
    gemm = [[1, 4096, 4096]]           algorithms = ["auto", "ring"]     [model]
                                                                        layers = 80 ...

`cluster` may also be tables, as `ClusterSpec.from_toml` reads them. A scenario is a plain dictionary; every function
here takes it, where it came from, and a `Progress`, and returns a `SimReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from windlass.core.errors import UsageError
from windlass.core.program import AllReduce, Compute, OpCost, Program, RankState, Shape, Wait
from windlass.core.progress import Progress, check_cancelled
from windlass.sim.cluster import ClusterSpec
from windlass.sim.cost import CostModel
from windlass.sim.executor import SimExecutor
from windlass.sim.hardware import hardware
from windlass.sim.report import SimReport


def operators(scenario: dict[str, Any], where: str, progress: Progress) -> SimReport:
    """Seconds of matrix products on devices."""
    _only(scenario, where, ("kind", "devices", "dtype", "gemm"))
    dtype = scenario.get("dtype", "bf16")
    metrics, worst, assumptions = {}, 0.0, []
    model = CostModel()
    for name in _list(scenario, where, "devices"):
        check_cancelled(progress)
        spec = hardware(str(name))
        assumptions.append(f"{spec.name}: {spec.efficiency.fitted_on or 'guessed from the data sheet'}")
        for shape in _list(scenario, where, "gemm"):
            m, n, k = _shape(shape, where)
            estimate = model.op(OpCost.gemm(m, n, k, dtype), spec)
            metrics[f"{spec.name} {m}x{n}x{k} s"] = estimate.seconds
            worst = max(worst, estimate.error)
    return SimReport(
        mode="simulated", seconds=sum(metrics.values()), metrics=metrics, error=worst, assumptions=assumptions
    )


def collectives(scenario: dict[str, Any], where: str, progress: Progress) -> SimReport:
    """Seconds of an all-reduce by size and algorithm."""
    _only(scenario, where, ("kind", "cluster", "bytes", "algorithms"))
    cluster = cluster_of(scenario, where)
    model = CostModel(cluster)
    ranks = range(len(cluster.devices))
    metrics, worst = {}, 0.0
    for nbytes in _list(scenario, where, "bytes"):
        for algorithm in scenario.get("algorithms", ["auto"]):
            check_cancelled(progress)
            estimate = model.collective("all_reduce", int(nbytes), ranks, str(algorithm))
            metrics[f"all_reduce {nbytes} B {algorithm} s"] = estimate.seconds
            worst = max(worst, estimate.error)
    fitted = model.fit_for("all_reduce", ranks)
    basis = f"`auto` from {fitted.source}" if fitted is not None else "formulas over the links, nobody measured them"
    return SimReport(mode="simulated", seconds=sum(metrics.values()), metrics=metrics, error=worst, assumptions=[basis])


def prefill(scenario: dict[str, Any], where: str, progress: Progress) -> SimReport:
    """Seconds until prompts are read, one tensor-parallel model over all devices; the last run's trace is kept."""
    _only(scenario, where, ("kind", "cluster", "tokens", "model", "dtype"))
    cluster = cluster_of(scenario, where)
    model = LayerShapes.of(scenario.get("model"), where)
    metrics, report = {}, None
    for tokens in _list(scenario, where, "tokens"):
        check_cancelled(progress)
        policy = TensorParallelPrefill(model, int(tokens), scenario.get("dtype", "bf16"))
        report = SimExecutor(cluster).run(policy)
        metrics[f"prefill {tokens} tokens s"] = report.seconds
    if report is None:
        raise UsageError(f"{where}: tokens is empty", hint="tokens = [1024]")
    report.metrics |= metrics
    return report


@dataclass(frozen=True, slots=True)
class LayerShapes:
    """The sizes of a decoder that its cost depends on."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    vocabulary: int

    @classmethod
    def of(cls, table: Any, where: str) -> LayerShapes:
        """From a scenario's `[model]`.

        Raises:
            UsageError: a size is missing, unknown, or no whole number above 0.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(table, dict) or set(table) != set(names):
            raise UsageError(f"{where}: [model] has {sorted(table or ())}", hint=f"it needs {', '.join(names)}")
        for name in names:
            if not isinstance(table[name], int) or table[name] < 1:
                raise UsageError(f"{where}: [model] {name} is {table[name]!r}", hint="a whole number above 0")
        return cls(**table)


@dataclass(frozen=True, slots=True)
class TensorParallelPrefill:
    """A policy: read one prompt, heads and ffn split over all ranks, two all-reduces a layer."""

    model: LayerShapes
    tokens: int
    dtype: str = "bf16"

    def program(self, state: RankState, request: Any) -> Program:
        """The layers one after the other, and the logits of the last token."""
        model, dtype, count, tokens = self.model, self.dtype, state.world, self.tokens
        query = model.heads * model.head // count
        both = 2 * max(model.kv_heads // count, 1) * model.head
        hidden = Shape((tokens, model.width), dtype)
        norm = OpCost(4.0 * tokens * model.width, 2.0 * hidden.nbytes, dtype, "elementwise", hidden.shape)
        # Causal: half of the square.
        square = 2.0 * tokens * tokens * query
        touched = 2.0 * tokens * (2 * query + both)
        attend = OpCost(square, touched, dtype, "attention_prefill", (tokens, tokens, query))
        activate = OpCost(0.0, 2.0 * 3 * tokens * model.ffn / count, dtype, "elementwise", (tokens, model.ffn // count))
        block = (
            ("norm", norm),
            ("qkv", OpCost.gemm(tokens, query + both, model.width, dtype)),
            ("attention", attend),
            ("attention out", OpCost.gemm(tokens, model.width, query, dtype)),
            (None, norm),
            ("norm", norm),
            ("up", OpCost.gemm(tokens, 2 * model.ffn // count, model.width, dtype)),
            ("activation", activate),
            ("down", OpCost.gemm(tokens, model.width, model.ffn // count, dtype)),
            (None, norm),
        )
        for _ in range(model.layers):
            for name, cost in block:
                if name is not None:
                    yield Wait((yield Compute(name, None, (hidden,), cost)))
                elif count > 1:
                    yield Wait((yield AllReduce(hidden)))
        logits = OpCost.gemm(1, model.vocabulary // count, model.width, dtype)
        return (yield Wait((yield Compute("logits", None, (hidden,), logits))))


def cluster_of(scenario: dict[str, Any], where: str) -> ClusterSpec:
    """The cluster of a scenario: a text that `ClusterSpec.parse` reads, or its tables."""
    found = scenario.get("cluster")
    if isinstance(found, str):
        return ClusterSpec.parse(found)
    return ClusterSpec.from_document(scenario, where)


def _list(scenario: dict[str, Any], where: str, name: str) -> Sequence[Any]:
    found = scenario.get(name)
    if not isinstance(found, list) or not found:
        raise UsageError(f"{where}: {name} is {found!r}", hint=f"{name} is a list with at least one value")
    return found


def _shape(value: Any, where: str) -> tuple[int, int, int]:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(size, int) and size > 0 for size in value):
        raise UsageError(f"{where}: gemm has {value!r}", hint="each is [m, n, k]")
    return value[0], value[1], value[2]


def _only(scenario: dict[str, Any], where: str, known: Sequence[str]) -> None:
    unknown = sorted(set(scenario) - set(known) - ({"link"} if "cluster" in known else set()))
    if unknown:
        raise UsageError(f"{where}: unknown field {', '.join(unknown)}", hint=f"fields: {', '.join(known)}")
