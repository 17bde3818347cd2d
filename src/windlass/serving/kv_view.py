"""The context of one sequence: stretches of pages, in order, that it attends to and writes the end of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import EngineBug

Ints = NDArray[np.int64]


class PageOwner(Protocol):
    """What a view tells when it takes and gives back pages; `KVManager` is one."""

    page_tokens: int

    def hold(self, page: int) -> None:
        """One owner more."""

    def drop(self, page: int) -> None:
        """One owner less."""

    def opened(self, view: KVView) -> None:
        """`view` may own pages from now on."""

    def closed(self, view: KVView) -> None:
        """`view` owns nothing any more."""


@dataclass(frozen=True, slots=True)
class Span:
    """`length` tokens at positions `pos0`, `pos0 + 1`, ..., from slot `start` of the first page on.

    Pages behind the last token are room to grow; only the last span of a view has them.
    """

    pages: tuple[int, ...]
    start: int
    length: int
    pos0: int
    owner: str = "local"
    tier: str = "device"

    def used(self, page_tokens: int) -> tuple[int, ...]:
        """The pages that hold tokens."""
        return self.pages[: -(-(self.start + self.length) // page_tokens)] if self.length else ()


class KVView:
    """An ordered list of spans. A page is written by the one view that owns it alone; the others share it."""

    __slots__ = ("_owner", "n_tokens", "spans")

    def __init__(self, owner: PageOwner) -> None:
        self._owner = owner
        self.spans: list[Span] = []
        self.n_tokens = 0
        owner.opened(self)

    @property
    def next_position(self) -> int:
        """Rotary position of the token that is written next."""
        return self.spans[-1].pos0 + self.spans[-1].length if self.spans else 0

    @property
    def room(self) -> int:
        """Tokens that fit behind the last one without another page."""
        if not self.spans:
            return 0
        last = self.spans[-1]
        return len(last.pages) * self._owner.page_tokens - last.start - last.length

    @property
    def pages(self) -> list[int]:
        """All pages, room to grow included, in order."""
        return [page for span in self.spans for page in span.pages]

    def unfinished_page(self) -> int | None:
        """The page that the next token goes to when it already holds others, else None."""
        if not self.spans or not self.spans[-1].length:
            return None
        last = self.spans[-1]
        end = last.start + last.length
        return last.pages[end // self._owner.page_tokens] if end % self._owner.page_tokens else None

    def append(self, span: Span) -> None:
        """Share another stretch of pages; what is written later comes behind it."""
        self._close_last()
        pages = span.used(self._owner.page_tokens)
        for page in pages:
            self._owner.hold(page)
        self.spans.append(Span(pages, span.start, span.length, span.pos0, span.owner, span.tier))
        self.n_tokens += span.length

    def begin(self, position: int) -> None:
        """Write on from here in pages of its own, at another position."""
        self._close_last()
        self.spans.append(Span((), 0, 0, position))

    def fork(self) -> KVView:
        """A view with the same past; no keys or values are copied until one of the two writes."""
        twin = KVView(self._owner)
        for span in self.spans:
            twin.append(span)
        return twin

    def join(self, others: list[KVView]) -> KVView:
        """A view of this context followed by the others', nothing copied."""
        joined = self.fork()
        for other in others:
            for span in other.spans:
                if span.length:
                    joined.append(span)
        return joined

    def extend(self, pages: list[int]) -> None:
        """Room for more tokens: pages that the caller owns and hands over."""
        if not self.spans:
            self.spans.append(Span((), 0, 0, 0))
        last = self.spans[-1]
        self.spans[-1] = Span(last.pages + tuple(pages), last.start, last.length, last.pos0, last.owner, last.tier)

    def replace(self, span: int, place: int, page: int) -> None:
        """Have another page with the same content in place of one; the caller owns it and hands it over."""
        old = self.spans[span]
        pages = (*old.pages[:place], page, *old.pages[place + 1 :])
        self.spans[span] = Span(pages, old.start, old.length, old.pos0, old.owner, old.tier)
        self._owner.drop(old.pages[place])

    def advance(self, count: int) -> None:
        """`count` tokens were written behind the last one.

        Raises:
            EngineBug: there was no room for them.
        """
        if count > self.room:
            raise EngineBug(f"{count} tokens written where {self.room} fit")
        last = self.spans[-1]
        self.spans[-1] = Span(last.pages, last.start, last.length + count, last.pos0, last.owner, last.tier)
        self.n_tokens += count

    def truncate(self, n_tokens: int) -> None:
        """Forget every token from `n_tokens` on, and the pages that held only them.

        Raises:
            EngineBug: it has fewer tokens than that.
        """
        if not 0 <= n_tokens <= self.n_tokens:
            raise EngineBug(f"a view of {self.n_tokens} tokens cannot be cut to {n_tokens}")
        while self.spans and self.n_tokens - self.spans[-1].length >= n_tokens:
            last = self.spans.pop()
            self.n_tokens -= last.length
            self._drop(last.pages)
        if self.n_tokens > n_tokens:
            last = self.spans[-1]
            kept = Span(
                last.pages, last.start, last.length - (self.n_tokens - n_tokens), last.pos0, last.owner, last.tier
            )
            pages = kept.used(self._owner.page_tokens)
            self._drop(last.pages[len(pages) :])
            self.spans[-1] = Span(pages, kept.start, kept.length, kept.pos0, kept.owner, kept.tier)
            self.n_tokens = n_tokens

    def release(self) -> None:
        """Give every page back. The view is empty afterwards."""
        for span in self.spans:
            self._drop(span.pages)
        self.spans, self.n_tokens = [], 0
        self._owner.closed(self)

    def runs(self, ahead: int = 0) -> tuple[Ints, Ints, Ints]:
        """The context as runs inside pages, `ahead` tokens behind the last one included: page, first slot, tokens."""
        size = self._owner.page_tokens
        pages, starts, lengths = [], [], []
        for index, span in enumerate(self.spans):
            length = span.length + (ahead if index == len(self.spans) - 1 else 0)
            count = -(-(span.start + length) // size) if length else 0
            if count == 0:
                continue
            page, start, many = np.array(span.pages[:count], np.int64), np.zeros(count, np.int64), np.full(count, size)
            start[0] = span.start
            many[-1] = span.start + length - (count - 1) * size
            many[0] -= span.start
            pages.append(page)
            starts.append(start)
            lengths.append(many)
        if not pages:
            return (np.zeros(0, np.int64),) * 3
        return np.concatenate(pages), np.concatenate(starts), np.concatenate(lengths).astype(np.int64)

    def slots(self, ahead: Ints) -> Ints:
        """Where tokens are written, `ahead` of the end (0 is the next one): `page * page_tokens + slot`, int64."""
        last, size = self.spans[-1], self._owner.page_tokens
        place = last.start + last.length + ahead
        first, end = int(place[0]) // size, int(place[-1]) // size + 1
        pages = np.array(last.pages[first:end], np.int64)
        return pages[place // size - first] * size + place % size

    def _close_last(self) -> None:
        """Give back the room behind the last token, which no longer is the end."""
        if self.spans:
            last = self.spans[-1]
            pages = last.used(self._owner.page_tokens)
            self._drop(last.pages[len(pages) :])
            self.spans[-1] = Span(pages, last.start, last.length, last.pos0, last.owner, last.tier)

    def _drop(self, pages: tuple[int, ...]) -> None:
        for page in pages:
            self._owner.drop(page)
