"""`windlass lake`: what the files and tables of a folder have in common, and what can be taken away."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from windlass.app.commands.fill import fill
from windlass.app.options import AsJson, Folder
from windlass.core.errors import UsageError
from windlass.core.paths import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from windlass.app.terminal import TerminalProgress
    from windlass.core.workspace import Workspace
    from windlass.lake.profile import TableProfile
    from windlass.lake.reclaim import ReclaimPlan

Paths = Annotated[list[str] | None, typer.Argument(help="Only these files (relative to the folder).")]


_HELP = """Look at files and tables as a whole: copies, profiles, and what can be taken away.

Example: windlass lake reclaim reports --dry-run"""


def register(app: typer.Typer) -> None:
    group = typer.Typer(help=_HELP, no_args_is_help=True)
    for command in (scan, profile, joins, fill, reclaim, restore):
        group.command(command.__name__)(command)
    app.add_typer(group, name="lake")


def scan(folder: Folder, as_json: AsJson = False) -> None:
    """Say what changed in a folder since the last look, and which files have equal content.

    Example: windlass lake scan reports
    """
    from windlass.app import terminal
    from windlass.core.workspace import Workspace
    from windlass.lake.scan import Catalog

    with _progress(as_json) as progress, Workspace.open(folder) as workspace, workspace.acquire():
        delta = Catalog(workspace).scan(progress=progress)
    if as_json:
        terminal.print_json(asdict(delta))
        return
    print(f"{delta.total:,} files, {delta.unchanged:,} of them unchanged")
    for title in ("added", "changed", "removed"):
        for path in getattr(delta, title):
            print(f"  {title:8} {printable(path)}")
    for old, new in delta.renamed:
        print(f"  renamed  {printable(old)} -> {printable(new)}")
    for group in delta.duplicates:
        print("  equal    " + " = ".join(map(printable, group)))


def profile(
    folder: Folder,
    table: Annotated[str, typer.Argument(help="Only tables whose file or name contains this.")] = "",
    as_json: AsJson = False,
) -> None:
    """Describe every column of every table: type, range, distinct values, what is typical, what is a key.

    Example: windlass lake profile reports customers
    """
    from windlass.app import terminal
    from windlass.lake.profile_format import profile_json
    from windlass.lake.survey import table_profiles

    with _surveyed(folder, as_json) as workspace:
        profiles = table_profiles(workspace)
    wanted = [(file, found) for file, found in profiles if table.lower() in f"{file}/{found.name}".lower()]
    if as_json:
        terminal.print_json([{"file": file, **profile_json(found)} for file, found in wanted])
        return
    for file, found in wanted:
        _print_profile(file, found)
    if not wanted:
        print("No table found.")


def joins(
    folder: Folder,
    form: Annotated[
        str, typer.Option("--format", help="text, mermaid (a diagram) or sql (a view a fact table).")
    ] = "text",
    as_json: AsJson = False,
) -> None:
    """Predict which tables refer to which, over which columns, how likely that is, and what it follows from.

    Example: windlass lake joins reports --format mermaid
    """
    from windlass.app import terminal
    from windlass.lake.table_joins import predict_joins

    if form not in ("text", "mermaid", "sql"):
        raise UsageError(f"unknown format {form!r}", hint="text, mermaid or sql")
    with _surveyed(folder, as_json) as workspace, _progress(as_json) as progress:
        graph = predict_joins(workspace, progress)
    if as_json:
        facts = {"tables": graph.tables, "facts": graph.facts, "dimensions": graph.dimensions, "gap": graph.gap}
        terminal.print_json({**facts, "joins": [join._asdict() | {"why": graph.why(join)} for join in graph.joins]})
    elif form != "text":
        print(graph.to_mermaid() if form == "mermaid" else graph.to_sql(), end="")
    else:
        for join in graph.joins:
            ends = f"{join.child}.{', '.join(join.columns)} -> {join.parent}.{', '.join(join.keys)}"
            print(f"{join.probability:4.0%}  {printable(ends)}{' (one to one)' if join.mutual else ''}")
            print(f"      {printable(graph.why(join))}")
        if not graph.joins:
            print("No joins found.")


def reclaim(
    folder: Folder,
    paths: Paths = None,
    apply: Annotated[bool, typer.Option("--apply/--dry-run", help="Take the files away, or only show them.")] = False,
    pin: Annotated[list[str] | None, typer.Option("--pin", help="A file that stays in any case.")] = None,
    prices: Annotated[str, typer.Option(help="local_ssd, azure_hot or s3_standard.")] = "local_ssd",
    within: Annotated[float, typer.Option(min=0.0, help="Seconds that rebuilding a file may take.")] = 60.0,
    empty: Annotated[
        bool, typer.Option("--empty-trash", help="Delete what was taken away and can be rebuilt.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find files that others can rebuild to the byte: copies, and tables that other tables hold or nearly hold.

    Shows what can go and why. With --apply the files move to .windlass/trash/reclaimed, where `windlass lake restore`
    finds them; nothing is deleted before --empty-trash, and then only what its recipe has just rebuilt.

    Example: windlass lake reclaim reports --dry-run
    """
    from windlass.app import terminal
    from windlass.lake.reclaim import apply_plan, empty_trash, plan_reclaim
    from windlass.lake.retention import PRICES

    if prices not in PRICES:
        raise UsageError(f"unknown price sheet {prices!r}", hint="one of " + ", ".join(PRICES))
    if empty and (apply or paths):
        raise UsageError("--empty-trash stands alone", hint="take files away first, then empty the trash")
    with _surveyed(folder, as_json) as workspace, _progress(as_json) as progress:
        if empty:
            with workspace.acquire():
                deleted, kept = empty_trash(workspace, progress)
            if as_json:
                terminal.print_json({"deleted": [asdict(entry) for entry in deleted], "kept": kept})
                return
            print(f"{len(deleted)} files deleted, {terminal.size(sum(entry.size for entry in deleted))}")
            for path, why in kept:
                print(f"  kept {printable(path)}: {why}")
            return
        plan = plan_reclaim(
            workspace,
            only=paths or (),
            pin=pin or (),
            prices=PRICES[prices],
            latency_limit_s=within,
            progress=progress,
        )
        if apply:
            with workspace.acquire():
                apply_plan(workspace, plan, progress)
    if as_json:
        terminal.print_json(_plan_json(plan, applied=apply))
    else:
        _print_plan(plan, applied=apply)


