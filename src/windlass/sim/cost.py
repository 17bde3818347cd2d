"""Seconds, joules and the error bar of an operator on a device, a collective among devices, a move between memories.

A matrix product of [m, k] and [k, n] takes

    t = t0 + (tc^p + tb^p)^(1/p)    tc = 2 m n k / (peak ec u)    tb = bytes / (bandwidth eb)
    u = g tiles / (ceil(tiles / units) units) + (1 - g)           tiles = ceil(m / 128) ceil(n / 128)

with five fitted numbers a device (ec, eb, p, t0, g): a data sheet and a handful of measurements describe a new device,
where Vidur (arXiv 2405.05465) profiles every operator of every model on it. Attention has its own ec and eb, everything
else is t0 and bytes. Collectives are alpha-beta lines, the lower envelope of one a protocol, since libraries change
protocol with the size; without a fit, the formula of the algorithm over the links.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.program import OpCost
from windlass.sim import collectives
from windlass.sim.cluster import ClusterSpec
from windlass.sim.hardware import Efficiency, HardwareSpec, Tier, catalogue

Floats = NDArray[np.float64]
CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"]

TILE = 128  # of matrix products, rows and columns; libraries choose it by shape, this one describes them on average
_FORMULA_ERROR = 0.30  # of a collective that nobody measured on its fabric
_ELEMENTWISE = ("elementwise", "copy")
_ATTENTION = ("attention_prefill", "attention_decode")
KINDS = ("gemm", *_ATTENTION, *_ELEMENTWISE)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A predicted time.

    Attributes:
        seconds: The prediction.
        joules: What the device draws in that time; None where power is not modelled.
        error: Relative calibration error of the class of operator: the truth lies about that far off on average.
    """

    seconds: float
    joules: float | None
    error: float

    def then(self, other: Estimate) -> Estimate:
        """This and then `other`: times add, and so do the bands around them."""
        total = self.seconds + other.seconds
        band = self.seconds * self.error + other.seconds * other.error
        return Estimate(total, _sum(self.joules, other.joules), band / total if total else 0.0)

    def beside(self, other: Estimate) -> Estimate:
        """This and `other` at the same time, on different resources: the longer of both."""
        longer = self if self.seconds >= other.seconds else other
        band = max(self.seconds * self.error, other.seconds * other.error)
        return Estimate(
            longer.seconds, _sum(self.joules, other.joules), band / longer.seconds if longer.seconds else 0.0
        )


