"""A flat batch of tokens of many sequences over paged memory: what an engine computes in one pass.

Every token says where it stands (its rotary position), where its key and value go (a slot of the pool) and how much of
its sequence's context it sees. A context is a list of runs, `length` slots of a page from `start` on, in the order of
attention; so contexts may begin and end inside pages, share them, and join pieces that were computed apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError

Integers = NDArray[np.int64]
Wanted = Literal["last", "every", "none"]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """N tokens of S sequences, all arrays int64.

    Tokens of one sequence in the same batch see each other by `visible`. The results of a token are the same bits
    whatever else is in the batch and however its context is cut into runs.

    Attributes:
        ids, positions: `[N]` token ids and rotary positions.
        rows: `[N]` which sequence a token belongs to.
        slots: `[N]` where its key and value are written: page * page_tokens + offset; no two alike.
        visible: `[N]` how many slots of its context it attends to, from the first; its own is among them.
        context_pages, context_starts, context_lengths: `[E]` the runs of all sequences, one sequence after the other.
        context_offsets: `[S + 1]` the runs of sequence s are `context_offsets[s]` to `context_offsets[s + 1]`.
        out_rows: `[M]` tokens whose logits are wanted, in the order wanted.
    """

    ids: Integers
    positions: Integers
    rows: Integers
    slots: Integers
    visible: Integers
    context_pages: Integers
    context_starts: Integers
    context_lengths: Integers
    context_offsets: Integers
    out_rows: Integers

    @classmethod
    def contiguous(
        cls,
        tokens: Sequence[Integers],
        pages: Sequence[Sequence[int]],
        lengths: Sequence[int],
        page_tokens: int,
        *,
        wanted: Wanted = "last",
    ) -> TokenBatch:
        """The ordinary case: each sequence fills its pages from the first on and goes on at the end.

        Args:
            tokens: The new tokens of each sequence, at least one.
            pages: Its pages, enough for what is stored and what comes.
            lengths: Positions stored before.
            page_tokens: Positions in a page.
            wanted: Logits after the last token of each sequence, after every token, or none.
        """
        counts = np.array([len(part) for part in tokens], np.int64)
        ends = np.asarray(lengths, np.int64) + counts
        used = -(-ends // page_tokens)
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(used)))
        table = np.concatenate([np.asarray(part[:need], np.int64) for part, need in zip(pages, used, strict=True)])
        if len(table) != offsets[-1]:
            raise UsageError(f"{offsets[-1]} pages are needed for these tokens, {len(table)} were given")
        run_lengths = np.full(len(table), page_tokens, np.int64)
        run_lengths[offsets[1:] - 1] = ends - (used - 1) * page_tokens
        positions = np.concatenate(
            [np.arange(end - count, end, dtype=np.int64) for end, count in zip(ends, counts, strict=True)]
        )
        rows = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        slots = table[offsets[rows] + positions // page_tokens] * page_tokens + positions % page_tokens
        out_rows = {"last": np.cumsum(counts) - 1, "every": np.arange(len(rows)), "none": np.zeros(0, np.int64)}
        return cls(
            ids=np.concatenate([np.asarray(part, np.int64) for part in tokens]),
            positions=positions,
            rows=rows,
            slots=slots,
            visible=positions + 1,
            context_pages=table,
            context_starts=np.zeros(len(table), np.int64),
            context_lengths=run_lengths,
            context_offsets=offsets,
            out_rows=out_rows[wanted],
        )

    def require_valid(self, *, pages: int, page_tokens: int, vocab_size: int, max_position: int) -> None:
        """Compiled code trusts every index, so each is checked here.

        Raises:
            UsageError: an array of another type or length, or an index out of its range; the message names it.
        """
        tokens, runs, sequences = len(self.ids), len(self.context_pages), len(self.context_offsets) - 1
        if tokens == 0:
            raise UsageError("the batch is empty: at least one token is needed")
        for names, length in (
            (("ids", "positions", "rows", "slots", "visible"), tokens),
            (("context_pages", "context_starts", "context_lengths"), runs),
            (("context_offsets",), sequences + 1),
            (("out_rows",), len(self.out_rows)),
        ):
            for name in names:
                array = getattr(self, name)
                if array.dtype != np.int64 or array.shape != (length,) or not array.flags.c_contiguous:
                    raise UsageError(
                        f"{name} is {array.dtype} {array.shape}, expected contiguous int64 of {length} entries"
                    )
        offsets, lengths = self.context_offsets, self.context_lengths
        if sequences < 1 or offsets[0] != 0 or offsets[-1] != runs or (np.diff(offsets) < 0).any():
            raise UsageError(f"context_offsets do not divide {runs} runs among {sequences} sequences")
        _require_range("ids", self.ids, 0, vocab_size)
        _require_range("positions", self.positions, 0, max_position)
        _require_range("rows", self.rows, 0, sequences)
        _require_range("slots", self.slots, 0, pages * page_tokens)
        _require_range("context_pages", self.context_pages, 0, pages)
        _require_range("context_starts", self.context_starts, 0, page_tokens)
        _require_range("context_lengths", lengths, 1, page_tokens + 1)
        _require_range("runs end", self.context_starts + lengths, 1, page_tokens + 1)
        _require_range("out_rows", self.out_rows, 0, tokens)
        if len(self.out_rows) > tokens:
            raise UsageError(f"out_rows asks for logits {len(self.out_rows)} times, the batch has {tokens} tokens")
        if len(np.unique(self.slots)) != tokens:
            raise UsageError("two tokens of one batch are written to the same slot")
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        stored = before[offsets[1:]] - before[offsets[:-1]]
        wrong = np.flatnonzero((self.visible < 1) | (self.visible > stored[self.rows]))
        if len(wrong):
            token = int(wrong[0])
            raise UsageError(
                f"token {token} sees {self.visible[token]} slots of a context of {stored[self.rows[token]]}"
            )


def _require_range(name: str, values: Integers, low: int, high: int) -> None:
    wrong = values[(values < low) | (values >= high)]
    if len(wrong):
        raise UsageError(f"{name} holds {wrong[0]}, expected {low} to {high - 1}")


@dataclass(frozen=True, slots=True)
class AttentionMass:
    """Where the attention of a batch's tokens goes: to which stretch of its context, how much.

    Attributes:
        bounds: int64, for one sequence after the other: the slots before which its stretches end, ascending. The
            first begins at slot 0; the last ends at or behind the last slot that a token sees.
        offsets: int64 `[S + 1]` the bounds of sequence s are `offsets[s]` to `offsets[s + 1]`; none: nothing is noted.
        shares: float32 `[N, most stretches]`, zeros; a step adds the mean over heads and some layers, so that the
            line of a token sums to 1.
    """

    bounds: Integers
    offsets: Integers
    shares: NDArray[np.float32]

    @classmethod
    def over(cls, bounds: Sequence[Sequence[int]], tokens: int) -> AttentionMass:
        """Room for what `tokens` tokens of sequences with these bounds attend to."""
        lengths = [len(part) for part in bounds]
        flat = np.array([bound for part in bounds for bound in part], np.int64)
        shares = np.zeros((tokens, max(lengths)), np.float32)
        return cls(flat, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), shares)

    def require_valid(self, batch: TokenBatch) -> None:
        """Compiled code trusts these as well.

        Raises:
            UsageError: a shape does not fit the batch, or a sequence's bounds end before what its tokens see.
        """
        offsets, counts = self.offsets, np.diff(self.offsets)
        if len(offsets) != len(batch.context_offsets) or offsets[0] != 0 or offsets[-1] != len(self.bounds):
            raise UsageError(f"offsets of bounds do not fit {len(batch.context_offsets) - 1} sequences")
        if (counts < 0).any() or self.shares.shape != (len(batch.ids), max(1, int(counts.max(initial=0)))):
            raise UsageError(f"shares are {self.shares.shape}, expected a line a token, a number a stretch")
        if self.shares.dtype != np.float32 or not self.shares.flags.c_contiguous or self.bounds.dtype != np.int64:
            raise UsageError("shares must be contiguous float32, bounds int64")
        for row in np.flatnonzero(counts):
            own = self.bounds[offsets[row] : offsets[row + 1]]
            if (np.diff(own) < 0).any() or own[0] < 0 or own[-1] < batch.visible[batch.rows == row].max(initial=0):
                raise UsageError(f"the bounds of sequence {row} do not ascend to the end of what it sees")
