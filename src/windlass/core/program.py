"""Work as plain records, and what decides about it apart from what runs it.

A *policy* (a parallel plan, an overlap schedule, a placement) is a generator: it yields operations and waits for them,
does no I/O, reads no clock and knows no device. An *executor* runs it: on real processes (`measured`), on real
processes with injected slowness (`emulated`), or on the virtual clock of `windlass.sim` (`simulated`). The same object
runs in all three.

    def program(self, state, request):
        first = yield Compute("up", multiply, (x, w), OpCost.gemm(64, 576, 576, "bf16"))
        halves = yield Wait(first)              # joins; the value of the operation
        total = yield AllReduce(halves)         # starts; returns what to wait for
        return (yield Wait(total))
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from windlass.core.errors import TensorValueInSimulation, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Mode = Literal["measured", "emulated", "simulated"]

ITEM_BYTES: dict[str, float] = {
    "fp64": 8,
    "fp32": 4,
    "tf32": 4,
    "bf16": 2,
    "fp16": 2,
    "fp8": 1,
    "int8": 1,
    "fp4": 0.5,
    "int4": 0.5,
}
"""Bytes of one number, by the names of data types that costs and the hardware catalogue use."""


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """The call will not happen; nothing when it already did."""


class Clock(Protocol):
    """Time as engines and live loops see it. A policy never holds one; it is only told `now`."""

    def now(self) -> float:
        """Seconds since a moment of the clock's own; never runs backwards."""
        ...

    def sleep(self, dt: float) -> None:
        """Return `dt` seconds later."""

    def call_later(self, dt: float, fn: Callable[..., object], *args: object) -> Timer:
        """Call `fn(*args)` once, `dt` seconds from now."""
        ...


class WallClock:
    """The clock of this machine. Calls that are due run in a thread of their own.

    Example:
        >>> clock = WallClock()
        >>> before = clock.now()
        >>> clock.sleep(0.001)
        >>> clock.now() > before
        True
    """

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, dt: float) -> None:
        time.sleep(dt)

    def call_later(self, dt: float, fn: Callable[..., object], *args: object) -> Timer:
        timer = threading.Timer(dt, fn, args)
        timer.daemon = True
        timer.start()
        return timer


@dataclass(kw_only=True)
class Report:
    """What a run of anything took and where its figures come from.

    Attributes:
        mode: `measured`, `emulated` or `simulated`; printed with every figure.
        seconds: On the clock of the mode.
        metrics: Further figures by name; the name says the unit where it is not a count or a ratio.
        error: Relative calibration error of `seconds`; None when measured.
        assumptions: What the figures rest on, one sentence each: devices, calibration, what was left out.
    """

    mode: Mode
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    assumptions: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class OpCost:
    """What an operation asks of a device, before any device is known.

    Attributes:
        flops: Arithmetic, a multiply-add counted as two.
        bytes: Moved to and from the fastest memory.
        dtype: Of the arithmetic, a key of `ITEM_BYTES`.
        kind: Class of operation, as the cost model fits them: `gemm`, `attention_prefill`, `attention_decode`,
            `elementwise`, `copy`.
        shape: What the class needs to know, e.g. (m, n, k) of a matrix product.
        units: Processors (SMs, cores) it occupies; None: as many as the device has.

    Raises:
        UsageError: a size is negative or not a number, or the data type is unknown.
    """

    flops: float
    bytes: float
    dtype: str
    kind: str
    shape: tuple[int, ...]
    units: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise UsageError(f"cost of a {self.kind}: unknown data type {self.dtype!r}", hint=f"one of {known}")
        for name, value in (("flops", self.flops), ("bytes", self.bytes), ("units", self.units or 0)):
            if not 0 <= value < math.inf:
                raise UsageError(f"cost of a {self.kind}: {name} is {value}", hint="sizes are finite and count from 0")

    @staticmethod
    def gemm(m: int, n: int, k: int, dtype: str, *, weights: str | None = None) -> OpCost:
        """The product of [m, k] and [k, n]; `weights` is the stored type of the second, when it is another.

        Example:
            >>> OpCost.gemm(1, 4096, 4096, "bf16").flops
            33554432
        """
        size = ITEM_BYTES.get(dtype, math.nan)
        weight_size = ITEM_BYTES.get(weights, math.nan) if weights is not None else size
        return OpCost(2 * m * n * k, (m * k + m * n) * size + k * n * weight_size, dtype, "gemm", (m, n, k))


