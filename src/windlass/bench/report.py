"""What a benchmark reports: metrics beside a peer, one JSON object, and the page made from what was saved.

`ratio` is always "how many times better than the peer" (above 1 is better), whichever way the unit runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from windlass import __version__
from windlass.bench.machine import Machine
from windlass.core import storage
from windlass.core.errors import UsageError
from windlass.core.program import Mode

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure. `peer`, `ratio`, `target` and `ok` are None where there is none; made by `metric`."""

    name: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    target: str | None
    ok: bool | None
    note: str


def metric(
    name: str,
    unit: str,
    ours: float,
    *,
    better: Better,
    peer: float | None = None,
    peer_name: str = "",
    least_ratio: float | None = None,
    least: float | None = None,
    most: float | None = None,
    note: str = "",
) -> Metric:
    """Put one figure beside its peer and its target.

    Args:
        name, unit: What was measured, e.g. `"index"`, `"files/s"`.
        ours, peer: The figures; `peer` None when the peer is not installed or there is none.
        better: Whether a lower or a higher figure is the better one.
        peer_name: Who the peer is, with its version; empty when there is none.
        least_ratio: Target: so many times better than the peer. Not judged when the peer is missing.
        least, most: Target on our own figure instead.

    Raises:
        ValueError: a figure is not finite, or more than one target was given: a mistake in the benchmark.
    """
    if not math.isfinite(ours) or (peer is not None and not math.isfinite(peer)):
        raise ValueError(f"metric {name!r}: ours {ours} and peer {peer} must be finite")
    if sum(limit is not None for limit in (least_ratio, least, most)) > 1:
        raise ValueError(f"metric {name!r}: one target at most")
    good, bad = (ours, peer) if better == "higher" else (peer, ours)
    ratio = good / bad if good is not None and bad else None
    if peer is None and peer_name:
        missing = f"{peer_name} is not installed (extra `peers`)"
        note = f"{note}; {missing}" if note else missing
    if least_ratio is not None:
        target, ok = f"ratio >= {least_ratio:g}", None if ratio is None else ratio >= least_ratio
    elif least is not None:
        target, ok = f"ours >= {least:g}", ours >= least
    elif most is not None:
        target, ok = f"ours <= {most:g}", ours <= most
    else:
        target, ok = None, None
    return Metric(name, unit, ours, peer, peer_name, ratio, target, ok, note)


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What one benchmark found.

    Attributes:
        system: Id of the catalogue.
        mode: `measured` (real time), `emulated` (real work, injected slowness) or `simulated` (virtual
            clock).
        workload: What was run, with its size, in one line.
        quick: Whether this was the short version.
        machine: Where it ran.
        seconds: How long the benchmark took in all.
        metrics: The figures.
    """

    system: str
    mode: Mode
    workload: str
    quick: bool
    machine: Machine
    seconds: float
    metrics: tuple[Metric, ...]

    @property
    def missed(self) -> tuple[Metric, ...]:
        """The metrics whose target was not reached."""
        return tuple(item for item in self.metrics if item.ok is False)

    def to_json(self) -> dict[str, Any]:
        """The object that `windlass bench --json` prints."""
        return asdict(self)


def save(report: BenchReport, folder: Path) -> Path:
    """Append `report` with its date and version to `folder/<id>.json` and write `results.md` beside `folder`.

    Raises:
        UsageError: the file is there and is not a list of saved reports.
    """
    path = folder / f"{report.system}.json"
    stamp = {"date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"), "version": __version__}
    history = [*read_saved(path), {**stamp, **report.to_json()}]
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_atomic(path, (json.dumps(history, indent=1, ensure_ascii=False) + "\n").encode())
    storage.write_atomic(folder.parent / "results.md", results_page(folder).encode())
    return path


def read_saved(path: Path) -> list[dict[str, Any]]:
    """The reports saved in one file, oldest first; none when the file is missing."""
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", hint="restore it or move it away") from error
    if not isinstance(history, list) or not all(isinstance(item, dict) for item in history):
        raise UsageError(f"{path} is not a list of saved reports", hint="restore it or move it away")
    return history


def results_page(folder: Path) -> str:
    """`docs/results.md`: the newest saved report of each system, a full run before a quick one."""
    lines = [
        "# Results",
        "",
        "Written by `windlass bench --save` from `docs/results/`; do not edit. *Ratio* is how many times better than",
        "the peer, above 1 is better; ours and the peer ran alternately. How a figure came about is its mode:",
        "`measured` in real time, `emulated` with real work and injected slowness, `simulated` on a virtual clock.",
    ]
    for path in sorted(folder.glob("*.json")):
        history = read_saved(path)
        if history:
            lines += ["", *_section(_newest(history))]
    return "\n".join(lines) + "\n"


def results_table(folder: Path) -> list[str]:
    """The rows of the README: of each system's newest report, the metrics that have a target."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        history = read_saved(path)
        if history:
            report = _newest(history)
            chosen = [item for item in report["metrics"] if item["target"]]
            rows += [[f"`{report['system']}`", *_cells(item)] for item in chosen]
    head = ["system", "figure", "ours", "peer", "ratio", "target", "met"]
    return markdown_table(head, rows) if rows else []


def markdown_table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Lines of a Markdown table; a bar inside a cell is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return lines


def figure(value: float | None) -> str:
    """A number as a person reads it: three significant digits, thousands separated, `-` for none."""
    if value is None:
        return "-"
    if value and (abs(value) < 0.001 or abs(value) >= 1e9):
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{digits}f}" if digits else f"{round(value):,}"


def verdict(ok: bool | None) -> str:
    """The word for a metric's `ok`."""
    return {True: "yes", False: "no", None: "-"}[ok]


def _newest(history: list[dict[str, Any]]) -> dict[str, Any]:
    full = [report for report in history if not report["quick"]]
    return (full or history)[-1]


def _section(report: dict[str, Any]) -> list[str]:
    machine = report["machine"]
    size = "quick run" if report["quick"] else "full run"
    rows = [[*_cells(item), item["note"]] for item in report["metrics"]]
    return [
        f"## {report['system']}",
        "",
        f"{report['workload']}.",
        "",
        f"{report['mode'].capitalize()}, {size} of {report['seconds']:.0f} s, {report['date']} UTC, Windlass "
        f"{report['version']}, {machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']:g} GB, "
        f"Python {machine['python']}, load {machine['load']:g} at the start.",
        "",
        *markdown_table(["figure", "ours", "peer", "ratio", "target", "met", "note"], rows),
    ]


def _cells(item: dict[str, Any]) -> list[str]:
    unit = f" {item['unit']}" if item["unit"] else ""
    peer = f"{figure(item['peer'])}{unit} ({item['peer_name']})" if item["peer"] is not None else "-"
    return [
        item["name"],
        f"{figure(item['ours'])}{unit}",
        peer,
        figure(item["ratio"]),
        item["target"] or "-",
        verdict(item["ok"]),
    ]
