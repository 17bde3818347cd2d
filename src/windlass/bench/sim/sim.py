"""`sim`: how fast virtual time passes, and how far its prices lie from what was measured.

Events: the same model (processes that sleep, each for its own time) on our engine and on SimPy, in turn. Prices: five
numbers a device are fitted on the published operators of one model, and asked about those of another; the peer is the
pure roofline, peak rates from the data sheet. Collectives are held to their published rows. Without the published
tables the fit is made on products measured on this machine, half of them held out. At the end, one large run: ten
thousand requests on 64 devices, and the same with twice as many.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from windlass.bench.harness import BenchContext, Comparison, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.bench.sim import tables
from windlass.core.program import Compute, Mark, OpCost, Program, RankState, Wait
from windlass.serving.batch import BatchShape
from windlass.serving.cost import DecoderShape, fit_host, tensor_parallel
from windlass.sim.calibrate import Row, fit, fit_collective, measured_products, prediction_errors
from windlass.sim.cluster import ClusterSpec
from windlass.sim.cost import CostModel
from windlass.sim.engine import Sim, Steps
from windlass.sim.executor import SimExecutor
from windlass.sim.hardware import HardwareSpec, hardware
from windlass.sim.scenarios import LayerShapes, TensorParallelPrefill
from windlass.sim.trace import RequestTrace, TracedRequest

_DEVICES = (("H100", "h100"), ("A100", "a100"), ("A40", "a40"))
_SHAPES = (
    ("A100, 8 on one machine", "a100_dgx_all_reduce", 8, 8, 0.08),
    ("H100, 8 on one machine", "h100_dgx_all_reduce", 8, 8, 0.08),
    ("A100, 16 on two machines", "a100_dgx_all_reduce", 16, 8, 0.15),
)
_SHORT = 2048  # tokens of a batch of prompts; of more, that engine split some and was slow to reduce over 8 GPUs
_LLAMA2 = DecoderShape(80, 8192, 64, 8, 128, 28672, 32000)
_MODELS = {
    "Llama-3.3-70B-Instruct": LayerShapes(80, 8192, 64, 8, 128, 28672, 128256),
    "Qwen2.5-72B-Instruct": LayerShapes(80, 8192, 64, 8, 128, 29568, 152064),
}


def run(context: BenchContext) -> BenchReport:
    metrics = [_events(context)]
    metrics += _prices(context) if tables.folder() is not None else _local_prices(context)
    if tables.folder() is not None and not context.quick:
        metrics += _prefills()
        metrics += _services()
    metrics += _large_run(context)
    return context.report(
        mode="simulated",
        workload="processes that sleep; published operators of Llama-2 and all-reduces; a trace on 64 devices",
        metrics=metrics,
    )


def _events(context: BenchContext) -> Metric:
    processes, sleeps = (2000, 20) if context.quick else (2000, 200)
    simpy = peer_module("simpy")

    def delays(number: int) -> float:
        return 1.0 + number * 1e-3

    def ours() -> int:
        sim = Sim()

        def sleeper(delay: float) -> Steps:
            for _ in range(sleeps):
                yield delay

        for number in range(processes):
            sim.spawn(sleeper(delays(number)))
        return sim.run().events

    def peer() -> int:
        assert simpy is not None
        environment = simpy.Environment()

        def sleeper(delay: float) -> Steps:
            for _ in range(sleeps):
                yield environment.timeout(delay)

        for number in range(processes):
            environment.process(sleeper(delays(number)))
        environment.run()
        return processes * (sleeps + 1)

    sides: Comparison = compare(ours, peer if simpy else None, repeats=5, progress=context.progress)
    count = processes * (sleeps + 1)
    return metric(
        "events, measured",
        "events/s of CPU",
        count / sides.ours.cpu_median,
        better="higher",
        peer=count / sides.peer.cpu_median if sides.peer else None,
        peer_name=f"SimPy {simpy.__version__}" if simpy else "SimPy",
        least_ratio=2.0,
        note=f"{processes} processes, {sleeps} sleeps each; wall {sides.ours.spread}"
        + (f", peer {sides.peer.spread}" if sides.peer else ""),
    )


def _prices(context: BenchContext) -> list[Metric]:
    folder = tables.folder()
    assert folder is not None
    metrics = []
    for name, prefix in _DEVICES[:1] if context.quick else _DEVICES:
        spec = hardware(name)
        rows = tables.products(folder / f"{prefix}_llama2_7b_mlp.csv.gz")
        held_out = folder / f"{prefix}_llama2_70b_mlp.csv.gz"
        fitted = fit(rows, spec)
        metrics.append(_error_metric(f"{name}, products of the fit", prediction_errors(rows, spec, fitted), rows, spec))
        if held_out.is_file():
            others = tables.products(held_out)
            errors = prediction_errors(others, spec, fitted)
            metrics.append(_error_metric(f"{name}, products of another model", errors, others, spec, most=0.10))
            metrics.append(
                metric(f"{name}, another model, p95", "", float(np.quantile(errors, 0.95)), better="lower", most=0.30)
            )
    for name, table, ranks, per_node, most in _SHAPES[:1] if context.quick else _SHAPES:
        measured = tables.collective(folder / f"{table}.csv.gz", "all_reduce", ranks, per_node)
        lines = fit_collective(measured, kind="all_reduce", fabric=table, ranks=ranks, nodes=ranks // per_node)
        single = fit_collective(measured, kind="all_reduce", fabric=table, ranks=ranks, protocols=1)
        metrics.append(
            metric(
                f"all-reduce error, {name}",
                "",
                lines.error,
                better="lower",
                peer=single.error,
                peer_name="one alpha-beta line",
                most=most,
                note=f"mean relative error over {len(measured)} rows",
            )
        )
    return metrics


def _prefills() -> list[Metric]:
    """Whole prefills of models that had no part in any fit, measured by other people on eight H100."""
    folder = tables.folder()
    assert folder is not None
    executor = SimExecutor(ClusterSpec.parse("1x8xH100-IB"))
    metrics = []
    for name, shapes in _MODELS.items():
        whole, computed = [], []
        for tokens, seconds, without in tables.prefill_times(folder.parent / "tokenweave" / "figure_11a.csv")[name]:
            report = executor.run(TensorParallelPrefill(shapes, tokens))
            talking = sum(span.end - span.begin for span in report.spans if span.rank == 0 and span.stream == "comm")
            whole.append(report.seconds / seconds - 1)
            computed.append((report.seconds - talking) / without - 1)
        for what, errors, most in (("", whole, 0.10), (" without communication", computed, None)):
            note = f"TokenWeave's table, {len(errors)} lengths from 1,024 to 65,536 tokens, mean {np.mean(errors):+.1%}"
            error = float(np.mean(np.abs(errors)))
            title = f"error, prefill of {name} on 8 H100{what}"
            metrics.append(metric(title, "", error, better="lower", most=most, note=note))
    return metrics


def _services() -> list[Metric]:
    """Steps of a whole engine that other people measured: Llama2-70B on two, four and eight GPUs.

    The engine launched its kernels one by one, which no data sheet tells: two numbers of its host are fitted on the
    token times of two and eight GPUs. Prompts have no part in it, nor has anything on four GPUs.
    """
    folder = tables.folder()
    assert folder is not None
    profiles = folder.parent.parent / "fleet" / "llm_gpu_profiles_splitwise.csv.gz"
    metrics = []
    for name, device in (("A100", "a100-80gb"), ("H100", "h100-80gb")):
        prices = {ranks: tensor_parallel(hardware(name), ranks, _LLAMA2) for ranks in (2, 4, 8)}
        rows = []
        for ranks, prompt, batch, answer, prompt_s, token_s in tables.service_times(profiles, "llama2-70b", device):
            shapes = (
                BatchShape(prompt * batch, batch, batch * prompt * prompt / 2, 0),
                BatchShape(batch, batch, 0.0, batch * (prompt + answer // 2)),
            )
            seconds = (prices[ranks].device_seconds(shape) for shape in shapes)
            rows.append((ranks, *seconds, prompt_s, token_s, prompt * batch))
        table = np.array(rows)
        ends = table[table[:, 0] != 4]
        launch, host = fit_host(ends[:, 2].tolist(), ends[:, 4].tolist())
        middle, short = table[table[:, 0] == 4], table[:, 5] <= _SHORT
        note = (
            f"launch {launch * 1e3:.0f} ms, host {host * 1e3:.1f} ms, from token times on 2 and 8; Splitwise's profiles"
        )
        parts = (
            ("a token on 4", 2, middle, 0.15),
            (f"prompts up to {_SHORT:,} tokens on 2, 4 and 8", 1, table[short], 0.15),
            ("longer prompts", 1, table[~short], None),
        )
        for what, column, chosen, most in parts:
            predicted = np.maximum(chosen[:, column], launch) + host
            error = float(np.mean(np.abs(predicted / chosen[:, column + 2] - 1)))
            metrics.append(metric(f"error, Llama2-70B, {what} {name}", "", error, better="lower", most=most, note=note))
    return metrics


def _local_prices(context: BenchContext) -> list[Metric]:
    """Fitted on every other product measured here, asked about the rest."""
    spec, rows = measured_products(context.progress)
    fitted = fit(rows[0::2], spec)
    errors = prediction_errors(rows[1::2], spec, fitted)
    return [_error_metric("products on this machine, held out", errors, rows[1::2], spec, note="no published tables")]


def _error_metric(
    name: str,
    errors: Sequence[float] | np.ndarray,
    rows: list[Row],
    spec: HardwareSpec,
    *,
    most: float | None = None,
    note: str = "",
) -> Metric:
    roofline = [
        abs(max(cost.flops / spec.peak(cost.dtype), cost.bytes / spec.mem_bw) / seconds - 1) for cost, seconds in rows
    ]
    return metric(
        f"error, {name}",
        "",
        float(np.mean(errors)),
        better="lower",
        peer=float(np.mean(roofline)),
        peer_name="peak roofline",
        most=most,
        note=f"mean relative error over {len(rows)} rows; {note}".removesuffix("; "),
    )


class _Answer:
    """Rank r answers every 64th request: one prompt, then its tokens in blocks of 16."""

    def program(self, state: RankState, request: TracedRequest) -> Program:
        if request.index % state.world != state.rank:
            return
        prompt = OpCost.gemm(request.input_tokens, 4096, 4096, "bf16")
        yield Wait((yield Compute("prompt", None, (), prompt)))
        yield Wait((yield Mark("first_token")))
        for _ in range(-(-request.output_tokens // 16)):
            yield Wait((yield Compute("tokens", None, (), OpCost.gemm(16, 4096, 4096, "bf16"))))


def _large_run(context: BenchContext) -> list[Metric]:
    requests = 500 if context.quick else 10_000
    executor = SimExecutor(ClusterSpec.parse("8x8xH100"), CostModel(), seed=context.seed)
    lengths = ([200, 800, 1500, 3000], [20, 130, 300, 400])
    seconds = []
    for count in (requests, 2 * requests):
        trace = RequestTrace.poisson(5000.0, count, lengths, context.seed)
        before = time.process_time()
        executor.run(_Answer(), trace)
        seconds.append(time.process_time() - before)
    return [
        metric(
            "a trace on 64 devices, measured",
            "s of CPU",
            seconds[0],
            better="lower",
            most=60.0,
            note=f"{requests} requests",
        ),
        metric("twice the requests, measured", "times the CPU", seconds[1] / seconds[0], better="lower", most=2.2),
    ]
