"""What a simulated run did: every operation with its times, figures of it, and a trace that a browser can show."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from windlass.core import storage
from windlass.core.program import Report


@dataclass(frozen=True, slots=True)
class Span:
    """One operation: where, what, from when to when (virtual seconds), bytes it moved."""

    rank: int
    stream: str
    name: str
    kind: str
    begin: float
    end: float
    nbytes: float = 0.0
    request: int = -1


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that a policy noted."""

    rank: int
    name: str
    time: float
    request: int = -1


@dataclass(kw_only=True)
class SimReport(Report):
    """A `Report` whose mode is always `simulated`.

    Attributes:
        spans, marks: In the order in which they ended.
        results: What each rank's program returned (of the last request, when there were several).
        utilisation: Part of the time in which a resource was busy: `device 0`, `link d0>node0`.
        link_bytes: What each direction of a link carried.
        joules: Idle power all the time, and the rest while busy; None where power is not modelled.
    """

    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    utilisation: dict[str, float] = field(default_factory=dict)
    link_bytes: dict[str, float] = field(default_factory=dict)
    joules: float | None = None

    def trace_hash(self) -> str:
        """32 hex digits that are equal exactly when two runs did the same at the same times."""
        lines = "\n".join(repr(each) for each in (*self.spans, *self.marks))
        return hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()

    def chrome_trace(self) -> dict[str, Any]:
        """The run as trace events (the JSON that Chrome, Perfetto and PyTorch's profiler write), in microseconds."""
        lanes = {lane: number for number, lane in enumerate(sorted({(s.rank, s.stream) for s in self.spans}))}
        names = [("process_name", rank, 0, f"rank {rank}") for rank in sorted({rank for rank, _ in lanes})]
        names += [("thread_name", rank, lane, stream) for (rank, stream), lane in lanes.items()]
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": name, "pid": rank, "tid": lane, "args": {"name": shown}}
            for name, rank, lane, shown in names
        ]
        for span in self.spans:
            place = {"pid": span.rank, "tid": lanes[span.rank, span.stream]}
            times = {"ts": span.begin * 1e6, "dur": (span.end - span.begin) * 1e6}
            args = {"kind": span.kind, "bytes": span.nbytes, "request": span.request}
            events.append({"ph": "X", "name": span.name, "cat": "kernel", **place, **times, "args": args})
        events += [
            {"ph": "i", "s": "p", "name": mark.name, "pid": mark.rank, "tid": 0, "ts": mark.time * 1e6}
            for mark in self.marks
        ]
        return {"displayTimeUnit": "ms", "mode": self.mode, "traceEvents": events}

    def to_chrome_trace(self, path: Path) -> None:
        """Write `chrome_trace()`; compressed when `path` ends in `.gz`."""
        data = json.dumps(self.chrome_trace()).encode()
        storage.write_atomic(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


@dataclass(frozen=True, slots=True)
class Slo:
    """What users were promised: seconds to the first token, seconds a further token, seconds in all; None: nothing."""

    ttft: float | None = None
    tpot: float | None = None
    latency: float | None = None

    def met(self, ttft: float, tpot: float, latency: float) -> bool:
        """Whether a request with these times was served well; NaN where a time does not exist."""
        pairs = ((self.ttft, ttft), (self.tpot, tpot), (self.latency, latency))
        return not any(promised is not None and value > promised for promised, value in pairs)


def request_metrics(
    arrivals: Sequence[float],
    first: Sequence[float],
    done: Sequence[float],
    output_tokens: Sequence[int],
    slo: Slo | None = None,
) -> dict[str, float]:
    """p50, p95 and p99 of time to first token, time per further token and latency; throughput; goodput.

    Args:
        arrivals, first, done: Seconds; NaN where a request has no first token, or never ended.
        output_tokens: Of each request; a time per token exists from two on.
    """
    ended = [i for i, time in enumerate(done) if not math.isnan(time)]
    if not ended:
        return {"requests": 0.0}
    ttft = {i: first[i] - arrivals[i] for i in ended}
    tpot = {i: (done[i] - first[i]) / (output_tokens[i] - 1) if output_tokens[i] > 1 else math.nan for i in ended}
    latency = {i: done[i] - arrivals[i] for i in ended}
    span = max(done[i] for i in ended) - min(arrivals)
    found = {"requests": float(len(ended)), "requests/s": len(ended) / span if span else 0.0}
    for name, values in (("ttft", ttft), ("tpot", tpot), ("latency", latency)):
        known = sorted(value for value in values.values() if not math.isnan(value))
        if known:
            found |= {f"{name} p{p} s": quantile(known, p / 100) for p in (50, 95, 99)}
    if slo is not None and span:
        found["goodput requests/s"] = sum(slo.met(ttft[i], tpot[i], latency[i]) for i in ended) / span
    return found


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between the two nearest of sorted values, as NumPy's default.

    Example:
        >>> quantile([1.0, 2.0, 4.0], 0.75)
        3.0
    """
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def busy_seconds(spans: Iterable[Span]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, -math.inf
    for span in sorted(spans, key=lambda each: each.begin):
        total += max(0.0, span.end - max(span.begin, end))
        end = max(end, span.end)
    return total
