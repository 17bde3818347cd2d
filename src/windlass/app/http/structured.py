"""Answers of a given form: JSON of a schema, calls of the caller's functions."""

from __future__ import annotations

import json
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from windlass.app.http.completion import Call, CallAround, Choice, Completion, Piece, ToolCall
from windlass.app.http.openai_schema import ChatRequest, Function
from windlass.app.http.replies import ApiError
from windlass.core.errors import UsageError
from windlass.serving.automaton import Automaton, Spellings, TokenGrammar, Walk
from windlass.serving.json_grammar import json_object, json_schema, read_tool_call, tool_call
from windlass.serving.request import Constraint

_REMEMBERED = 16


class Grammars:
    """What answers are held to, made once for each form that is asked for.

    Args:
        tokens: Bytes of every token of the model, by id.
        end_ids: Tokens that end an answer.
    """

    def __init__(self, tokens: Iterable[bytes], end_ids: Iterable[int]) -> None:
        self._spellings, self._end_ids = Spellings(tokens), frozenset(end_ids)
        self._made: OrderedDict[str, TokenGrammar] = OrderedDict()

    def constraint(self, body: ChatRequest) -> Callable[[], Constraint] | None:
        """Makes what an answer to `body` is held to; None when any text will do.

        Raises:
            ApiError: 400 for a schema that is wrong or not supported, naming the keyword and its place.
        """
        form = _form(body)
        if form is None:
            return None
        grammar = self._made.get(form)
        try:
            if grammar is None:
                grammar = self._made[form] = TokenGrammar(_automaton(body), self._spellings)
                if len(self._made) > _REMEMBERED:
                    self._made.popitem(last=False)
            Walk(grammar, self._end_ids)
        except (UsageError, RecursionError) as error:
            param = "tools" if body.usable_tools else "response_format"
            message = str(error) if isinstance(error, UsageError) else "the schema is nested too deep"
            raise ApiError(400, f"{param}: {message}", param=param, code="unsupported_schema") from error
        found = grammar
        return lambda: Walk(found, self._end_ids)


def with_tools(messages: list[dict[str, str]], body: ChatRequest) -> list[dict[str, str]]:
    """The conversation with its tools told in the first system message."""
    if not body.usable_tools:
        return messages
    told = _tools_text(body.usable_tools, body.may_write_text)
    if messages[0]["role"] == "system":
        first = {"role": "system", "content": f"{messages[0]['content']}\n\n{told}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]


class ToolCalls(CallAround):
    """A call of which answers that are calls of a function come out as such; see `Call`."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._begun: dict[int, bool] = {}

    async def pieces(self, silence: float) -> AsyncIterator[Piece | None]:
        """Pieces of texts; those of a call are held back until it is whole."""
        async for piece in self._call.pieces(silence):
            if piece is None:
                yield None
            elif not self._begun.setdefault(piece.index, piece.text.startswith("{")):
                yield piece

    async def result(self) -> Completion:
        completion = await self._call.result()
        return replace(completion, choices=tuple(map(_as_call, completion.choices)))


def _as_call(choice: Choice) -> Choice:
    found = read_tool_call(choice.text)
    if found is None:
        return choice
    call = ToolCall(f"call_{uuid.uuid4().hex}", *found)
    finish = "tool_calls" if choice.finish == "stop" else choice.finish
    return replace(choice, text="", finish=finish, tool_calls=(call,))


def _form(body: ChatRequest) -> str | None:
    """What makes two grammars the same."""
    if body.usable_tools:
        tools = [[function.name, function.parameters] for function in body.usable_tools]
        return json.dumps(["tools", tools, body.may_write_text])
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    return json.dumps([wanted.type, wanted.json_schema.body if wanted.json_schema else None])


def _automaton(body: ChatRequest) -> Automaton:
    if body.usable_tools:
        tools = [(function.name, _parameters(function)) for function in body.usable_tools]
        return tool_call(tools, or_text=body.may_write_text)
    wanted = body.response_format
    if wanted is not None and wanted.json_schema is not None and wanted.type == "json_schema":
        return json_schema(wanted.json_schema.body)
    return json_object()


def _parameters(function: Function) -> Mapping[str, object]:
    parameters = function.parameters or {}
    return parameters if parameters.keys() & {"type", "$ref", "anyOf", "properties"} else {"type": "object"}


def _tools_text(functions: Sequence[Function], may_write_text: bool) -> str:
    lines = [json.dumps(function.model_dump(include={"name", "description", "parameters"})) for function in functions]
    how = "You can call these functions" if may_write_text else "Call one of these functions"
    return "\n".join([f'{how}. A call is written as {{"name": NAME, "arguments": {{...}}}} and nothing else.', *lines])
