"""How long one step of the engine takes, before it runs: the price of a batch, from its shape alone.

On a device of the catalogue a step is composed of the operators of `sim.cost`: four products a layer over all tokens of
the batch, attention of prompt chunks by their query-key pairs and of generations by the context they read, what
normalises and activates, the logits, two all-reduces a layer when the model is split, and what the host needs between
steps. On this machine a step is described by six numbers, fitted to steps that really ran:

    t = overhead + (weights^p + (tokens a)^p)^(1/p) + pairs b + context c + samples d

Both are `StepTime`s: the budget of `StallFree` and the virtual clock of `SimBatchExecutor` read the same price.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.program import ITEM_BYTES, OpCost
from windlass.serving.batch import BatchShape
from windlass.sim.cluster import ClusterSpec
from windlass.sim.cost import CostModel
from windlass.sim.fitting import least_squares
from windlass.sim.hardware import HardwareSpec

HOST_SECONDS = 4e-3
"""Between two steps of an engine on a GPU, for scheduling and launching, unless measured."""
_SHARPNESS = 2.0  # p of the measured form: how fast reading weights gives way to arithmetic


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The sizes of a decoder that its cost depends on; `weights` and `activations` are stored data types."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head: int
    ffn: int
    vocabulary: int
    weights: str = "bf16"
    activations: str = "bf16"

    @classmethod
    def of(cls, config: Any, *, weights: str = "bf16", activations: str = "bf16") -> DecoderShape:
        """From a `models.config.ModelConfig`."""
        return cls(
            config.n_layers,
            config.hidden_size,
            config.n_heads,
            config.n_kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
            weights,
            activations,
        )

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of one token in all layers."""
        return 2.0 * self.layers * self.kv_heads * self.head * ITEM_BYTES[self.activations]

    @property
    def weight_bytes(self) -> float:
        """Of all layers and the output."""
        attention = self.width * (2 * self.heads + 2 * self.kv_heads) * self.head
        block = attention + 3 * self.width * self.ffn
        return (self.layers * block + self.width * self.vocabulary) * ITEM_BYTES[self.weights]

    def products(self, ranks: int = 1) -> tuple[tuple[int, int], ...]:
        """(n, k) of the products of a layer, on one of `ranks` devices."""
        query, both = self.heads * self.head // ranks, 2 * max(self.kv_heads // ranks, 1) * self.head
        return (
            (query + both, self.width),
            (self.width, query),
            (2 * self.ffn // ranks, self.width),
            (self.width, self.ffn // ranks),
        )


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where the time of a step goes.

    Attributes:
        compute_s: Products and attention of prompts.
        memory_s: Contexts of generations, and what reads and writes activations.
        network_s: All-reduces.
        overhead_s: The host, and the devices waiting for it.
        total_s: Their sum.
        power_w: Mean draw of all devices; NaN where power is not modelled.
    """

    compute_s: float
    memory_s: float
    network_s: float
    overhead_s: float
    total_s: float
    power_w: float


class Priced(Protocol):
    """Predicts a step, with its error: what the simulated executor runs on."""

    @property
    def error(self) -> float:
        """Relative error of its predictions."""
        ...

    def seconds(self, shape: BatchShape) -> float: ...


class IterationCost:
    """Prices steps of a model on a device, or split over several.

    Args:
        cost: Prices of operators; with a cluster when `ranks` is more than 1.
        device: What every rank runs on.
        model: Its sizes.
        ranks: Devices over which every layer is split.
        host_s: What passes between two steps.
        launch_s: How long the host needs to launch a step; a faster device waits for it. 0 for engines that replay
            recorded graphs; some 40 ms were measured for 80 layers launched one by one.

    Example:
        >>> from windlass.sim.hardware import hardware
        >>> mistral = DecoderShape(32, 4096, 32, 8, 128, 14336, 32000)
        >>> price = IterationCost(CostModel(), hardware("A100"), mistral)
        >>> decoding = BatchShape(tokens=32, samples=32, prefill_pairs=0.0, decode_context=32_000)
        >>> 0.012 < price.seconds(decoding) < 0.030
        True
    """

    def __init__(
        self,
        cost: CostModel,
        device: HardwareSpec,
        model: DecoderShape,
        *,
        ranks: int = 1,
        host_s: float = HOST_SECONDS,
        launch_s: float = 0.0,
    ) -> None:
        if ranks < 1 or model.heads % ranks:
            raise UsageError(f"{model.heads} heads split over {ranks} ranks", hint="choose a divisor")
        self.cost, self.device, self.model, self.ranks = cost, device, model, ranks
        self.host_s, self.launch_s = host_s, launch_s
        fitted = cost.efficiency(device)
        self.error = max(fitted.error, fitted.attention_error / 2)
        self._products: dict[int, float] = {}
        self._logits: dict[int, float] = {}
        query = model.heads * model.head // ranks
        self._per_pair = 4.0 * model.layers * query / (device.peak(model.activations) * fitted.attention_compute)
        self._per_context = model.kv_bytes_per_token / ranks / (device.mem_bw * fitted.attention_memory)
        item = ITEM_BYTES[model.activations]
        local = 2 * (model.heads + model.kv_heads) * model.head // ranks + 3 * model.ffn // ranks
        passes = model.layers * (10 * model.width + local) * item
        self._per_token = passes / (device.mem_bw * fitted.elementwise_memory)
        self._passes_start = model.layers * 6 * fitted.elementwise_start + 2 * model.layers * fitted.start

    def seconds(self, shape: BatchShape) -> float:
        """Seconds of a step of this shape."""
        return max(self.device_seconds(shape), self.launch_s) + self.host_s if shape.tokens else 0.0

    def device_seconds(self, shape: BatchShape) -> float:
        """Seconds in which the devices work on a step of this shape."""
        return (
            self._linear(shape.tokens)
            + self._head(shape.samples)
            + shape.prefill_pairs * self._per_pair
            + shape.decode_context * self._per_context
            + shape.tokens * self._per_token
            + self._passes_start
            + self._network(shape.tokens)
        )

    def iteration(self, shape: BatchShape) -> Breakdown:
        """The same, taken apart."""
        compute = self._linear(shape.tokens) + self._head(shape.samples) + shape.prefill_pairs * self._per_pair
        memory = shape.decode_context * self._per_context + shape.tokens * self._per_token + self._passes_start
        network = self._network(shape.tokens)
        total = self.seconds(shape)
        busy = (compute + memory) / total if total else 0.0
        watts = self.device.idle_w + (self.device.tdp_w - self.device.idle_w) * busy
        return Breakdown(compute, memory, network, total - compute - memory - network, total, self.ranks * watts)

    def kv_pages(self, page_tokens: int, *, share: float = 0.9) -> int:
        """Pages of keys and values that fit beside the weights, when the engine may use `share` of the memory.

        Raises:
            UsageError: the weights alone are larger.
        """
        free = self.ranks * self.device.mem_bytes * share - self.model.weight_bytes
        if free < self.model.kv_bytes_per_token * page_tokens:
            raise UsageError(
                f"{self.model.weight_bytes / 1e9:.1f} GB of weights leave no room for keys and values on "
                f"{self.ranks} {self.device.name}",
                hint="use more devices, or smaller weights",
            )
        return int(free / (self.model.kv_bytes_per_token * page_tokens))

    def _linear(self, tokens: int) -> float:
        # Steps come in a few hundred sizes; the scheduler asks a dozen times a step.
        found = self._products.get(tokens)
        if found is None:
            model = self.model
            operators = (
                OpCost.gemm(tokens, n, k, model.activations, weights=model.weights)
                for n, k in model.products(self.ranks)
            )
            found = model.layers * sum(self.cost.op(operator, self.device).seconds for operator in operators)
            self._products[tokens] = found
        return found

    def _head(self, samples: int) -> float:
        found = self._logits.get(samples)
        if found is None:
            model = self.model
            rows = OpCost.gemm(
                samples, model.vocabulary // self.ranks, model.width, model.activations, weights=model.weights
            )
            found = self._logits[samples] = self.cost.op(rows, self.device).seconds if samples else 0.0
        return found

    def _network(self, tokens: int) -> float:
        if self.ranks == 1:
            return 0.0
        nbytes = int(tokens * self.model.width * ITEM_BYTES[self.model.activations])
        each = self.cost.collective("all_reduce", nbytes, range(self.ranks)).seconds
        return 2 * self.model.layers * each


def tensor_parallel(device: HardwareSpec, ranks: int, model: DecoderShape) -> IterationCost:
    """A model split over `ranks` devices of one machine."""
    cluster = ClusterSpec.parse(f"1x{ranks}x{device.name}")
    return IterationCost(CostModel(cluster), device, model, ranks=ranks)


def fit_host(device_seconds: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """(launch_s, host_s) that turn what the devices need into what steps took, in relative error.

    Raises:
        UsageError: fewer than four steps, or one that took no time.
    """
    device, wall = np.array(device_seconds, np.float64), np.array(measured, np.float64)
    if device.size < 4 or device.size != wall.size or not (wall > 0).all():
        raise UsageError(f"{device.size} steps are too few to fit, or one took no time", hint="measure at least 4")

    def residuals(z: NDArray[np.float64]) -> NDArray[np.float64]:
        launch, host = np.exp(z)
        logs: NDArray[np.float64] = np.log((np.maximum(device, launch) + host) / wall)
        return logs

    # The corner of the maximum hides slopes from a start on its far side, so both sides are tried.
    starts = [np.log([part * float(wall.min()), 0.1 * float(wall.min())]) for part in (0.3, 0.9)]
    fits = [least_squares(residuals, start) for start in starts]
    launch, host = np.exp(min(fits, key=lambda z: float(np.abs(residuals(z)).sum()))).tolist()
    return launch, host


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """A step that ran: its shape and its seconds."""

    shape: BatchShape
    seconds: float


@dataclass(frozen=True, slots=True)
class StepFit:
    """What steps of one model on this machine cost, in seconds; the formula stands at the head of this module.

    Attributes:
        overhead, weights, token, pair, context, sample: Of a step, of reading the weights once, and of one of each.
        error: Median relative error on the steps of the fit.
    """

    overhead: float
    weights: float
    token: float
    pair: float
    context: float
    sample: float
    error: float

    def seconds(self, shape: BatchShape) -> float:
        """Seconds of a step of this shape."""
        arithmetic = shape.tokens * self.token
        linear: float = (self.weights**_SHARPNESS + arithmetic**_SHARPNESS) ** (1.0 / _SHARPNESS)
        attention = shape.prefill_pairs * self.pair + shape.decode_context * self.context
        return self.overhead + linear + attention + shape.samples * self.sample

    def to_json(self) -> dict[str, float]:
        """For the calibration record."""
        return asdict(self)


def fit_steps(steps: Sequence[MeasuredStep]) -> StepFit:
    """The six numbers that describe `steps` best, in relative error.

    Raises:
        UsageError: fewer than eight steps, or one that took no time.
    """
    if len(steps) < 8 or any(not 0 < step.seconds < math.inf for step in steps):
        raise UsageError(f"{len(steps)} steps are too few to fit, or one took no time", hint="measure at least 8")
    columns = np.array(
        [[s.shape.tokens, s.shape.prefill_pairs, s.shape.decode_context, s.shape.samples] for s in steps], np.float64
    )
    measured = np.array([step.seconds for step in steps])
    tokens, pairs, context, samples = columns.T

    def predicted(z: NDArray[np.float64]) -> NDArray[np.float64]:
        overhead, weights, token, pair, each_context, sample = np.exp(z)
        linear = (weights**_SHARPNESS + (tokens * token) ** _SHARPNESS) ** (1.0 / _SHARPNESS)
        total: NDArray[np.float64] = overhead + linear + pairs * pair + context * each_context + samples * sample
        return total

    def residuals(z: NDArray[np.float64]) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = np.log(predicted(z) / measured)
        return logs

    least, per_token = float(measured.min()), float((measured / np.maximum(tokens, 1.0)).min())
    start = np.log([least / 10, least / 2, per_token, per_token * 1e-3, per_token * 1e-3, least / 100])
    found = least_squares(residuals, start)
    error = float(np.median(np.abs(predicted(found) / measured - 1.0)))
    overhead, weights, token, pair, each_context, sample = np.exp(found).tolist()
    return StepFit(overhead, weights, token, pair, each_context, sample, error)
