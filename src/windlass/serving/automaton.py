"""Pushdown automata over bytes, and which tokens of a vocabulary they let pass.

States have edges that read a byte, edges that read nothing, and calls: go to another state, and come back to a given
one when a final state is reached there. A text is accepted when it leads from the first state to the end of its call.

Which tokens may come next is found for all of them at once, on arrays: one step for each byte of the longest. What a
token does before it leaves the call it begins in depends on the state alone and is remembered; only the few tokens that
go on behind the end of a call are followed through the stack at hand. (XGrammar, Dong et al., MLSys 2025, splits a
vocabulary this way. Here the split is by state, made at first use, and followed on arrays instead of a tree.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError

Ids = NDArray[np.int64]
DEEPEST = 200
"""Calls within calls; who goes deeper finds nothing that may come next."""
_UNKNOWN, _DEAD = -2, -1
_REMEMBERED = 128
_LARGEST_TABLE = 20_000


class Frame:
    """Where a call comes back to: a state, and the frame below; one object for each pair in one `Stacks`."""

    __slots__ = ("below", "depth", "state")

    def __init__(self, state: int, below: Frame | None) -> None:
        self.state, self.below = state, below
        self.depth: int = 0 if below is None else below.depth + 1


Place = tuple[int, "Frame | None"]
"""A state that reads bytes, and what lies below it."""


class Automaton:
    """States and edges while they are put together.

    Attributes:
        start, end: The first state, and the final one of the outermost call.
    """

    def __init__(self) -> None:
        self.bytes: list[list[tuple[frozenset[int], int]]] = []
        self.free: list[list[int]] = []
        self.calls: list[list[tuple[int, int]]] = []
        self.final: list[bool] = []
        self.start, self.end = self.state(), self.state(final=True)

    def state(self, *, final: bool = False) -> int:
        """A new state."""
        self.bytes.append([])
        self.free.append([])
        self.calls.append([])
        self.final.append(final)
        return len(self.final) - 1

    def read(self, start: int, values: Iterable[int], end: int) -> None:
        """From `start` to `end` by any of these bytes."""
        self.bytes[start].append((frozenset(values), end))

    def skip(self, start: int, end: int) -> None:
        """From `start` to `end` by nothing."""
        self.free[start].append(end)

    def call(self, start: int, target: int, end: int) -> None:
        """From `start` to `end` by whatever leads from `target` to a final state."""
        self.calls[start].append((target, end))

    def spell(self, start: int, text: bytes, end: int) -> None:
        """From `start` to `end` by exactly these bytes."""
        for value in text[:-1]:
            between = self.state()
            self.read(start, (value,), between)
            start = between
        if text:
            self.read(start, (text[-1],), end)
        else:
            self.skip(start, end)

    def only_returns(self, state: int) -> bool:
        """Whether all that can be done in a state is to come back from the call."""
        return self.final[state] and not (self.bytes[state] or self.free[state] or self.calls[state])


class Stacks:
    """Moves through one automaton. Frames are shared, so equal places are the same object.

    Args:
        automaton: What is moved through.
        bottom: Below everything; None for a text from its beginning.
    """

    def __init__(self, automaton: Automaton, bottom: Frame | None = None) -> None:
        self._automaton, self._bottom = automaton, bottom
        self._frames: dict[tuple[int, Frame | None], Frame] = {}

    def settle(self, entered: Iterable[Place]) -> tuple[frozenset[Place], bool]:
        """All places that read bytes and are reached without reading; whether the bottom is, too."""
        automaton, seen, reading, done = self._automaton, set(), set(), False
        todo = list(entered)
        while todo:
            place = todo.pop()
            if place in seen:
                continue
            seen.add(place)
            state, below = place
            if automaton.bytes[state]:
                reading.add(place)
            if automaton.final[state]:
                if below is self._bottom:
                    done = True
                elif below is not None:
                    todo.append((below.state, below.below))
            todo += [(other, below) for other in automaton.free[state]]
            for target, back in automaton.calls[state]:
                # A call with nothing behind it returns to where its caller would.
                frame = below if automaton.only_returns(back) else self._frame(back, below)
                if frame is None or frame.depth <= DEEPEST:
                    todo.append((target, frame))
        return frozenset(reading), done

    def after(self, places: Iterable[Place], value: int) -> tuple[frozenset[Place], bool]:
        """As `settle`, behind one byte."""
        edges = self._automaton.bytes
        return self.settle((end, below) for state, below in places for values, end in edges[state] if value in values)

    def _frame(self, state: int, below: Frame | None) -> Frame:
        frame = self._frames.get((state, below))
        if frame is None:
            frame = self._frames[state, below] = Frame(state, below)
        return frame


class Spellings:
    """The bytes of every token of a vocabulary. A token without bytes is never allowed.

    Args:
        tokens: By id.
    """

    def __init__(self, tokens: Iterable[bytes]) -> None:
        self.tokens = list(tokens)
        self.lengths = np.array([len(token) for token in self.tokens], np.int64)
        self.starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)
        self.flat = np.frombuffer(b"".join(self.tokens), np.uint8)
        self.spelled = np.flatnonzero(self.lengths)

    def __len__(self) -> int:
        return len(self.tokens)


class TokenGrammar:
    """An automaton over the tokens of a vocabulary. May be shared by many texts, and by threads that take turns.

    Args:
        automaton: What texts must lead through.
        spellings: Of the tokens.
    """

    def __init__(self, automaton: Automaton, spellings: Spellings) -> None:
        self.automaton, self.spellings = automaton, spellings
        self._from_start: OrderedDict[int, tuple[NDArray[np.uint8], Ids, Ids]] = OrderedDict()
        self._forget_moves()

    def within(self, state: int) -> tuple[NDArray[np.bool_], Ids, Ids]:
        """Which tokens stay to their end in the call that a state belongs to, bool [vocab]; which leave it, and where.

        Of a token that leaves, so many bytes are read until then.
        """
        count = len(self.spellings)
        found = self._from_start.get(state)
        if found is None:
            tokens = self.spellings.spelled
            fit, leaving, at = self.follow(state, tokens, np.zeros(len(tokens), np.int64))
            mask = np.zeros(count, np.bool_)
            mask[fit] = True
            found = self._from_start[state] = np.packbits(mask), leaving, at
            if len(self._from_start) > _REMEMBERED:
                self._from_start.popitem(last=False)
        else:
            self._from_start.move_to_end(state)
        return np.unpackbits(found[0], count=count).view(np.bool_), found[1], found[2]

    def follow(self, state: int, tokens: Ids, at: Ids) -> tuple[Ids, Ids, Ids]:
        """As `within`, for some tokens, of which `at` bytes are read already; the first result as ids.

        A token that leaves with its last byte counts as one that stays.
        """
        if len(self._moves) > _LARGEST_TABLE:
            self._forget_moves()
        words = self.spellings
        places = np.full(len(tokens), self._number(frozenset({(state, self._bottom)}), False), np.int64)
        accepted, leaving, left_at = [], [], []
        while len(tokens):
            over = at == words.lengths[tokens]
            accepted.append(tokens[over])
            tokens, at, places = tokens[~over], at[~over], places[~over]
            places = self._move(places, words.flat[words.starts[tokens] + at].astype(np.int64))
            alive = places >= 0
            tokens, at, places = tokens[alive], at[alive] + 1, places[alive]
            out = self._leaves[places]
            at_end = at == words.lengths[tokens]
            accepted.append(tokens[out & at_end])
            leaving.append(tokens[out & ~at_end])
            left_at.append(at[out & ~at_end])
            reads = self._reads[places]
            tokens, at, places = tokens[reads], at[reads], places[reads]
        none = np.zeros(0, np.int64)
        return tuple(np.concatenate([none, *parts]) for parts in (accepted, leaving, left_at))  # type: ignore[return-value]

    def _forget_moves(self) -> None:
        self._bottom = Frame(-1, None)
        self._stacks = Stacks(self.automaton, self._bottom)
        self._numbers: dict[tuple[frozenset[Place], bool], int] = {}
        self._known: list[frozenset[Place]] = []
        self._moves = np.full((64, 256), _UNKNOWN, np.int64)
        self._leaves, self._reads = np.zeros(64, np.bool_), np.zeros(64, np.bool_)

    def _number(self, places: frozenset[Place], leaves: bool) -> int:
        number = self._numbers.get((places, leaves))
        if number is None:
            number = self._numbers[places, leaves] = len(self._known)
            self._known.append(places)
            if number == len(self._moves):
                self._moves = np.concatenate((self._moves, np.full_like(self._moves, _UNKNOWN)))
                self._leaves, self._reads = (np.concatenate((a, np.zeros_like(a))) for a in (self._leaves, self._reads))
            self._leaves[number], self._reads[number] = leaves, bool(places)
        return number

    def _move(self, places: Ids, values: Ids) -> Ids:
        pairs = places * 256 + values
        moved: Ids = self._moves.reshape(-1)[pairs]
        unknown = np.unique(pairs[moved == _UNKNOWN])
        if len(unknown):
            for pair in unknown.tolist():
                reached, leaves = self._stacks.after(self._known[pair >> 8], pair & 255)
                target = self._number(reached, leaves) if reached or leaves else _DEAD
                self._moves[pair >> 8, pair & 255] = target
            moved = self._moves.reshape(-1)[pairs]
        return moved


class Walk:
    """One text on its way through a grammar; a `windlass.serving.request.Constraint`.

    Args:
        grammar: Where it goes.
        end_ids: Tokens that end the text, allowed when it may end.

    Raises:
        UsageError: no text at all fits the grammar.
    """

    def __init__(self, grammar: TokenGrammar, end_ids: Iterable[int]) -> None:
        self._grammar, self._ends = grammar, np.array(sorted(end_ids), np.int64)
        self._stacks = Stacks(grammar.automaton)
        self._places, self._may_end = self._stacks.settle([(grammar.automaton.start, None)])
        self._masks: OrderedDict[frozenset[Place], NDArray[np.bool_]] = OrderedDict()
        if not (self._places or self._may_end):
            raise UsageError("nothing fits this grammar")

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing more can follow."""
        return self._may_end and not self._places

    @property
    def may_end(self) -> bool:
        """Whether the text is complete as it is."""
        return self._may_end

    def allowed(self) -> NDArray[np.bool_]:
        """Tokens that may come next, bool [vocab]; not to be changed."""
        mask = self._masks.get(self._places)
        if mask is None:
            mask = np.zeros(len(self._grammar.spellings), np.bool_)
            for state, below in self._places:
                fit, leaving, at = self._grammar.within(state)
                mask |= fit
                self._allow_behind(below, leaving, at, mask)
            self._masks[self._places] = mask
            if len(self._masks) > 8:
                self._masks.popitem(last=False)
        mask[self._ends] = self._may_end
        return mask

    def take(self, token: int) -> None:
        """Go on with a token.

        Raises:
            UsageError: it is not allowed here; nothing changed.
        """
        places, may_end = self._places, self._may_end
        spelled = self._grammar.spellings.tokens[token]
        for value in spelled:
            places, may_end = self._stacks.after(places, value)
        if not spelled or not (places or may_end):
            raise UsageError(f"token {token} is not allowed here")
        self._places, self._may_end = places, may_end

    def _allow_behind(self, frame: Frame | None, tokens: Ids, at: Ids, mask: NDArray[np.bool_]) -> None:
        """Allow those of `tokens` that go on in `frame` after `at` bytes; below the outermost call there is nothing."""
        if frame is None or len(tokens) == 0:
            return
        for state, below in self._stacks.settle([(frame.state, frame.below)])[0]:
            fit, leaving, left_at = self._grammar.follow(state, tokens, at)
            mask[fit] = True
            self._allow_behind(below, leaving, left_at, mask)
