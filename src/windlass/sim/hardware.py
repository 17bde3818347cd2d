"""Named hardware and how it is wired: the one catalogue, read from `hardware.toml` beside this file.

Units are SI throughout: FLOP/s, bytes, bytes/s, seconds, watts. Every row says where its numbers come from and whether
somebody checked them.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from windlass.core.errors import NotFound, UsageError
from windlass.core.program import ITEM_BYTES

Duplex = Literal["full", "half"]
_UNMEASURED = 0.30  # relative error of a guess from the data sheet alone
_BORROWED = 0.20  # of the efficiencies of a relative


class UnknownDevice(NotFound):
    """A device that the catalogue does not have.

    Attributes:
        nearest: The most similar names it does have.
    """

    def __init__(self, name: str) -> None:
        self.nearest = difflib.get_close_matches(name.lower(), [known.lower() for known in _index()], n=3, cutoff=0.4)
        self.nearest = [known for known in _index() if known.lower() in self.nearest]
        hint = f"did you mean {' or '.join(self.nearest)}?" if self.nearest else "`devices()` lists them"
        super().__init__(f"unknown device {name!r}", hint=hint)


@dataclass(frozen=True, slots=True)
class Tier:
    """A kind of memory of a device. capacity in bytes, read_bw and write_bw in bytes/s, latency in seconds."""

    name: str
    capacity: int
    read_bw: float
    write_bw: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        positive(f"tier {self.name}", capacity=self.capacity, read_bw=self.read_bw, write_bw=self.write_bw)
        not_negative(f"tier {self.name}", latency=self.latency)


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What a device makes of its peak: the fitted numbers of the operator costs.

    Attributes:
        compute, memory: Parts of peak FLOP/s and bandwidth that a large matrix product reaches.
        p: How sharply it turns from one limit to the other; large: the worse of both.
        start: Seconds of any kernel, however small.
        quantised: 0 to 1, how much a last, partly filled wave of tiles costs.
        attention_compute, attention_memory: The same parts for attention.
        elementwise_memory, elementwise_start: Part of the bandwidth that a normalisation or an activation reaches,
            and its seconds before that.
        error, attention_error, elementwise_error: Mean relative error of each class on measured rows, or a guess.
        fitted_on: The table it comes from; empty when nobody measured the device.
    """

    compute: float = 0.65
    memory: float = 0.80
    p: float = 1.6
    start: float = 4e-6
    quantised: float = 0.3
    attention_compute: float = 0.45
    attention_memory: float = 0.70
    elementwise_memory: float = 0.70
    elementwise_start: float = 4e-6
    error: float = _UNMEASURED
    attention_error: float = _UNMEASURED
    elementwise_error: float = _UNMEASURED
    fitted_on: str = ""


@dataclass(frozen=True, slots=True)
class Fabric:
    """A kind of link: bandwidth in bytes/s a direction, latency in seconds."""

    name: str
    bandwidth: float
    latency: float
    duplex: Duplex = "full"
    medium: str | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """One device.

    Attributes:
        flops: Data type -> dense FLOP/s (OP/s for integers).
        tiers: Memory, fast to slow; the first holds activations.
        units: SMs, cores or dies.
        kernel_launch_s: Seconds between two launches of a host that does nothing else.
        tdp_w, idle_w: Watts at full load and doing nothing.
        l2_bytes: Size of the last cache; None when unknown.
        freq_mhz: (lowest, base, highest) clock; None when unknown.
        usd_per_h: Price of renting it; None when unknown.
        link, host: The fabric to its neighbours and to its host's memory; None: it has none.
        source, verified: Where the numbers come from, and whether they were checked against published tables.
    """

    name: str
    flops: dict[str, float]
    tiers: tuple[Tier, ...]
    units: int
    kernel_launch_s: float
    tdp_w: float
    idle_w: float
    l2_bytes: int | None
    freq_mhz: tuple[int, int, int] | None
    usd_per_h: float | None
    efficiency: Efficiency
    link: Fabric | None
    host: Fabric | None
    source: str
    verified: bool

    def __post_init__(self) -> None:
        positive(self.name, units=self.units, **{f"flops of {dtype}": value for dtype, value in self.flops.items()})
        not_negative(self.name, kernel_launch_s=self.kernel_launch_s, tdp_w=self.tdp_w, idle_w=self.idle_w)
        if not self.tiers or not self.flops:
            raise UsageError(f"device {self.name} has no memory tier or no flops", hint="give it at least one of each")

    def __hash__(self) -> int:
        return hash((self.name, self.source))

    @property
    def mem_bytes(self) -> int:
        return self.tiers[0].capacity

    @property
    def mem_bw(self) -> float:
        return self.tiers[0].read_bw

    def peak(self, dtype: str) -> float:
        """FLOP/s of `dtype`. A narrower stored type that the device cannot compute with runs at the next wider one.

        Raises:
            UsageError: the device has neither `dtype` nor anything wider.
        """
        for known in _WIDER.get(dtype, (dtype,)):
            if known in self.flops:
                return self.flops[known]
        raise UsageError(
            f"{self.name} does not compute in {dtype}", hint=f"it has {', '.join(sorted(self.flops))}; choose one"
        )


