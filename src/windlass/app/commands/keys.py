"""`windlass keys`: with whom a folder's server is shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from windlass.app.options import AsJson

if TYPE_CHECKING:
    from windlass.app.http.keys import KeyFile

_keys = typer.Typer(
    help="Keys for a folder's server: make, list, remove.\n\nExample: windlass keys add reports anna",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_Folder = Annotated[Path, typer.Argument(help="The indexed folder.")]


def register(app: typer.Typer) -> None:
    app.add_typer(_keys, name="keys")


@_keys.command()
def add(
    folder: _Folder,
    name: Annotated[str, typer.Argument(help="Who gets the key; `default` is the owner.")],
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests a minute, at most.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens a minute, read and made, at most.")] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Requests at one time, at most.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model it may use (again for more); `windlass` is the folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, once. A server that runs learns of it at its next start.

    Example: windlass keys add reports anna --requests-per-minute 60 --model windlass
    """
    bounds = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrency": max_concurrency,
        "models": model or None,
    }
    key = _file(folder).add(name, **{field: value for field, value in bounds.items() if value is not None})
    print(json.dumps({"name": name, "key": key}) if as_json else key)


@_keys.command("list")
def list_keys(folder: _Folder, as_json: AsJson = False) -> None:
    """Show who has keys, and their bounds; the keys themselves are kept nowhere.

    Example: windlass keys list reports
    """
    from rich.console import Console
    from rich.table import Table

    tenants = _file(folder).tenants()
    fields = ("requests_per_minute", "tokens_per_minute", "max_concurrency", "models")
    if as_json:
        entries = [
            {"name": tenant.name, "keys": len(tenant.hashes), "admin": tenant.admin}
            | {field: getattr(tenant, field) for field in fields}
            for tenant in tenants
        ]
        print(json.dumps(entries))
    elif not tenants:
        print("Nobody has a key: the server answers this machine only, until it is told to listen elsewhere.")
    else:
        table = Table("Who", "Keys", "Requests/min", "Tokens/min", "At one time", "Models", box=None)
        for tenant in tenants:
            bounds = [getattr(tenant, field) for field in fields[:3]]
            shown = ["any" if bound is None else f"{bound:,}" for bound in bounds]
            table.add_row(tenant.name, str(len(tenant.hashes)), *shown, ", ".join(tenant.models or ["all"]))
        Console().print(table)


@_keys.command()
def remove(folder: _Folder, name: Annotated[str, typer.Argument(help="Who shall have no key any more.")]) -> None:
    """Take somebody's keys away, from the server's next start on.

    Example: windlass keys remove reports anna
    """
    _file(folder).remove(name)


def _file(folder: Path) -> KeyFile:
    from windlass.app.http.keys import FILE_NAME, KeyFile
    from windlass.core.errors import NotFound
    from windlass.core.workspace import Workspace

    if not Workspace.exists(folder):
        raise NotFound(f"{folder} is not indexed", hint=f"run `windlass up {folder}` first")
    with Workspace.open(folder) as workspace:
        return KeyFile(workspace.state / FILE_NAME)
