"""When requests arrive and how long they are: one record for real load generators, simulators and planners alike.

Columns are NumPy arrays of one length, sorted by arrival, which starts at 0. Files of other formats are read by
`windlass.fleet.trace`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import ReadError, UsageError

FORMAT = "windlass-requests-1"
Lengths = tuple[NDArray[np.int32], NDArray[np.int32]]


class TraceError(ReadError):
    """A trace cannot be used.

    Attributes:
        path: The file; empty for a trace in memory.
        line: Where in it, counted from 1; 0 when it is about the whole.
    """

    def __init__(self, path: str | Path, line: int, what: str, *, hint: str = "") -> None:
        self.path, self.line = str(path), line
        place = f"{path}, line {line}: " if line else f"{path}: " if str(path) else ""
        super().__init__(f"{place}{what}", reason="broken", hint=hint or "remove the row, or repair the file")

    def __reduce__(self) -> tuple[object, ...]:
        place = f"{self.path}, line {self.line}: " if self.line else f"{self.path}: " if self.path else ""
        return (_trace_error, (self.path, self.line, self.what.removeprefix(place), self.hint))


def _trace_error(path: str, line: int, what: str, hint: str) -> TraceError:
    return TraceError(path, line, what, hint=hint)


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One row of a trace."""

    index: int
    arrival_s: float
    input_tokens: int
    output_tokens: int
    kind: str
    model: str
    session: int | None
    prefix_blocks: tuple[int, ...]


