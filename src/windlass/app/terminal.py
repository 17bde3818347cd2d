"""Progress, summary cards and answers as text on a terminal.

What a program may read goes to standard output; progress and notices go to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from windlass.core.paths import printable
from windlass.core.progress import Silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from windlass.app.http.server import Started
    from windlass.retrieval.overview import Overview
    from windlass.retrieval.pipeline import IndexReport
    from windlass.retrieval.types import Answer, Citation, Hit, Link

_TITLES = {
    "scan": "Looking at files",
    "hash": "Hashing new files",
    "read": "Reading",
    "profile": "Profiling tables",
    "contain": "Looking for tables in tables",
    "shingle": "Cutting texts into word sequences",
    "compare": "Looking for near-copies",
    "join": "Looking for joins",
    "overlap": "Looking for shared rows",
    "recipes": "Trying recipes",
    "verify": "Verifying",
    "embed": "Embedding passages",
    "pull": "Downloading models",
}
_MODES = {"extract": "quoted", "generate": "written by the model and checked", "table": "computed over the whole table"}
_LISTED = 8


def stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, stderr=True)


class TerminalProgress(Silent):
    """Bars on a terminal; in a pipe or a log one line for each stage that took a while."""

    def __init__(self, *, quiet: bool = False) -> None:
        super().__init__()
        self._live = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int, str]] = {}

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self._began[stage] = (time.monotonic(), 0, unit)
        if self._live:
            self._tasks[stage] = self._show().add_task(_TITLES.get(stage, stage), total=total, unit=unit)

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        began, count, unit = self._began.get(stage, (time.monotonic(), 0, ""))
        self._began[stage] = (began, count + done, unit)
        if self._bars is not None and stage in self._tasks:
            self._bars.advance(self._tasks[stage], done)

    def finish(self, stage: str) -> None:
        began, count, unit = self._began.pop(stage, (time.monotonic(), 0, ""))
        if self._bars is not None and stage in self._tasks:
            self._bars.remove_task(self._tasks.pop(stage))
            if not self._tasks:
                self.close()
        seconds = time.monotonic() - began
        if not self._quiet and count and seconds > 0.5:
            amount = size(count) if unit == "bytes" else f"{count:,} {unit}"
            print(f"{_TITLES.get(stage, stage)}: {amount} in {seconds:.1f} s", file=sys.stderr)

    def close(self) -> None:
        """Take the bars off the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def _show(self) -> RichProgress:
        if self._bars is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeRemainingColumn(),
                console=stderr(),
                transient=True,
            )
            self._bars.start()
        return self._bars


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=1, default=str))


def print_card(overview: Overview, report: IndexReport | None) -> None:
    """The summary of a folder: what is in it, what is twice, what could not be read and why."""
    from rich.box import ROUNDED
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="bold")
    grid.add_column()

    def add(title: str, line: str) -> None:
        grid.add_row(title, Text(line))  # Text: a file name is never markup

    kinds = ", ".join(f"{count} {kind}" for kind, (count, _) in list(overview.by_kind.items())[:_LISTED])
    add("files", f"{overview.files:,} ({size(overview.bytes)}): {kinds}")
    add("passages", _passages_line(overview))
    if overview.tables:
        rows = sum(table.rows for table in overview.tables)
        add("tables", f"{len(overview.tables)} with {rows:,} rows: {_some(_table_names(overview))}")
    if overview.duplicates:
        copies = sum(len(group) - 1 for group in overview.duplicates)
        add("duplicates", f"{copies} exact copies, {size(overview.duplicate_bytes)} to save")
        for group in overview.duplicates[:_LISTED]:
            add("", f"{printable(group[0])} = {_some([printable(path) for path in group[1:]], 3)}")
    _add_contained(add, overview)
    _add_overlapping(add, overview)
    _add_near_copies(add, overview)
    _add_joins(add, overview)
    _add_reasons(add, "not readable", [(path, f"{reason}: {text}") for path, reason, text in overview.failed])
    _add_reasons(add, "skipped", overview.skipped)
    if report is not None:
        add("this run", run_line(report))
    console = stdout()
    console.print(Panel(grid, title="windlass", title_align="left", box=ROUNDED, expand=False), soft_wrap=False)


