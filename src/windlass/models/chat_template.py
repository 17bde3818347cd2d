"""A model's chat template, rendered without trusting it.

Templates are programs that come with a downloaded file. This one runs in Jinja's immutable sandbox with a
short list of filters, a deadline, and a cap on the size of every value it can grow.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import TemplateError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from windlass.core.errors import ModelError, UsageError

LONGEST_TEMPLATE = 64 << 10
LONGEST_RENDERING = 16 << 20
SECONDS = 0.1
SECONDS_PER_MEGABYTE = 0.1
LARGEST_NUMBER = 100_000
FILTERS = frozenset(
    (
        "abs capitalize count d default dictsort e escape first float int items join last length list lower "
        "map max min reject rejectattr replace reverse round safe select selectattr sort string sum title tojson "
        "trim unique upper"
    ).split()
)
REFUSED_METHODS = frozenset({"format", "format_map", "translate", "encode", "expandtabs"})


class _TooMuch(Exception):
    """The template went past a limit; never leaves this module."""


class _Refusal(Exception):
    """The template itself refused the conversation (`raise_exception`)."""


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise _TooMuch(f"operator {operator} is not allowed here")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if hasattr(value, "__len__") and isinstance(times, int) and len(value) * times > LARGEST_NUMBER:
                    raise _TooMuch("a repeated text is too long")
        result = super().call_binop(context, operator, left, right)
        _check_size(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(__obj, "__name__", "")
        if name in REFUSED_METHODS:
            raise _TooMuch(f"method {name} is not allowed")
        for value in (*args, *kwargs.values()):
            if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
                raise _TooMuch(f"the number {value} is too large")
        result = super().call(__context, __obj, *args, **kwargs)
        _check_size(result)
        return result


def _check_size(value: Any) -> None:
    if isinstance(value, str | list | tuple) and len(value) > LONGEST_RENDERING:
        raise _TooMuch(f"a value grew past {LONGEST_RENDERING} characters")
    if isinstance(value, int) and value.bit_length() > 256:
        raise _TooMuch("a number grew past 256 bits")


def _refuse(message: object) -> str:
    raise _Refusal(str(message)[:300])


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(int(indent), 8))


class ChatTemplate:
    """A compiled chat template.

    Raises:
        ModelError: the template is too long or not valid Jinja.

    Example:
        >>> ChatTemplate("{{ messages[0]['content'] }}!").render([{"role": "user", "content": "Hi"}], {})
        'Hi!'
    """

    def __init__(self, source: str) -> None:
        if len(source) > LONGEST_TEMPLATE:
            raise ModelError(f"the chat template has {len(source)} characters, at most {LONGEST_TEMPLATE} are accepted")
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters = {name: body for name, body in environment.filters.items() if name in FILTERS}
        environment.filters["tojson"] = _to_json
        environment.globals = {
            "range": environment.globals["range"],
            "namespace": environment.globals["namespace"],
        }
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(str(layout)[:64])
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError, SyntaxError, ValueError, OverflowError, MemoryError) as error:
            raise ModelError(f"the chat template is not valid: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> str:
        """The prompt for `messages`, open for the model's answer. `names` holds `bos_token` and `eos_token`.

        Raises:
            UsageError: the template refuses this conversation.
            ModelError: the template fails, takes too long or grows too large.
        """
        size = sum(len(message["content"]) for message in messages)
        values = {"messages": [dict(message) for message in messages], "add_generation_prompt": True, **names}
        try:
            parts = _within(
                SECONDS + SECONDS_PER_MEGABYTE * size / 1e6,
                lambda: _bounded_join(self._template.generate(values), LONGEST_RENDERING + 4 * size),
            )
        except _Refusal as refusal:
            raise UsageError(f"the model's chat template refuses this conversation: {refusal}") from refusal
        except _TooMuch as limit:
            raise ModelError(f"the chat template was stopped: {limit}") from limit
        except (
            TemplateError,
            RecursionError,
            TypeError,
            ValueError,
            KeyError,
            ArithmeticError,
            MemoryError,
        ) as error:
            raise ModelError(f"the chat template failed: {type(error).__name__}: {error}") from error
        return parts


def _bounded_join(pieces: Any, longest: int) -> str:
    kept: list[str] = []
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > longest:
            raise _TooMuch(f"the prompt grew past {longest} characters")
        kept.append(piece)
    return "".join(kept)


def _within(seconds: float, work: Callable[[], str]) -> str:
    """Run `work` and stop it at the deadline, also inside a loop that prints nothing.

    A trace function sees every line the template executes; a thread or a signal could not interrupt it.
    """
    deadline = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > deadline:
            raise _TooMuch(f"it took longer than {seconds:.1f} seconds")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        return work()
    finally:
        sys.settrace(before)
