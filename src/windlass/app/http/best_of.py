"""`best_of`: more answers are made than given out; those stay whose tokens the model found likeliest on average."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from windlass.app.http.completion import Call, CallAround, Choice, Completion, Piece


class BestOf(CallAround):
    """A call of which only the best answers to each prompt are given out; see `Call`.

    Args:
        call: With as many answers for each prompt as are to be compared, and the chances of their tokens.
        prompts: How many prompts there are.
        keep: How many answers to each.
        with_tokens: Whether the client asked for the chances, too.
    """

    def __init__(self, call: Call, prompts: int, keep: int, *, with_tokens: bool) -> None:
        super().__init__(call)
        self._prompts, self._keep, self._with_tokens = prompts, keep, with_tokens

    async def pieces(self, silence: float) -> AsyncIterator[Piece | None]:
        """Nothing: which answers are the best is known at the end."""
        async for piece in self._call.pieces(silence):
            if piece is None:
                yield None

    async def result(self) -> Completion:
        whole = await self._call.result()
        width = len(whole.choices) // self._prompts
        best: list[Choice] = []
        for place in range(self._prompts):
            answers = whole.choices[place * width : (place + 1) * width]
            best += sorted(answers, key=_mean_logprob, reverse=True)[: self._keep]
        choices = tuple(
            replace(choice, index=index, tokens=choice.tokens if self._with_tokens else None)
            for index, choice in enumerate(best)
        )
        return replace(whole, choices=choices)


def _mean_logprob(choice: Choice) -> float:
    tokens = choice.tokens or ()
    return sum(token.logprob or 0.0 for token in tokens) / len(tokens) if tokens else float("-inf")