def restore(folder: Folder, paths: Paths = None, as_json: AsJson = False) -> None:
    """Bring reclaimed files back, bit-identical; without paths, list what was taken away.

    Example: windlass lake restore reports old/customers.csv
    """
    from windlass.app import terminal
    from windlass.core.workspace import Workspace
    from windlass.lake.reclaim import list_reclaimed
    from windlass.lake.reclaim import restore as bring_back

    with Workspace.open(folder) as workspace:
        if paths:
            with workspace.acquire():
                found = [bring_back(workspace, path) for path in paths]
        else:
            found = list_reclaimed(workspace)
    if as_json:
        terminal.print_json([asdict(entry) for entry in found])
        return
    for entry in found:
        where = "in the trash" if entry.in_trash else f"rebuilt from {printable(entry.parent)}"
        what = "restored" if paths else "reclaimed"
        if not entry.exact:
            where += "; the same rows and types, but other bytes: another pyarrow wrote it"
        print(f"{what} {printable(entry.path)} ({terminal.size(entry.size)}, {where})")
    if not found:
        print("Nothing was reclaimed.")


@contextmanager
def _progress(quiet: bool) -> Iterator[TerminalProgress]:
    from windlass.app.terminal import TerminalProgress

    progress = TerminalProgress(quiet=quiet)
    try:
        yield progress
    finally:
        progress.close()


@contextmanager
def _surveyed(folder: Path, quiet: bool) -> Iterator[Workspace]:
    """The folder's workspace, read and surveyed; without vectors, which nothing here needs."""
    from windlass.retrieval.pipeline import Pipeline

    with _progress(quiet) as progress, Pipeline.open(folder, encoder=None, model=None) as pipeline:
        pipeline.index(progress=progress, embed=False)
        pipeline.survey(progress)
        progress.close()
        yield pipeline.workspace


def _print_profile(file: str, found: TableProfile) -> None:
    from windlass.app import terminal

    keys = "; ".join(" + ".join(key) for key in found.keys) or "none of up to three columns"
    repeated = f", {found.duplicate_rows:,} of them repeated" if found.duplicate_rows else ""
    print(f"\n{printable(file)}: {printable(found.name)}, {found.rows:,} rows{repeated}; key: {keys}")
    for column in found.columns:
        described = column.column
        about = f"{'' if column.exact else 'about '}{described.distinct:,} distinct"
        empty = f", {described.nulls:,} empty" if described.nulls else ""
        mean = f", mean {column.mean:.4g}" if column.numbers and described.type in ("integer", "number") else ""
        span = f", {described.minimum} to {described.maximum}" if described.minimum is not None else ""
        unique = ", unique" if column.is_unique else ""
        name = terminal.shorten(described.name, 30)
        print(f"  {name:30} {described.type:9} {about}{unique}{empty}{terminal.shorten(span, 70)}{mean}")


def _plan_json(plan: ReclaimPlan, *, applied: bool) -> dict[str, Any]:
    removals = [asdict(removal) for removal in plan.removals]
    for removal in removals:
        del removal["recipe"]
    retention = plan.retention
    return {
        "applied": applied,
        "bytes_freed": plan.bytes_freed,
        "removals": removals,
        "cost_before": retention.cost_before,
        "cost_after": retention.cost_after,
        "gap": retention.gap,
    }


def _print_plan(plan: ReclaimPlan, *, applied: bool) -> None:
    from windlass.app import terminal

    for removal in plan.removals:
        print(f"{printable(removal.path)} ({terminal.size(removal.size)})")
        recipe = f", recipe of {terminal.size(removal.recipe_bytes)}" if removal.recipe["kind"] == "rows" else ""
        print(f"    {printable(removal.why)}{recipe}")
    if not plan.removals:
        print("Nothing can be taken away: no copies, and no text table that another table rebuilds to the byte.")
        return
    count, freed = len(plan.removals), terminal.size(plan.bytes_freed)
    if applied:
        print(
            f"{count} files moved to .windlass/trash/reclaimed; {freed} are free once --empty-trash has deleted them."
        )
        print("`windlass lake restore FOLDER PATH` brings each back, bit-identical.")
    else:
        print(
            f"{count} files, {freed} to save. Nothing was changed; --apply takes them away, restore brings them back."
        )