@dataclass(eq=False)
class RequestTrace:
    """Requests in order of arrival.

    Attributes:
        arrival_s: float64 [N], seconds, sorted, the first 0 unless a window was cut out.
        input_tokens, output_tokens: int32 [N], not negative.
        kind, model: Categories by row, as texts; "" where unknown.
        session: int64 [N], -1 for a request of its own; None when no row has one.
        prefix_blocks: int64 arrays by row: names of the blocks the prompt begins with, equal where content is equal.
        failed: bool [N], requests that ended without an answer.
        service_s: float32 [N], seconds they took where the trace was recorded; NaN where unknown; None: nowhere.
        meta: Whatever the source says about itself; `block_tokens` for the size of a prefix block.

    Raises:
        TraceError: columns of different lengths, times unsorted or not finite, negative counts.

    Example:
        >>> trace = RequestTrace.poisson(rate=5.0, n=1000, lengths=([100], [20]), seed=1)
        >>> len(trace), bool(4.5 < len(trace) / trace.duration_s < 5.5)
        (1000, True)
    """

    arrival_s: NDArray[np.float64]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    kind: list[str] = field(default_factory=list)
    model: list[str] = field(default_factory=list)
    session: NDArray[np.int64] | None = None
    prefix_blocks: list[NDArray[np.int64]] | None = None
    failed: NDArray[np.bool_] | None = None
    service_s: NDArray[np.float32] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arrival_s = np.ascontiguousarray(self.arrival_s, np.float64)
        count = self.arrival_s.size
        self.input_tokens = _counts("input_tokens", self.input_tokens)
        self.output_tokens = _counts("output_tokens", self.output_tokens)
        self.kind = self.kind or [""] * count
        self.model = self.model or [""] * count
        if self.failed is None:
            self.failed = np.zeros(count, np.bool_)
        for name, column in self._columns().items():
            if len(column) != count:
                raise TraceError("", 0, f"{name} has {len(column)} rows, arrival_s has {count}")
        if not np.isfinite(self.arrival_s).all() or (count and self.arrival_s[0] < 0):
            raise TraceError("", 0, "arrival_s holds a time that is negative or not finite")
        late = np.flatnonzero(np.diff(self.arrival_s) < 0)
        if late.size:
            raise TraceError("", 0, f"row {late[0] + 1} arrives before row {late[0]}", hint="sort by arrival")

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0

    @property
    def rate(self) -> float:
        """Mean requests/s; 0 for fewer than two."""
        return (len(self) - 1) / self.duration_s if self.duration_s else 0.0

    def request(self, index: int) -> TracedRequest:
        """The row `index`."""
        blocks = self.prefix_blocks[index] if self.prefix_blocks is not None else ()
        return TracedRequest(
            index,
            float(self.arrival_s[index]),
            int(self.input_tokens[index]),
            int(self.output_tokens[index]),
            self.kind[index],
            self.model[index],
            int(self.session[index]) if self.session is not None and self.session[index] >= 0 else None,
            tuple(int(block) for block in blocks),
        )

    def __iter__(self) -> Iterator[TracedRequest]:
        return (self.request(index) for index in range(len(self)))

    def take(
        self, rows: NDArray[np.int64] | NDArray[np.bool_], arrival_s: NDArray[np.float64] | None = None
    ) -> RequestTrace:
        """The chosen rows in their order, at their times or at others."""
        chosen = np.arange(len(self))[rows]
        columns: dict[str, Any] = {}
        for name, column in self._columns().items():
            columns[name] = [column[i] for i in chosen] if isinstance(column, list) else column[chosen]
        if arrival_s is not None:
            columns["arrival_s"] = arrival_s
        return RequestTrace(**columns, meta=dict(self.meta))

    def window(self, a: float, b: float) -> RequestTrace:
        """Arrivals in [a, b) seconds, shifted so that `a` becomes 0."""
        part = self.take((self.arrival_s >= a) & (self.arrival_s < b))
        part.arrival_s = part.arrival_s - a
        return part

    def scale_rate(self, factor: float) -> RequestTrace:
        """The same requests, `factor` times as fast one after the other; bursts stay bursts."""
        if not 0 < factor < math.inf:
            raise UsageError(f"a rate scaled by {factor}", hint="a finite factor above 0")
        scaled = self.take(np.ones(len(self), np.bool_))
        scaled.arrival_s = scaled.arrival_s / factor
        return scaled

    def resample(self, n: int, seed: int) -> RequestTrace:
        """`n` requests whose lengths are drawn from the rows, with their gaps drawn apart: no memory, same margins."""
        if not len(self) or n < 0:
            raise UsageError(f"{n} requests drawn from {len(self)}", hint="an empty trace has none to draw from")
        generator = np.random.default_rng(seed)
        rows = generator.integers(0, len(self), n)
        gaps = np.diff(self.arrival_s) if len(self) > 1 else np.zeros(1)
        arrivals = np.cumsum(generator.choice(gaps, n))
        return self.take(rows, arrivals - (arrivals[0] if n else 0.0))

    @classmethod
    def poisson(cls, rate: float, n: int, lengths: Lengths | Sequence[Sequence[int]], seed: int) -> RequestTrace:
        """`n` arrivals at `rate` a second, each independent of the others; see `gamma`."""
        return cls.gamma(rate, 1.0, n, lengths, seed)

    @classmethod
    def gamma(
        cls, rate: float, cv: float, n: int, lengths: Lengths | Sequence[Sequence[int]], seed: int
    ) -> RequestTrace:
        """`n` arrivals at `rate` a second with gamma-distributed gaps.

        Args:
            cv: Standard deviation of the gaps over their mean: 1 is Poisson, more is bursts, 0 is a metronome.
            lengths: (input tokens, output tokens), int [M] each; rows are drawn as pairs.

        Raises:
            UsageError: a rate not above 0, or no lengths to draw from.
        """
        inputs, outputs = (np.asarray(column, np.int32) for column in lengths)
        if not (0 < rate < math.inf and 0 <= cv < math.inf and n >= 0):
            raise UsageError(f"{n} arrivals at {rate} a second with cv {cv}", hint="rate above 0, cv and n not below")
        if not inputs.size or inputs.size != outputs.size:
            raise UsageError(f"{inputs.size} input and {outputs.size} output lengths", hint="equally many, at least 1")
        generator = np.random.default_rng(seed)
        gaps = generator.gamma(1 / cv**2, cv**2 / rate, n) if cv else np.full(n, 1 / rate)
        arrivals = np.cumsum(gaps)
        drawn = generator.integers(0, inputs.size, n)
        start = arrivals[0] if n else 0.0
        return cls(arrivals - start, inputs[drawn], outputs[drawn], meta={"arrivals": f"gamma, cv {cv:g}"})

    @classmethod
    def concatenate(cls, traces: Sequence[RequestTrace]) -> RequestTrace:
        """All requests of several traces on one clock, in order of arrival."""
        if not traces:
            raise UsageError("no traces to concatenate", hint="give at least one")
        names = {name for trace in traces for name in trace._columns()}
        arrivals = np.concatenate([trace.arrival_s for trace in traces])
        order = np.argsort(arrivals, kind="stable")
        columns: dict[str, Any] = {}
        for name in names:
            joined = [value for trace in traces for value in trace._column_or_blank(name)]
            columns[name] = [joined[i] for i in order] if name in _LISTS else np.array(joined)[order]
        return cls(**columns, meta={"sources": [trace.meta for trace in traces]})

    def save(self, path: Path | str) -> None:
        """Write Parquet, which is also the format of the server's access log."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        columns: dict[str, Any] = {}
        for name, column in self._columns().items():
            blocks = name == "prefix_blocks"
            columns[name] = (
                pa.array([list(map(int, row)) for row in column], pa.list_(pa.int64())) if blocks else column
            )
        meta = {"format": FORMAT, "meta": json.dumps(self.meta)}
        buffer = pa.BufferOutputStream()
        parquet.write_table(pa.table(columns).replace_schema_metadata(meta), buffer, compression="zstd")
        storage.write_atomic(Path(path), buffer.getvalue().to_pybytes())

    @classmethod
    def load(cls, path: Path | str) -> RequestTrace:
        """Read what `save` wrote.

        Raises:
            TraceError: it is not a file of this format.
        """
        import pyarrow as pa
        import pyarrow.parquet as parquet

        try:
            table = parquet.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise TraceError(path, 0, f"not readable as Parquet ({error})") from error
        stored = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if stored.get("format") != FORMAT:
            raise TraceError(path, 0, "Parquet, but no trace that Windlass wrote", hint="`fleet.trace.read` takes more")
        columns: dict[str, Any] = {}
        for name in table.column_names:
            values = table[name]
            columns[name] = values.to_pylist() if name in _LISTS else values.to_numpy()
        if "prefix_blocks" in columns:
            columns["prefix_blocks"] = [np.array(row, np.int64) for row in columns["prefix_blocks"]]
        return cls(**columns, meta=json.loads(stored["meta"]))

    def _columns(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in _COLUMNS}
        return {name: column for name, column in named.items() if column is not None}

    def _column_or_blank(self, name: str) -> Sequence[Any]:
        column = getattr(self, name)
        if column is not None:
            return column  # type: ignore[no-any-return]
        blank: Any = {"session": -1, "service_s": math.nan}.get(name)
        return [np.empty(0, np.int64) if name == "prefix_blocks" else blank] * len(self)


_COLUMNS = (
    "arrival_s",
    "input_tokens",
    "output_tokens",
    "kind",
    "model",
    "session",
    "prefix_blocks",
    "failed",
    "service_s",
)
_LISTS = ("kind", "model", "prefix_blocks")


def _counts(name: str, values: Any) -> NDArray[np.int32]:
    array = np.asarray(values)
    if array.size and (not np.isfinite(array.astype(np.float64)).all() or array.min() < 0 or array.max() >= 2**31):
        raise TraceError("", 0, f"{name} holds a count that is negative or not a number")
    return np.ascontiguousarray(array, np.int32)