def print_started(started: Started) -> None:
    """Where the server is, and the key when one was just made: it is kept nowhere else."""
    print_notices(started.notices)
    if started.new_key:
        print(f"API key (shown once): {started.new_key}", flush=True)
    print(f"Windlass is at {started.url}  (Ctrl-C stops it)", flush=True)


def print_answer(answer: Answer) -> None:
    """The answer, then its sources by number, then what a reader should know."""
    console = stdout()
    console.print(answer.text, markup=False)
    citations = unique_citations(answer)
    if citations:
        console.print()
    for citation in citations:
        console.print(f"  [{citation.number}] {place(citation)}", markup=False, style="dim")
        if citation.via:
            console.print(f"      {_via(citation.via)}", markup=False, style="dim")
        if citation.sql:
            console.print(f"      {citation.sql}", markup=False, style="dim")
        if citation.quote:
            console.print(f"      “{shorten(citation.quote, 200)}”", markup=False)
    if not answer.found and answer.hits:
        console.print("\nNearest passages:")
        for hit in answer.hits[:3]:
            console.print(f"  {hit_place(hit)}: {shorten(hit.passage.text, 120)}", markup=False, style="dim")
    used = f"used {answer.passages_used} of {answer.passages_found} passages, " if answer.passages_found else ""
    seconds = answer.timings.get("search", 0.0) + answer.timings.get("answer", 0.0)
    console.print(f"\n{used}{_MODES.get(answer.mode, answer.mode)}, {seconds:.2f} s", style="dim")
    chunks = answer.approximations.get("chunks")
    if chunks is not None:
        reused, repaired = int(chunks["reused_tokens"]), int(chunks["repaired_tokens"])
        console.print(f"approximate: {reused} tokens of passages read before, {repaired} of them repaired", style="dim")
    print_notices(answer.notices)


def print_notices(notices: Iterable[str]) -> None:
    """What a reader should know, beside the output and not in it."""
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr)


def print_hits(hits: list[Hit]) -> None:
    console = stdout()
    if not hits:
        console.print("Nothing found.")
    for number, hit in enumerate(hits, 1):
        ranks = ", ".join(f"{name} #{rank}" for name, rank in hit.ranks.items())
        console.print(f"{number:2d}. {hit_place(hit)}", markup=False, style="bold")
        if hit.passage.title:
            console.print(f"    {shorten(hit.passage.title, 100)}", markup=False, style="cyan")
        console.print(f"    {shorten(hit.passage.text, 240)}", markup=False)
        how = "; ".join(part for part in (ranks, _via(hit.via) if hit.via else "") if part)
        console.print(f"    score {hit.score:.4f} ({how})", markup=False, style="dim")


def unique_citations(answer: Answer) -> list[Citation]:
    """Every cited span once, by its number."""
    found: dict[int, Citation] = {}
    for sentence in answer.sentences:
        for citation in sentence.citations:
            found.setdefault(citation.number, citation)
    return [found[number] for number in sorted(found)]


def overview_json(overview: Overview, report: IndexReport | None) -> dict[str, Any]:
    card: dict[str, Any] = asdict(overview)
    if report is not None:
        card["run"] = asdict(report)
    return card


def place(citation: Citation) -> str:
    return _place(citation.file, citation.page, citation.table, citation.rows)


def _via(link: Link) -> str:
    return f"found via “{link.name}” in {link.file}"


def hit_place(hit: Hit) -> str:
    passage = hit.passage
    return _place(passage.source, passage.page, passage.table, passage.rows)


