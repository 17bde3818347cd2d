"""`kind = "serving"` of `windlass simulate`: a service on hardware that is not here, under the scheduler used here.

kind = "serving"
device = "A100"                  # of the catalogue; ranks = 2 splits the model over two of them
policy = "stall-free"            # or prefill-first, hybrid, decode-first
budget = "auto"                  # tokens of a step, or auto with tbt_slo_s
tbt_slo_s = 0.1
trace = "requests.csv"           # or lengths = [[1000, 100], [200, 50]] (prompt, answer)
rate = 5.0                       # Poisson arrivals of so many requests; without it the trace's own times
requests = 300
[model]                          # layers, width, heads, kv_heads, head, ffn, vocabulary; weights, activations
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from windlass.core.errors import UsageError
from windlass.core.progress import Progress
from windlass.fleet.trace import read
from windlass.serving.cost import DecoderShape, IterationCost, tensor_parallel
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.scheduler import DecodeFirst, HybridFull, PrefillFirst, QueuePolicy, StallFree
from windlass.serving.simulated import SimBatchExecutor, VirtualClock, simulate
from windlass.sim.cost import CostModel
from windlass.sim.hardware import hardware
from windlass.sim.report import SimReport, Slo
from windlass.sim.scenarios import LayerShapes
from windlass.sim.trace import RequestTrace

_FIELDS = (
    "kind device ranks policy budget tbt_slo_s ttft_slo_s trace lengths rate requests model seed page_tokens".split()
)
_POLICIES = ("stall-free", "prefill-first", "hybrid", "decode-first")


def serving(scenario: dict[str, Any], where: str, progress: Progress) -> SimReport:
    """Percentiles of what users of a service would see.

    Raises:
        UsageError: a field is missing, unknown, or of the wrong kind.
        UnknownDevice: no such device.
    """
    unknown = sorted(set(scenario) - set(_FIELDS))
    if unknown:
        raise UsageError(f"{where}: unknown field {', '.join(unknown)}", hint=f"fields: {', '.join(_FIELDS)}")
    model = _model(scenario, where)
    device, ranks = hardware(str(_needed(scenario, where, "device"))), _number(scenario, where, "ranks", 1)
    price = IterationCost(CostModel(), device, model) if ranks == 1 else tensor_parallel(device, int(ranks), model)
    page_tokens = int(_number(scenario, where, "page_tokens", 16))
    trace, policy = _trace(scenario, where), _policy(scenario, where, price)

    def engine(clock: VirtualClock) -> Engine:
        shared = trace.prefix_blocks is not None
        kv = KVManager(PageCounts(), price.kv_pages(page_tokens), page_tokens=page_tokens, share_prefixes=shared)
        unbounded = EngineConfig(max_queue=1 << 30, max_queue_per_tenant=1 << 30, max_queued_tokens=1 << 40)
        return Engine(SimBatchExecutor(price, clock), policy, kv, clock, config=unbounded)

    progress.start("simulate", None, "requests")
    run = simulate(trace, engine)
    progress.finish("simulate")
    slo = Slo(ttft=scenario.get("ttft_slo_s"), tpot=scenario.get("tbt_slo_s"))
    report = run.report(price, slo)
    report.assumptions.append(f"{device.name}: {device.efficiency.fitted_on or 'guessed from the data sheet'}")
    if run.rejected:
        report.metrics |= {f"rejected {name}": float(count) for name, count in run.rejected.items()}
    return report


def _model(scenario: dict[str, Any], where: str) -> DecoderShape:
    table = (
        dict(_needed(scenario, where, "model")) if isinstance(scenario.get("model"), dict) else scenario.get("model")
    )
    types = {name: table.pop(name) for name in ("weights", "activations") if isinstance(table, dict) and name in table}
    shape = LayerShapes.of(table, where)
    return DecoderShape(
        shape.layers, shape.width, shape.heads, shape.kv_heads, shape.head, shape.ffn, shape.vocabulary, **types
    )


def _policy(scenario: dict[str, Any], where: str, price: IterationCost) -> QueuePolicy:
    name = scenario.get("policy", "stall-free")
    budget, slo = scenario.get("budget", 512), scenario.get("tbt_slo_s")
    if name == "stall-free":
        if budget == "auto":
            return StallFree("auto", tbt_slo_s=slo, step_time=price, tile=128)
        return StallFree(int(_number(scenario, where, "budget", 512)))
    if name == "prefill-first":
        return PrefillFirst()
    if name == "hybrid":
        return HybridFull()
    if name == "decode-first":
        return DecodeFirst()
    raise UsageError(f"{where}: policy is {name!r}", hint=f"one of {', '.join(_POLICIES)}")


def _trace(scenario: dict[str, Any], where: str) -> RequestTrace:
    rate, count = scenario.get("rate"), int(_number(scenario, where, "requests", 300))
    seed = int(scenario.get("seed", 0))
    if "trace" in scenario:
        found = read(Path(where).parent / str(scenario["trace"]))
        if rate is None:
            return found.take(slice(0, count)) if "requests" in scenario else found  # type: ignore[arg-type]
        lengths: Any = (found.input_tokens, found.output_tokens)
    else:
        pairs = _needed(scenario, where, "lengths")
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise UsageError(f"{where}: lengths is {pairs!r}", hint="lengths = [[1000, 100]]: prompt and answer tokens")
        lengths = tuple(zip(*pairs, strict=True))
    return RequestTrace.poisson(float(_number(scenario, where, "rate", None)), count, lengths, seed)


def _needed(scenario: dict[str, Any], where: str, name: str) -> Any:
    if name not in scenario:
        raise UsageError(f"{where}: {name} is missing", hint=f"fields: {', '.join(_FIELDS)}")
    return scenario[name]


def _number(scenario: dict[str, Any], where: str, name: str, default: float | None) -> float:
    value = scenario.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UsageError(f"{where}: {name} is {value!r}", hint="a number above 0")
    return value
