"""`windlass bench`: measure a system against its peer."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from windlass.app.options import AsJson

if TYPE_CHECKING:
    from windlass.bench.report import BenchReport


def register(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Systems to measure.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Measure every system that is built.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="The short version, some 20 s a system.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when a target is missed.")] = False,
    keep: Annotated[bool, typer.Option("--save", help="Append to docs/results of this checkout.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure systems against their peers, run in turn on this machine, and compare with the targets.

    With --json it prints one object a line, in the order of the systems.

    Example: windlass bench spine-answer --quick --check
    """
    from windlass.app.terminal import TerminalProgress
    from windlass.bench import harness, report
    from windlass.core.errors import Cancelled, DataMissing, UsageError, WindlassError

    if everything and ids:
        raise UsageError("both names and --all were given", hint="choose one of the two")
    rows = harness.chosen(ids or [], everything=everything)
    folder = harness.results_folder() if keep else None
    progress = TerminalProgress(quiet=as_json)
    bad = False
    for row in rows:
        try:
            found = harness.run_system(row, quick=quick, seed=seed, progress=progress)
        except Cancelled:
            raise
        except DataMissing as error:
            if len(rows) == 1:
                raise
            print(f"{row.id}: skipped: {error}", file=sys.stderr)
            continue
        except WindlassError as error:
            # One benchmark that cannot run here must not hide what the others measured.
            if len(rows) == 1:
                raise
            print(f"{row.id}: could not run: {error}", file=sys.stderr)
            bad = True
            continue
        finally:
            progress.close()
        if as_json:
            print(json.dumps(found.to_json(), ensure_ascii=False))
        else:
            _print(found)
        if folder is not None:
            print(f"saved to {report.save(found, folder)}", file=sys.stderr)
        bad = bad or (check and bool(found.missed))
    if bad:
        raise typer.Exit(1)


def _print(report: BenchReport) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from windlass.app.terminal import stdout
    from windlass.bench.report import figure, verdict

    size = "quick" if report.quick else "full"
    print(f"{report.system}: {report.workload} ({report.mode}, {size}, {report.seconds:.1f} s)")
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("figure", "ours", "peer", "ratio", "target", "met"):
        table.add_column(name, justify="right" if name in ("ours", "peer", "ratio") else "left")
    styles = {True: "green", False: "bold red", None: "dim"}
    for item in report.metrics:
        table.add_row(
            item.name,
            f"{figure(item.ours)} {item.unit}".strip(),
            figure(item.peer),
            figure(item.ratio),
            item.target or "-",
            Text(verdict(item.ok), style=styles[item.ok]),
        )
    stdout().print(table, soft_wrap=False)
    for item in report.metrics:
        against = f"against {item.peer_name}" if item.peer is not None else ""
        remarks = "; ".join(part for part in (against, item.note) if part)
        if remarks:
            print(f"  {item.name}: {remarks}")