@dataclass(frozen=True, slots=True)
class Shape:
    """What stands for an array in the simulator: how large it is, not what is in it.

    Touching its values raises `TensorValueInSimulation`: only `Compute` and `Observe` may look at data.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.ceil(math.prod(self.shape) * ITEM_BYTES[self.dtype])

    def _refuse(self, *_: object) -> Any:
        raise TensorValueInSimulation(
            f"a policy looked at the values of an array of shape {self.shape}",
            hint="decide by shapes, or yield an Observe for what depends on data",
        )

    __array__ = __getitem__ = __iter__ = __bool__ = __float__ = __int__ = __len__ = _refuse
    __add__ = __radd__ = __sub__ = __mul__ = __rmul__ = __matmul__ = __lt__ = __gt__ = _refuse


@dataclass(frozen=True, slots=True)
class Compute:
    """Run `fn(*args)` on the rank's device; operations of one stream run one after the other.

    Where there are only shapes, `fn` is not called: `out` stands for its result (None: the product's shape, else the
    first argument).
    """

    name: str
    fn: Callable[..., Any] | None
    args: tuple[Any, ...]
    cost: OpCost
    stream: str = "main"
    out: Any = None


@dataclass(frozen=True, slots=True)
class Send:
    """Hand `x` to rank `dst`, which receives it under the same `tag`. Its value is None."""

    dst: int
    x: Any
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Recv:
    """Take what rank `src` sent under `tag`; `like` has its shape and type. Its value is the array."""

    src: int
    like: Any
    tag: str = ""


@dataclass(frozen=True, slots=True)
class AllReduce:
    """The sum of every member's `x`, on every member. `group` None: all ranks."""

    x: Any
    algo: str = "auto"
    group: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class AllGather:
    """Every member's `x`, joined along the first axis in the order of `group`, on every member."""

    x: Any
    group: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ReduceScatter:
    """The sum of every member's `x`, of which each member keeps its own part along the first axis."""

    x: Any
    group: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class AllToAllV:
    """`xs[i]` goes to the i-th member; the value is the tuple of what each member sent here."""

    xs: tuple[Any, ...]
    group: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Bring `block` (anything with `nbytes`) to the memory tier called `to_tier`, from `from_tier`."""

    block: Any
    to_tier: str
    from_tier: str | None = None


@dataclass(frozen=True, slots=True)
class Observe:
    """A value that depends on data: `fn()` where there are data, `stand_in(generator)` in the simulator.

    It takes no time; a policy that yields one cannot be recorded as a fixed program.
    """

    name: str
    fn: Callable[[], Any]
    stand_in: Callable[[np.random.Generator], Any]


@dataclass(frozen=True, slots=True)
class Mark:
    """Note the time under `name`, e.g. `first_token` of a request. It takes no time."""

    name: str


Op = Compute | Send | Recv | AllReduce | AllGather | ReduceScatter | AllToAllV | Move | Observe | Mark
Collective = AllReduce | AllGather | ReduceScatter | AllToAllV


class Started(Protocol):
    """What `yield op` returns: an operation under way."""

    op: Op


class Wait:
    """Join operations. `yield Wait(a)` gives the value of `a`, `yield Wait(a, b)` a tuple of both."""

    __slots__ = ("started",)

    def __init__(self, *started: Started) -> None:
        if not started:
            raise UsageError("a Wait for nothing", hint="Wait(handle, ...) takes what yielding an operation returned")
        self.started = started


@dataclass
class RankState:
    """What a policy knows of where it runs.

    Attributes:
        rank, world: Its number among how many.
        values: Its own arrays and numbers, kept between programs.
    """

    rank: int
    world: int
    values: dict[str, Any] = field(default_factory=dict)


Program = Generator[Op | Wait, Any, Any]


class Policy(Protocol):
    """Decides, and only yields: `h = yield op` starts an operation, `v = yield Wait(h)` joins it."""

    def program(self, state: RankState, request: Any) -> Program:
        """The work of one rank for one request; what it returns is the rank's result."""
        ...


class OpTable(Protocol):
    """A recorded program, one row an operation, as columns: all that an executor needs of it.

    Attributes:
        id: int64 [N], unique.
        rank: int32 [N].
        kind: int16 [N], positions in `kinds`, e.g. F, B, SEND, ALL_REDUCE, OPT.
        stream: int16 [N], positions in `streams`; rows of one rank and stream run in table order.
        group: int32 [N], positions in `groups` (tuples of ranks); -1 for local work. A SEND and the RECV it belongs
            to have the group (source, destination) and match in table order.
        nbytes: int64 [N], payload of communication, memory traffic of local work.
        flops: float64 [N].
        dep_starts: int64 [N + 1]; the rows that row i waits for are `deps[dep_starts[i]:dep_starts[i + 1]]`.
        deps: int64, row numbers (not ids).
        dtype: Of the arithmetic.
    """

    id: NDArray[np.int64]
    rank: NDArray[np.int32]
    kind: NDArray[np.int16]
    stream: NDArray[np.int16]
    group: NDArray[np.int32]
    nbytes: NDArray[np.int64]
    flops: NDArray[np.float64]
    dep_starts: NDArray[np.int64]
    deps: NDArray[np.int64]
    kinds: Sequence[str]
    streams: Sequence[str]
    groups: Sequence[tuple[int, ...]]
    dtype: str


class Executor(Protocol):
    """Runs a policy on every rank, or a recorded program, and says how long it took on its clock."""

    mode: Mode

    def run(self, work: Policy | OpTable, request: Any = None, state: Any = None) -> Report: ...