def shorten(text: str, length: int) -> str:
    """One line of at most `length` characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def size(count: int) -> str:
    """Bytes for people.

    Example:
        >>> size(1536)
        '1.5 KB'
    """
    value = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if value < 1024 or unit == "GB":
            return f"{count:,} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GB"


def _place(file: str, page: int | None, table: str | None, rows: tuple[int, int] | None) -> str:
    parts = [printable(file)]
    if page is not None:
        parts.append(f"page {page}")
    if table and table not in file:
        parts.append(f"table {table}")
    if rows is not None:
        parts.append(f"row {rows[0]}" if rows[0] == rows[1] else f"rows {rows[0]}-{rows[1]}")
    return ", ".join(parts)


def _passages_line(overview: Overview) -> str:
    done, wanted = overview.embedded
    if not wanted or done == wanted:
        return f"{overview.passages:,}, searchable by word and meaning" if done else f"{overview.passages:,}"
    return f"{overview.passages:,}, searchable by word; by meaning {done:,} of {wanted:,}"


def _table_names(overview: Overview) -> list[str]:
    return [f"{printable(table.name)} ({table.rows:,})" for table in overview.tables]


def _some(names: list[str], count: int = _LISTED) -> str:
    rest = len(names) - count
    return ", ".join(names[:count]) + (f" and {rest} more" if rest > 0 else "")


def _add_contained(add: Callable[[str, str], None], overview: Overview) -> None:
    for number, table in enumerate(overview.contained[:_LISTED]):
        if number == 0:
            saved = f", {size(overview.contained_bytes)} to save" if overview.contained_bytes else ""
            add("contained", f"{len(overview.contained)} tables are in others{saved} (windlass lake reclaim)")
        rows = f"all {table.child_rows:,} rows are in"
        add("", f"{printable(table.child_file)}: {rows} {printable(table.parent_file)} ({table.parent_rows:,})")
    if len(overview.contained) > _LISTED:
        add("", f"and {len(overview.contained) - _LISTED} more")


def _add_overlapping(add: Callable[[str, str], None], overview: Overview) -> None:
    for number, table in enumerate(overview.overlapping[:_LISTED]):
        title = f"{len(overview.overlapping)} tables share rows" if number == 0 else ""
        called = f" ({_some([f'{a} is {b} there' for a, b in table.renamed.items()], 2)})" if table.renamed else ""
        add(title, f"{table.share:.0%} of {printable(table.child_file)} is in {printable(table.parent_file)}{called}")
    if len(overview.overlapping) > _LISTED:
        add("", f"and {len(overview.overlapping) - _LISTED} more")


def _add_near_copies(add: Callable[[str, str], None], overview: Overview) -> None:
    for number, pair in enumerate(overview.near_copies[:_LISTED]):
        title = f"{len(overview.near_copies)} near-copies" if number == 0 else ""
        add(title, f"{printable(pair.second)} has {pair.similarity:.0%} in common with {printable(pair.first)}")
    if len(overview.near_copies) > _LISTED:
        add("", f"and {len(overview.near_copies) - _LISTED} more")


def _add_joins(add: Callable[[str, str], None], overview: Overview) -> None:
    for number, join in enumerate(overview.joins[:_LISTED]):
        ends = f"{join.child}.{', '.join(join.columns)} -> {join.parent}.{', '.join(join.keys)}"
        add(f"{len(overview.joins)} joins" if number == 0 else "", f"{printable(ends)} ({join.probability:.0%})")
    if len(overview.joins) > _LISTED:
        add("", f"and {len(overview.joins) - _LISTED} more (windlass lake joins)")


def _add_reasons(add: Callable[[str, str], None], title: str, entries: list[tuple[str, str]]) -> None:
    for number, (path, why) in enumerate(entries[:_LISTED]):
        add(f"{len(entries)} {title}" if number == 0 else "", f"{printable(path)}: {shorten(why, 110)}")
    if len(entries) > _LISTED:
        add("", f"and {len(entries) - _LISTED} more")


def run_line(report: IndexReport) -> str:
    delta = report.delta
    parts: list[tuple[int, str]] = [
        (len(delta.added), "new"),
        (len(delta.changed), "changed"),
        (len(delta.removed), "removed"),
        (len(delta.renamed), "renamed"),
        (delta.unchanged, "unchanged"),
    ]
    changes = ", ".join(f"{count:,} {what}" for count, what in parts if count) or "nothing to do"
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in report.seconds.items())
    return f"{changes} ({seconds})"
