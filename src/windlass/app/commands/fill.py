"""`windlass lake fill`: estimates for the empty number cells of a table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from windlass.app.options import AsJson, Folder
from windlass.core.errors import NotFound, UsageError
from windlass.core.paths import printable

if TYPE_CHECKING:
    from windlass.retrieval.filling import FilledTable

_SHOWN = 40


def fill(
    folder: Folder,
    table: Annotated[str, typer.Argument(help="The table whose file or name contains this.")],
    out: Annotated[Path | None, typer.Option(help="Write a new CSV file with the estimates, marked as such.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the empty number cells of a table from its other numbers, each with how far it may be off.

    The table itself is never changed.

    Example: windlass lake fill reports tides --out tides_filled.csv
    """
    from windlass.app import terminal
    from windlass.app.terminal import TerminalProgress
    from windlass.retrieval.filling import fill_table, with_estimates
    from windlass.retrieval.pipeline import Pipeline
    from windlass.retrieval.table_sources import table_sources

    if out is not None and out.exists():
        raise UsageError(f"{printable(str(out))} is there already", hint="name a new file")
    progress = TerminalProgress(quiet=as_json)
    try:
        with Pipeline.open(folder, encoder=None, model=None) as pipeline:
            pipeline.index(progress=progress, embed=False)
            found = [
                each
                for each in table_sources(pipeline.workspace)
                if table.lower() in f"{each.file}/{each.name}".lower()
            ]
            if not found:
                raise NotFound(f"no table's file or name contains {table!r}", hint="see `windlass lake profile`")
            if len(found) > 1:
                names = ", ".join(printable(f"{each.file}/{each.name}") for each in found[:5])
                raise UsageError(f"{len(found)} tables contain {table!r} in their names: {names}", hint="name one")
            filled = fill_table(found[0], progress)
    finally:
        progress.close()
    if out is not None:
        _write(out, with_estimates(filled))
    if as_json:
        estimates = [asdict(estimate) for estimate in filled.estimates]
        share = filled.error_share if filled.error_share == filled.error_share else None
        terminal.print_json(
            {"file": found[0].file, "table": found[0].name, "columns": filled.columns, "estimates": estimates,
             "refused": filled.refused, "rank": filled.rank, "error_share": share, "written": str(out) if out else None}
        )  # fmt: skip
        return
    _print(filled, out)


def _write(out: Path, table: object) -> None:
    import io

    from pyarrow import csv

    from windlass.core import storage

    buffer = io.BytesIO()
    csv.write_csv(table, buffer)
    storage.write_atomic(out, buffer.getvalue())


def _print(filled: FilledTable, out: Path | None) -> None:
    print(f"{len(filled.estimates):,} estimates from {', '.join(map(printable, filled.columns))}")
    for estimate in filled.estimates[:_SHOWN]:
        value = f"{estimate.value:.6g} +- {estimate.error:.2g}"
        print(f"  row {estimate.row + 1:<7} {printable(estimate.column):24} {value}")
    if len(filled.estimates) > _SHOWN:
        print(f"  and {len(filled.estimates) - _SHOWN:,} more: --json has all, --out writes them")
    if filled.refused:
        print(f"{filled.refused:,} empty cells are left: their row or column holds fewer than two numbers")
    if filled.error_share == filled.error_share:
        print(f"On known cells that were hidden, the error is {filled.error_share:.0%} of what a column's mean gives.")
    if out is not None:
        print(f"Written to {printable(str(out))}; the column `estimated` names what was estimated in each row.")
