"""Pages of earlier prompts, found again by their tokens: a tree with one full page a node."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Eviction = Literal["lru", "lfu", "cost"]


class PrefixKey(NamedTuple):
    """What must be equal before tokens are compared: neither another tenant's pages nor another model's match."""

    tenant: str
    adapter: str | None
    revision: str


class Node:
    """One full page: the tokens in it follow those of its ancestors."""

    __slots__ = ("block", "children", "depth", "entry", "hits", "page", "parent", "used")

    def __init__(self, parent: Node | None, block: bytes, page: int) -> None:
        self.parent = parent
        self.block = block
        self.page = page
        self.children: dict[bytes, Node] = {}
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.used = 0.0
        self.hits = 0
        self.entry = 0


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known beginning of some tokens: its last node, how many tokens, their pages."""

    node: Node
    n_tokens: int
    pages: tuple[int, ...]


class PrefixTree:
    """Which pages hold which tokens. It owns one share of each page it knows.

    Eviction takes leaves that nobody else holds: the least recently used (`lru`), the least often used (`lfu`), or the
    cheapest to compute again (`cost`: later pages attend to more). Candidates wait in a heap, so that n pages cost
    O(n log n), however large the tree is.

    Args:
        page_tokens: Tokens of a page.
        is_idle: Whether nobody but the tree holds a page.
        eviction: What goes first.
    """

    def __init__(self, page_tokens: int, is_idle: Callable[[int], bool], eviction: Eviction = "lru") -> None:
        self._page_tokens = page_tokens
        self._is_idle = is_idle
        self._eviction: Eviction = eviction
        self._roots: dict[PrefixKey, Node] = {}
        self._by_page: dict[int, Node] = {}
        self._leaves: list[tuple[float, int, Node]] = []
        self._ticks = 0
        self._floor = 0.0

    def __len__(self) -> int:
        """Pages in the tree."""
        return len(self._by_page)

    def __contains__(self, page: int) -> bool:
        return page in self._by_page

    def match(self, key: PrefixKey, tokens: list[int]) -> Match:
        """The longest beginning of `tokens` that is known, in whole pages."""
        node, pages = self._root(key), []
        for block in _blocks(tokens, self._page_tokens):
            found = node.children.get(block)
            if found is None:
                break
            node = found
            pages.append(node.page)
        return Match(node, len(pages) * self._page_tokens, tuple(pages))

    def touch(self, node: Node) -> None:
        """`node` and what leads to it are used now."""
        self._ticks += 1
        walk: Node | None = node
        while walk is not None and walk.parent is not None:
            walk.hits += 1
            walk.used = self._worth(walk)
            walk = walk.parent

    def insert(self, parent: Node, tokens: list[int], page: int) -> tuple[Node, bool]:
        """The node of one page of tokens under `parent`, and whether it is new and `page` now belongs to the tree."""
        block = np.array(tokens, np.int32).tobytes()
        known = parent.children.get(block)
        if known is not None:
            return known, False
        node = Node(parent, block, page)
        parent.children[block] = node
        self._by_page[page] = node
        self._ticks += 1
        node.used = self._worth(node)
        return node, True

    def root(self, key: PrefixKey) -> Node:
        """Where the first page of a prompt is inserted."""
        return self._root(key)

    def idle(self, page: int) -> None:
        """Nobody but the tree holds `page` any more."""
        node = self._by_page[page]
        if not node.children:
            self._offer(node)

    def evict(self, count: int) -> list[int]:
        """Up to `count` pages that the tree gives up, leaves first."""
        freed: list[int] = []
        while len(freed) < count and self._leaves:
            worth, entry, node = heapq.heappop(self._leaves)
            if entry != node.entry or node.children or not self._is_idle(node.page):
                continue
            self._floor = worth
            freed.append(node.page)
            self._remove(node)
        return freed

    def nodes(self) -> Iterator[Node]:
        """Every node that holds a page."""
        waiting = list(self._roots.values())
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            if node.parent is not None:
                yield node

    def _root(self, key: PrefixKey) -> Node:
        root = self._roots.get(key)
        if root is None:
            root = self._roots[key] = Node(None, b"", -1)
        return root

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del self._by_page[node.page], parent.children[node.block]
        node.entry = -1
        if parent.parent is not None and not parent.children and self._is_idle(parent.page):
            self._offer(parent)

    def _offer(self, node: Node) -> None:
        self._ticks += 1
        node.entry = self._ticks
        heapq.heappush(self._leaves, (node.used, node.entry, node))
        # Outdated offers go when something is evicted, which may never happen.
        if len(self._leaves) > 2 * len(self._by_page) + 64:
            self._leaves = [offer for offer in self._leaves if offer[1] == offer[2].entry]
            heapq.heapify(self._leaves)

    def _worth(self, node: Node) -> float:
        if self._eviction == "lru":
            return float(self._ticks)
        if self._eviction == "lfu":
            return node.hits + self._ticks * 1e-12
        # What was evicted last sets the floor, so that a page nobody asks for again sinks however dear it was.
        return self._floor + 1.0 + node.depth * self._page_tokens / 2048


def _blocks(tokens: list[int], size: int) -> Iterator[bytes]:
    whole = len(tokens) // size
    stored = np.array(tokens[: whole * size], np.int32).tobytes()
    for place in range(whole):
        yield stored[4 * size * place : 4 * size * (place + 1)]