_WIDER: dict[str, tuple[str, ...]] = {
    "int4": ("int4", "int8", "bf16", "fp16", "fp32"),
    "fp4": ("fp4", "fp8", "bf16", "fp16", "fp32"),
    "int8": ("int8", "bf16", "fp16", "fp32"),
    "fp8": ("fp8", "bf16", "fp16", "fp32"),
    "fp16": ("fp16", "bf16", "tf32", "fp32"),
    "bf16": ("bf16", "fp16", "tf32", "fp32"),
    "tf32": ("tf32", "fp32"),
    "fp32": ("fp32", "fp64"),
    "fp64": ("fp64",),
}


def hardware(name: str) -> HardwareSpec:
    """The device called `name`, by its name or an alias in any case; `local` is this machine as it was calibrated.

    Raises:
        UnknownDevice: no such row; the message names the nearest ones.

    Example:
        >>> hardware("h100").units
        132
    """
    if name.lower() == "local":
        from windlass.sim.calibrate import local_device

        return local_device()
    found = {known.lower(): row for known, row in _index().items()}.get(name.lower())
    if found is None:
        raise UnknownDevice(name)
    return _device(found)


def devices() -> tuple[HardwareSpec, ...]:
    """Every row of the catalogue."""
    return tuple(_device(row["name"]) for row in catalogue()["device"])


def fabric(name: str) -> Fabric:
    """The kind of link called `name`.

    Raises:
        NotFound: no such row.
    """
    for row in catalogue()["fabric"]:
        if row["name"] == name.lower():
            return Fabric(
                name=row["name"],
                bandwidth=row["gbps"] * 1e9,
                latency=row["latency_us"] * 1e-6,
                duplex=row.get("duplex", "full"),
                medium=row.get("medium"),
                source=row["source"],
            )
    known = ", ".join(row["name"] for row in catalogue()["fabric"])
    raise NotFound(f"unknown fabric {name!r}", hint=f"one of {known}")


@cache
def catalogue() -> dict[str, Any]:
    """The tables of `hardware.toml` as they stand there."""
    return tomllib.loads(files("windlass.sim").joinpath("hardware.toml").read_text(encoding="utf-8"))


@cache
def _index() -> dict[str, str]:
    """Names and aliases -> the name of the row."""
    rows = catalogue()["device"]
    return {known: row["name"] for row in rows for known in (row["name"], *row.get("aliases", ()))}


@cache
def _device(name: str) -> HardwareSpec:
    row = next(row for row in catalogue()["device"] if row["name"] == name)
    unknown = set(row["tflops"]) - set(ITEM_BYTES)
    if unknown:
        raise ValueError(f"hardware.toml, {name}: unknown data type {', '.join(sorted(unknown))}")
    return HardwareSpec(
        name=name,
        flops={dtype: value * 1e12 for dtype, value in row["tflops"].items()},
        tiers=tuple(_tier(tier) for tier in row["memory"]),
        units=row["units"],
        kernel_launch_s=row.get("launch_us", 2.5) * 1e-6,
        tdp_w=row["tdp_w"],
        idle_w=row["idle_w"],
        l2_bytes=int(row["l2_mib"] * 2**20) if "l2_mib" in row else None,
        freq_mhz=tuple(row["mhz"]) if "mhz" in row else None,
        usd_per_h=row.get("usd_per_h"),
        efficiency=_efficiency(row),
        link=fabric(row["link"]) if "link" in row else None,
        host=fabric(row["host"]) if "host" in row else None,
        source=row["source"],
        verified=row["verified"],
    )


def _tier(row: dict[str, Any]) -> Tier:
    latency = row.get("latency_us", 0.0) * 1e-6
    return Tier(row["name"], int(row["gib"] * 2**30), row["read"] * 1e9, row["write"] * 1e9, latency)


def _efficiency(row: dict[str, Any]) -> Efficiency:
    if "gemm" in row:
        compute, memory, p, start_us, quantised = row["gemm"]["fit"]
        elementwise_memory, elementwise_start_us = row["elementwise"]["fit"]
        return Efficiency(
            compute=compute,
            memory=memory,
            p=p,
            start=start_us * 1e-6,
            quantised=quantised,
            elementwise_memory=elementwise_memory,
            elementwise_start=elementwise_start_us * 1e-6,
            error=row["gemm"]["error"],
            elementwise_error=row["elementwise"]["error"],
            fitted_on=row["gemm"]["table"],
        )
    if "like" in row:
        lent = _device(row["like"]).efficiency
        error = max(lent.elementwise_error, _BORROWED)
        return replace(lent, error=_BORROWED, elementwise_error=error, fitted_on=f"borrowed from {row['like']}")
    return Efficiency()


def positive(what: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{what}: {name.replace('_', ' ')} is {value}", hint="it must be finite and above 0")


def not_negative(what: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{what}: {name.replace('_', ' ')} is {value}", hint="it must be finite and not negative")
