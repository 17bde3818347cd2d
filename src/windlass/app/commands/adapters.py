"""`windlass models adapters`: low-rank adapters of a language model, kept by name and served as `model:name`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from windlass.app.options import AsJson

adapters = typer.Typer(
    help="Adapters of a language model: install, list, remove. A server offers each as the model `model:name`.\n\n"
    "Example: windlass models adapters add legal runs/legal",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@adapters.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    folder: Annotated[Path, typer.Argument(help="A folder as `peft` saves it: adapter_config.json and safetensors.")],
    model: Annotated[str, typer.Option(help="The model it is for: a name, a folder or a .gguf file.")] = "",
) -> None:
    """Check an adapter and keep a copy of it; one of the same name is replaced.

    Example: windlass models adapters add legal runs/legal
    """
    from windlass.app import terminal
    from windlass.core import settings
    from windlass.models import store
    from windlass.models.installed_adapters import install_adapter
    from windlass.models.weights import open_weights

    target = store.locate(model or settings.load().models.decoder)
    found = install_adapter(name, folder, open_weights(target).config)
    print(f"{found.name}: rank {found.rank}, {terminal.size(found.nbytes)} in memory")


@adapters.command("list")
def list_adapters(as_json: AsJson = False) -> None:
    """Show the installed adapters.

    Example: windlass models adapters list
    """
    from dataclasses import asdict

    from windlass.app import terminal
    from windlass.models.installed_adapters import installed_adapters

    found = installed_adapters()
    if as_json:
        terminal.print_json([{**asdict(one), "folder": str(one.folder)} for one in found])
        return
    for one in found:
        print(f"{one.name:26} rank {one.rank:<5} {terminal.size(one.nbytes)}")
    if not found:
        print("none; add one with `windlass models adapters add NAME FOLDER`")


@adapters.command()
def remove(name: Annotated[str, typer.Argument(help="As `windlass models adapters list` shows it.")]) -> None:
    """Delete an installed adapter. A server that runs keeps what it has loaded.

    Example: windlass models adapters remove legal
    """
    from windlass.models.installed_adapters import remove_adapter

    remove_adapter(name)
    print(f"removed {name}")
