"""The memory of the engine: who holds which page, what is kept for later prompts, what may still be taken."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from windlass.core.errors import EngineBug, PoolExhausted, UsageError
from windlass.serving.adapter_pages import AdapterPages
from windlass.serving.kv_view import KVView, Span
from windlass.serving.prefix_tree import Eviction, Match, PrefixKey, PrefixTree
from windlass.serving.request import Request, Sequence

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from windlass.serving.chunk_plan import ReusePlan

Reserve = Literal["prompt", "full"]


class Pool(Protocol):
    """Pages with a count of owners; `models.page_pool.PagePool` is one."""

    @property
    def owners(self) -> list[int]:
        """Owners of each page."""
        ...

    def take(self) -> int:
        """A page with one owner."""
        ...

    def share(self, page: int) -> None:
        """One owner more."""

    def release(self, page: int) -> None:
        """One owner less; free after the last."""

    def copy(self, page: int) -> int:
        """A page of one's own with the same content."""
        ...


class ChunkReuse(Protocol):
    """Keeps the keys and values of chunks; `chunk_cache.ChunkCache` is one. All but `fetch` on the engine's thread."""

    def fetch(self, request: Request) -> None:
        """Have the chunks of a request that is about to wait at hand; may read the disk, in any thread."""

    def plan(self, seq: Sequence, known: int) -> ReusePlan | None:
        """What of `seq` beyond its first `known` tokens is taken from chunks, or watched to become one."""
        ...

    def place(self, seq: Sequence) -> None:
        """Write what was planned to the pages of `seq`, once."""

    def watch(self, seq: Sequence, indices: NDArray[np.int64], shares: NDArray[np.float32]) -> None:
        """Tokens `indices` of `seq` were computed and attended to this."""

    def keep(self, seq: Sequence) -> None:
        """Remember the chunks that `seq` computed, while it still has its pages."""

    def close(self) -> None:
        """Write what waits to be written."""


class PageCounts:
    """A pool of pages without content: for schedules that are simulated and for tests of the accounting."""

    def __init__(self) -> None:
        self.owners: list[int] = []
        self._free: list[int] = []

    def take(self) -> int:
        if not self._free:
            self.owners.append(0)
            self._free.append(len(self.owners) - 1)
        page = self._free.pop()
        self.owners[page] = 1
        return page

    def share(self, page: int) -> None:
        self.owners[page] += 1

    def release(self, page: int) -> None:
        self.owners[page] -= 1
        if self.owners[page] == 0:
            self._free.append(page)

    def copy(self, page: int) -> int:
        return self.take()


@dataclass(frozen=True, slots=True)
class PageStats:
    """Pages by state. `cached` ones are held by the prefix tree alone and go when others need them, as those of
    `adapters` that nobody runs with."""

    total: int
    free: int
    cached: int
    used: int
    adapters: int = 0


