"""The `windlass` command.

Errors that a person can do something about are one line on standard error and an exit status; a traceback is a bug.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import typer

from windlass.app.commands import (
    ask,
    batch,
    bench,
    doctor,
    evaluate,
    generate,
    graph,
    index,
    keys,
    lake,
    models,
    search,
    serve,
    simulate,
    systems,
    up,
)
from windlass.core.errors import WindlassError

_HELP = """Lift a folder: clean it, index it, ask it. Everything stays on this machine.

  windlass up reports                     index the folder and open its page

  windlass ask reports "Who signs?"       an answer with citations

Every command has --help with an example."""

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich help costs a fifth of a second at every start
    pretty_exceptions_enable=False,
)
_COMMANDS = (
    up,
    ask,
    search,
    serve,
    keys,
    evaluate,
    lake,
    index,
    graph,
    generate,
    batch,
    models,
    simulate,
    systems,
    bench,
    doctor,
)
for command in _COMMANDS:
    command.register(app)


def main() -> None:
    """Run the command line and exit with its status."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so under `nohup`
    if interruptible:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except WindlassError as error:
        print(f"windlass: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (_Interrupted, KeyboardInterrupt):
        print("windlass: stopped; what was finished is kept", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away (`windlass search ... | head`): not an error, and nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Interrupted(BaseException):
    """Ctrl-C. No `KeyboardInterrupt`: typer would end on that without a word."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted


if __name__ == "__main__":
    main()