@dataclass(frozen=True, slots=True)
class CollectiveFit:
    """Measured collectives on one fabric: `min over protocols (alpha + x / beta)`, x the payload in bytes.

    Attributes:
        fabric: Names of the inner link and, across machines, of the card: `nvlink3`, `nvlink3+ib`.
        ranks, nodes: How many devices on how many machines.
        protocols: (alpha in seconds, beta in bytes/s) each.
        error: Mean relative error on the rows of the fit.
    """

    kind: CollectiveKind
    fabric: str
    ranks: int
    nodes: int
    protocols: tuple[tuple[float, float], ...]
    error: float
    source: str

    def seconds(self, nbytes: float) -> float:
        return min(alpha + nbytes / beta for alpha, beta in self.protocols)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, beside the catalogue.

    Attributes:
        collectives: Fits by (kind, fabric, ranks, nodes).
        efficiencies: By the name of a device; wins over the catalogue's.
    """

    collectives: dict[tuple[str, str, int, int], CollectiveFit]
    efficiencies: dict[str, Efficiency] = field(default_factory=dict)

    @staticmethod
    def published() -> Calibration:
        """The fits of the catalogue, made from published tables."""
        return _published()


class CostModel:
    """Prices work on a cluster; pure, and the same for every simulator.

    Args:
        cluster: Where collectives run; None when only operators are priced.
        calibration: What was measured; None: the published fits.

    Example:
        >>> from windlass.sim.hardware import hardware
        >>> h100 = hardware("H100")
        >>> model = CostModel()
        >>> small, large = (model.op(OpCost.gemm(m, 8192, 8192, "bf16"), h100) for m in (1, 4096))
        >>> small.seconds < 60e-6 < 400e-6 < large.seconds
        True
    """

    def __init__(self, cluster: ClusterSpec | None = None, calibration: Calibration | None = None) -> None:
        self.cluster = cluster
        self.calibration = calibration if calibration is not None else Calibration.published()

    def op(self, cost: OpCost, device: HardwareSpec) -> Estimate:
        """Seconds of one operator alone on `device`.

        Raises:
            UsageError: an unknown class of operator, or the device does not compute in its data type.
        """
        fitted = self.efficiency(device)
        compute, memory, seconds = _times(cost, device, fitted)
        busy = max(compute, memory) / seconds if seconds else 0.0
        watts = device.idle_w + (device.tdp_w - device.idle_w) * busy
        return Estimate(seconds, watts * seconds, error_of(cost.kind, fitted))

    def efficiency(self, device: HardwareSpec) -> Efficiency:
        """The fitted numbers of `device`."""
        return self.calibration.efficiencies.get(device.name, device.efficiency)

    def collective(self, kind: CollectiveKind, nbytes: int, ranks: Sequence[int], algo: str = "auto") -> Estimate:
        """Seconds of a collective among `ranks`.

        Args:
            nbytes: For `all_reduce` the vector, for `all_gather` the joined result, for `reduce_scatter` the whole
                input of a rank, for `all_to_all` all that a rank sends, for `send_recv` the message.
            algo: `auto` takes a fit where there is one, else the fastest algorithm; or `ring`, `star`, `direct`,
                `doubling`, `two-level`.

        Raises:
            UsageError: no cluster, an unknown kind or algorithm, a negative size.
            NoPath: two ranks are not connected.
        """
        cluster = self._cluster()
        if not 0 <= nbytes < math.inf:
            raise UsageError(f"{kind} of {nbytes} bytes", hint="sizes are finite and count from 0")
        if len(set(ranks)) != len(ranks) or not ranks:
            raise UsageError(f"{kind} among ranks {tuple(ranks)}", hint="name each rank once, and at least one")
        if len(ranks) == 1:
            return Estimate(0.0, 0.0, 0.0)
        fit = self.fit_for(kind, ranks) if algo == "auto" else None
        if fit is not None:
            return Estimate(fit.seconds(nbytes), None, fit.error)
        return Estimate(collectives.seconds(kind, nbytes, ranks, cluster, algo), None, _FORMULA_ERROR)

    def fit_for(self, kind: CollectiveKind, ranks: Sequence[int]) -> CollectiveFit | None:
        """The measured line for these ranks, if somebody measured their fabric in this shape."""
        cluster = self._cluster()
        name, nodes = collectives.fabric_name(cluster, ranks)
        return self.calibration.collectives.get((kind, name, len(ranks), nodes)) if name else None

    def move(self, nbytes: int, src: Tier, dst: Tier) -> Estimate:
        """Seconds to copy `nbytes` from one memory to another of the same device."""
        if not 0 <= nbytes < math.inf:
            raise UsageError(f"a move of {nbytes} bytes", hint="sizes are finite and count from 0")
        seconds = max(src.latency, dst.latency) + nbytes / min(src.read_bw, dst.write_bw)
        return Estimate(seconds, None, _FORMULA_ERROR)

    def _cluster(self) -> ClusterSpec:
        if self.cluster is None:
            raise UsageError("this cost model knows no cluster", hint="CostModel(cluster)")
        return self.cluster


def gemm_seconds(m: Floats, n: Floats, k: Floats, nbytes: Floats, peak: Floats, device: Any, fitted: Any) -> Floats:
    """The formula above for arrays of shapes; `device` has `mem_bw` and `units`, `fitted` the five numbers."""
    tiles = np.ceil(m / TILE) * np.ceil(n / TILE)
    filled = tiles / (np.ceil(tiles / device.units) * device.units)
    used = fitted.quantised * filled + (1.0 - fitted.quantised)
    compute = 2.0 * m * n * k / (peak * fitted.compute * used)
    memory = nbytes / (device.mem_bw * fitted.memory)
    joined: Floats = fitted.start + (compute**fitted.p + memory**fitted.p) ** (1.0 / fitted.p)
    return joined


def error_of(kind: str, fitted: Efficiency) -> float:
    """Relative error of a class of operator."""
    if kind in _ATTENTION:
        return fitted.attention_error
    return fitted.error if kind == "gemm" else fitted.elementwise_error


def _times(cost: OpCost, device: HardwareSpec, fitted: Efficiency) -> tuple[float, float, float]:
    """Seconds of arithmetic alone, of memory alone, and of the operator."""
    if cost.kind not in KINDS:
        raise UsageError(f"unknown class of operator {cost.kind!r}", hint=f"one of {', '.join(KINDS)}")
    if cost.kind in _ELEMENTWISE:
        memory = cost.bytes / (device.mem_bw * fitted.elementwise_memory)
        return 0.0, memory, fitted.elementwise_start + memory
    part = min(cost.units, device.units) / device.units if cost.units else 1.0
    of_peak, of_memory = (
        (fitted.compute, fitted.memory) if cost.kind == "gemm" else (fitted.attention_compute, fitted.attention_memory)
    )
    used = _filled(cost, device, fitted) if cost.kind == "gemm" else 1.0
    compute = cost.flops / (device.peak(cost.dtype) * part * of_peak * used)
    memory = cost.bytes / (device.mem_bw * of_memory)
    if not compute or not memory:
        return compute, memory, fitted.start + compute + memory
    # Scaled by the larger one: a plain sum of powers overflows.
    most = max(compute, memory)
    joined = most * ((compute / most) ** fitted.p + (memory / most) ** fitted.p) ** (1.0 / fitted.p)
    return compute, memory, fitted.start + joined


def _filled(cost: OpCost, device: HardwareSpec, fitted: Efficiency) -> float:
    if len(cost.shape) < 2 or not fitted.quantised:
        return 1.0
    tiles = max(1, math.ceil(cost.shape[0] / TILE) * math.ceil(cost.shape[1] / TILE))
    filled = tiles / (math.ceil(tiles / device.units) * device.units)
    return fitted.quantised * filled + (1.0 - fitted.quantised)


@cache
def _published() -> Calibration:
    fits = {}
    for row in catalogue().get("collective", ()):
        protocols = tuple((alpha * 1e-6, beta * 1e9) for alpha, beta in row["protocols"])
        key = (row["kind"], row["fabric"], row["ranks"], row["nodes"])
        fits[key] = CollectiveFit(*key, protocols, row["error"], row["source"])
    return Calibration(fits)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