class KVManager:
    """The only memory that a scheduler sees.

    Pages of a finished or preempted sequence stay in the prefix tree until somebody needs the room. A sequence that is
    admitted owns pages for its whole prompt at once: admitting it by its first chunk alone is how engines come to admit
    and preempt the same sequence over and over.

    Args:
        pool: Where pages come from.
        pages: How many may be taken from it.
        page_tokens: Tokens of a page.
        watermark: Share of all pages that admission leaves free for sequences that are running.
        share_prefixes: Keep pages for later prompts.
        revision: Names the weights; pages of other weights never match.
        eviction: Which cached pages go first.
        adapters: The books of adapters in the same pool; None when no request has any.
        chunks: Where chunks of prompts are kept for other contexts than their own; None: nowhere.

    Raises:
        UsageError: there is not a single page.
    """

    def __init__(
        self,
        pool: Pool,
        pages: int,
        *,
        page_tokens: int = 16,
        watermark: float = 0.01,
        share_prefixes: bool = True,
        revision: str = "",
        eviction: Eviction = "lru",
        adapters: AdapterPages | None = None,
        chunks: ChunkReuse | None = None,
    ) -> None:
        if pages < 1 or page_tokens < 1:
            raise UsageError(f"{pages} pages of {page_tokens} tokens hold nothing", hint="give the cache more memory")
        self.pool = pool
        self.total_pages = pages
        self.page_tokens = page_tokens
        self.watermark_pages = int(watermark * pages)
        self.share_prefixes = share_prefixes
        self.tree = PrefixTree(page_tokens, self._is_idle, eviction)
        self.hit_tokens = 0
        self.adapters = adapters or AdapterPages(lambda key: 0)
        self.chunks = chunks
        self._revision = revision
        self._taken = 0
        self._idle = 0
        self._open: dict[int, KVView] = {}
        self._pins: list[tuple[float, int]] = []

    # What a scheduler asks

    @property
    def free_pages(self) -> int:
        return self.total_pages - self._taken

    @property
    def evictable_pages(self) -> int:
        """Pages that only the prefix tree holds."""
        return self._idle

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the whole memory holds."""
        return self.total_pages * self.page_tokens

    def can_admit(self, seq: Sequence, reserve: Reserve = "prompt", *, behind: KVView | None = None) -> bool:
        """Whether pages for its whole prompt, and one token more, can be had while some stay free for the others."""
        match = self._match(seq) if behind is None else self._shared(seq, behind)
        return self._missing(seq, match, reserve) <= self._available(seq, match)

    def admit(self, seq: Sequence, reserve: Reserve = "prompt", *, behind: KVView | None = None) -> int:
        """Give a waiting sequence its pages; how many of its tokens are computed already.

        Args:
            seq: Who.
            reserve: Pages for its prompt, or for everything that it may make.
            behind: A context that it begins with, up to any token of a page; None: what the prefix tree has.

        Raises:
            PoolExhausted: there are not enough; nothing was taken.
        """
        if seq.view is not None:
            raise EngineBug(f"sequence {seq.id} is admitted twice")
        match = self._match(seq) if behind is None else self._shared(seq, behind)
        missing, adapter = self._missing(seq, match, reserve), seq.request.adapter
        if missing > self._available(seq, match):
            raise PoolExhausted(f"{missing} pages are needed for {seq.id}, {self._available(seq, match)} can be had")
        of_adapter = self.adapters.missing(adapter)
        self.adapters.hold(adapter)
        view = KVView(self)
        if match.pages:
            view.append(Span(match.pages, 0, match.n_tokens, 0))
            self.tree.touch(match.node)
        if not self._make_room(missing):
            view.release()
            self.adapters.drop(adapter)
            raise PoolExhausted(f"{missing} pages are needed for {seq.id}, and cached ones are not free to go")
        if adapter is not None and of_adapter:
            self.adapters.settle(adapter, self._take(of_adapter))
        known = match.n_tokens if behind is None else self._begin_page(seq, view, behind)
        view.extend(self._take(missing - of_adapter - (known > match.n_tokens)))
        # What stands behind another context has no place in the tree.
        seq.view, seq.node, seq.published = view, match.node if behind is None else None, match.n_tokens
        self.hit_tokens += known
        return known if self.chunks is None else self._take_chunks(seq, known)

    def grow(self, seq: Sequence, count: int) -> bool:
        """Make room for `count` more tokens, the page they begin in owned alone; False when there is none."""
        view = seq.view
        assert view is not None
        unfinished = view.unfinished_page()
        shared = unfinished is not None and self.pool.owners[unfinished] > 1
        lacking = -(-max(0, count - view.room) // self.page_tokens)
        if lacking == 0 and not shared:
            return True
        if lacking + shared > self.free_pages + self._idle + self.adapters.idle_pages or not self._make_room(
            lacking + shared
        ):
            return False
        if shared:
            assert unfinished is not None
            fresh = self.pool.copy(unfinished)
            self._taken += 1
            span = len(view.spans) - 1
            view.replace(span, view.spans[span].pages.index(unfinished), fresh)
        if lacking:
            view.extend(self._take(lacking))
        return True

    def release(self, seq: Sequence, *, keep: bool = True) -> None:
        """Take the pages back; with `keep`, full ones stay findable until others need the room."""
        if seq.view is None:
            return
        seq.todo = None
        if keep:
            self.publish(seq)
        if seq.node is not None and seq.published:
            self.tree.touch(seq.node)
        seq.view.release()
        self.adapters.drop(seq.request.adapter)
        seq.view, seq.node, seq.published = None, None, 0

    # What the engine asks

    def publish(self, seq: Sequence) -> None:
        """Make full pages of computed tokens findable for other sequences.

        Where another sequence computed the same page meanwhile, this one goes on with that page.
        """
        view, size = seq.view, self.page_tokens
        if not (self.share_prefixes and seq.request.cache) or view is None or len(view.spans) != 1 or seq.node is None:
            return
        node = seq.node
        while seq.published + size <= seq.exact:
            place = seq.published // size
            page = view.spans[0].pages[place]
            node, fresh = self.tree.insert(node, seq.tokens[seq.published : seq.published + size], page)
            if fresh:
                self.pool.share(page)
            elif node.page != page:
                self.hold(node.page)
                view.replace(0, place, node.page)
            seq.node, seq.published = node, seq.published + size

    def pin(self, tokens: list[int], until: float, *, tenant: str = "", adapter: str | None = None) -> int:
        """Keep the known beginning of `tokens` until the time `until`; how many tokens that are."""
        match = self.tree.match(PrefixKey(tenant, adapter, self._revision), tokens)
        if match.pages:
            self.hold(match.node.page)
            self._pins.append((until, match.node.page))
        return match.n_tokens

    def unpin(self, now: float) -> None:
        """Let go of what was pinned until `now` or earlier."""
        if self._pins:
            over = [page for until, page in self._pins if until <= now]
            self._pins = [pin for pin in self._pins if pin[0] > now]
            for page in over:
                self.drop(page)

    def clear(self) -> None:
        """Forget every cached page, and every adapter, that nobody uses."""
        self._make_room(self.total_pages)

    def stats(self) -> PageStats:
        adapters = self.adapters.pages
        used = self._taken - self._idle - adapters
        return PageStats(self.total_pages, self.free_pages, self._idle, used, adapters)

    # What views ask (`PageOwner`)

    def hold(self, page: int) -> None:
        if self.pool.owners[page] == 1 and page in self.tree:
            self._idle -= 1
        self.pool.share(page)

    def drop(self, page: int) -> None:
        self.pool.release(page)
        owners = self.pool.owners[page]
        if owners == 0:
            self._taken -= 1
        elif owners == 1 and page in self.tree:
            self._idle += 1
            self.tree.idle(page)

    def opened(self, view: KVView) -> None:
        self._open[id(view)] = view

    def closed(self, view: KVView) -> None:
        self._open.pop(id(view), None)

    # Laws

    def check(self) -> None:
        """Hold the books against the views, the tree and the pins.

        Raises:
            EngineBug: a page is lost, owned twice where it is written, or counted wrongly.
        """
        expected = Counter(page for view in self._open.values() for page in view.pages)
        expected.update(node.page for node in self.tree.nodes())
        expected.update(page for _, page in self._pins)
        expected.update(page for adapter in self.adapters.resident() for page in adapter.pages)
        for page, owners in enumerate(self.pool.owners):
            if owners != expected.get(page, 0):
                raise EngineBug(f"page {page} has {owners} owners on the books and {expected.get(page, 0)} in fact")
        if len(expected) != self._taken:
            raise EngineBug(f"{self._taken} pages are taken on the books and {len(expected)} in fact")
        idle = sum(expected[node.page] == 1 for node in self.tree.nodes())
        if idle != self._idle:
            raise EngineBug(f"{self._idle} cached pages are idle on the books and {idle} in fact")
        if self._taken > self.total_pages:
            raise EngineBug(f"{self._taken} pages are taken of {self.total_pages}")
        for view in self._open.values():
            for span in view.spans:
                spare = span.pages[len(span.used(self.page_tokens)) :]
                if any(expected[page] != 1 for page in spare):
                    raise EngineBug("a page that is about to be written has two owners")

    def _take_chunks(self, seq: Sequence, known: int) -> int:
        """Plan what of the prompt is taken from chunks; how many tokens then stand at its beginning."""
        assert self.chunks is not None and seq.view is not None
        seq.reuse = self.chunks.plan(seq, known)
        if seq.reuse is None or not seq.reuse.taken:
            return known
        seq.computed = known
        seq.set_todo(seq.reuse.todo(len(seq.tokens)))
        return seq.computed

    def _match(self, seq: Sequence) -> Match:
        key = PrefixKey(seq.request.tenant, seq.request.adapter, self._revision)
        if not (self.share_prefixes and seq.request.cache):
            return Match(self.tree.root(key), 0, ())
        # The last token is computed again even when it is known: without its query there are no logits.
        return self.tree.match(key, seq.tokens[: len(seq.tokens) - 1])

    def _shared(self, seq: Sequence, behind: KVView) -> Match:
        """The full pages of `behind` that `seq` can begin with, as a match that leads nowhere in the tree."""
        count = min(behind.n_tokens, len(seq.tokens) - 1) // self.page_tokens
        root = self.tree.root(PrefixKey(seq.request.tenant, seq.request.adapter, self._revision))
        return Match(root, count * self.page_tokens, tuple(behind.pages[:count]))

    def _begin_page(self, seq: Sequence, view: KVView, behind: KVView) -> int:
        """Copy what `behind` has in the page after its full ones; how many tokens `view` then holds."""
        known = min(behind.n_tokens, len(seq.tokens) - 1)
        if known > view.n_tokens:
            page = self.pool.copy(behind.pages[view.n_tokens // self.page_tokens])
            self._taken += 1
            view.extend([page])
            view.advance(known - view.n_tokens)
        return known

    def _missing(self, seq: Sequence, match: Match, reserve: Reserve) -> int:
        longest = max(seq.longest, len(seq.tokens))
        tokens = longest if reserve == "full" else min(longest, len(seq.tokens) + 1)
        return -(-tokens // self.page_tokens) - len(match.pages) + self.adapters.missing(seq.request.adapter)

    def _available(self, seq: Sequence, match: Match) -> int:
        revived = sum(self._is_idle(page) and page in self.tree for page in match.pages)
        revived += self.adapters.revived(seq.request.adapter)
        kept = self.watermark_pages if self._open else 0
        return self.free_pages + self._idle + self.adapters.idle_pages - revived - kept

    def _is_idle(self, page: int) -> bool:
        return self.pool.owners[page] == 1

    def _take(self, count: int) -> list[int]:
        self._taken += count
        return [self.pool.take() for _ in range(count)]

    def _make_room(self, count: int) -> bool:
        """Evict until `count` pages are free, idle adapters first; whether they are."""
        for page in self.adapters.evict(count - self.free_pages) if count > self.free_pages else ():
            self.pool.release(page)
            self._taken -= 1
        for page in self.tree.evict(max(0, count - self.free_pages)):
            self.pool.release(page)
            self._taken -= 1
            self._idle -= 1
        return self.free_pages >= count
