"""`windlass systems`: what Windlass is made of, and how far it is."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from windlass.app.options import AsJson

if TYPE_CHECKING:
    from windlass.core.catalogue import System


def register(app: typer.Typer) -> None:
    app.command("systems")(systems)


def systems(
    system_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Show one system in full.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the systems that Windlass is made of: what each does, and whether it is built or planned.

    Example: windlass systems fastrp
    """
    from windlass.core import catalogue

    rows = catalogue.systems() if system_id is None else (catalogue.system(system_id),)
    if as_json:
        from windlass.app.terminal import print_json

        shown = [{**asdict(row), "anchor": row.anchor} for row in rows]
        print_json(shown[0] if system_id is not None else {"systems": shown})
    elif system_id is None:
        _print_all(rows)
    else:
        _print_one(rows[0])


def _print_all(rows: tuple[System, ...]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from windlass.app.terminal import stdout

    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("id", no_wrap=True)
    table.add_column("what it does")
    table.add_column("package", no_wrap=True)
    table.add_column("status", no_wrap=True)
    for row in rows:
        status = Text(row.status, style="green" if row.built else "dim")
        table.add_row(row.id, row.does, row.package, status)
    stdout().print(table, soft_wrap=False)
    named = [row for row in rows if row.kind != "base"]
    bases = [row for row in rows if row.kind == "base"]
    print(
        f"{sum(row.built for row in named)} of {len(named)} systems and "
        f"{sum(row.built for row in bases)} of {len(bases)} bases are built; the others are planned."
    )


def _print_one(row: System) -> None:
    lines = [
        ("id", row.id),
        ("does", row.does),
        ("after", row.paper),
        ("package", f"windlass.{row.package}"),
        ("kind", row.kind),
        ("status", row.status),
        ("use", row.entry if row.built else ""),
        ("measure", f"windlass bench {row.id}" if row.built else ""),
        ("against", row.peer),
        ("target", row.target),
    ]
    for name, value in lines:
        if value:
            print(f"{name:<8} {value}")
    if row.about:
        print(f"\n{row.about}")
