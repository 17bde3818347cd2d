"""`windlass generate`: text from a model, as it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from windlass.app.options import AsJson

if TYPE_CHECKING:
    from windlass.models.generate import LocalModel


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


def generate(
    model: Annotated[str, typer.Argument(help="A name, a folder or a .gguf file.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="What the model is told.", show_default=False)],
    max_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt instead of answering it.")] = False,
    engine: Annotated[str, typer.Option(help="auto, compiled, numpy (exact) or torch.")] = "auto",
    device: Annotated[str, typer.Option(help="Where torch computes: cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Let a model answer a prompt, or continue it.

    The text appears as it is made. A model with a chat template answers; one without, or with --raw, continues.

    Example: windlass generate smollm2-135m-instruct "Name three harbours." --max-tokens 40
    """
    from windlass.app import terminal
    from windlass.core.errors import UsageError
    from windlass.models import store
    from windlass.models.generate import LocalModel

    if engine not in ("auto", "compiled", "numpy", "torch"):
        raise UsageError(f"no engine is called {engine!r}", hint="auto, compiled, numpy or torch")
    path = store.locate(model)
    options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "stop": stop or []}
    made = _make(LocalModel.load(path, engine=engine, device=device), prompt, raw, options, quiet=as_json)  # type: ignore[arg-type]
    if as_json:
        terminal.print_json({"model": model, "path": str(path), **made})
        return
    print()
    rate = f"{made['tokens_per_second']:.1f} tokens/s" if made["tokens_per_second"] else "one token"
    terminal.stderr().print(
        f"{made['tokens']} tokens, {rate}, the first after {made['first_token_seconds']:.2f} s "
        f"(prompt of {made['prompt_tokens']}); engine {made['engine']}, ended by {made['finish']}",
        style="dim",
    )


def _make(model: LocalModel, prompt: str, raw: bool, options: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Generate, print as it comes unless `quiet`, and return what happened."""
    import time

    from windlass.models.generate import generate as run

    chat = not raw and model.tokenizer.template is not None
    tokens = model.tokenizer.chat([{"role": "user", "content": prompt}]) if chat else model.tokenizer.prompt(prompt)
    began = time.perf_counter()
    times: list[float] = []
    text, finish = "", "length"
    for token in run(model.decoder, model.tokenizer, tokens, **options):
        times.append(time.perf_counter() - began)
        text += token.text
        finish = token.finish or finish
        if not quiet:
            print(token.text, end="", flush=True)
    names = {"CpuEngine": "compiled", "Decoder": "numpy", "TorchModel": "torch"}
    return {
        "prompt_tokens": len(tokens),
        "tokens": len(times),
        "text": text,
        "finish": finish,
        "first_token_seconds": times[0],
        # The first token pays for the prompt; the rate is that of the others.
        "tokens_per_second": (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
        "engine": names.get(type(model.decoder).__name__, type(model.decoder).__name__),
        **{key: options[key] for key in ("temperature", "top_p", "seed")},
    }
