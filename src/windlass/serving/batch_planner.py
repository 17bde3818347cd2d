"""Which beginnings a batch of prompts computes once: all prompts are known, so nothing is left to chance.

BatchLLM (Zheng et al., MLSys 2026): a tree over the whole batch, flattened to one shared prefix a group, groups with
much to write first, so that their writing overlaps with the reading of later ones. Different here: pages are forked at
any token, so every level of the tree can be shared (`multilevel`, the default); one level is found greedily as in the
paper (`flat`), or optimally by dynamic programming over (node, head above it) (`exact`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.kernels.prefixes import common_prefixes, prefix_forest

Integers = NDArray[np.int64]
Mode = Literal["auto", "multilevel", "flat", "exact"]
MODES: tuple[Mode, ...] = ("auto", "multilevel", "flat", "exact")


@dataclass(frozen=True, slots=True)
class PrefixForest:
    """The compact trie of some prompts, a node after its parent; node 0 is the root.

    Attributes:
        order: Prompts in lexicographic order.
        depth, parent: Tokens from the root, and the node above.
        first, stop: Places in `order` of the prompts that begin with a node.
        ends: How many prompts end at a node.
    """

    order: Integers
    depth: Integers
    parent: Integers
    first: Integers
    stop: Integers
    ends: Integers

    @property
    def run(self) -> Integers:
        """Tokens between a node and the one above it."""
        run = self.depth.copy()
        run[1:] -= self.depth[self.parent[1:]]
        return run

    @property
    def members(self) -> Integers:
        """How many prompts begin with each node."""
        return self.stop - self.first

    def children(self) -> list[list[int]]:
        """Nodes below each node, in order of their prompts."""
        found: list[list[int]] = [[] for _ in self.depth]
        for node in sorted(range(1, len(self.depth)), key=lambda each: int(self.first[each])):
            found[self.parent[node]].append(node)
        return found


def forest(prompts: Sequence[NDArray[np.int32]]) -> PrefixForest:
    """The compact trie of `prompts`, in time linear in their tokens but for the sorting."""
    count = len(prompts)
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    # Bytes of unsigned numbers, the largest first, compare as the numbers do.
    keys = [prompt.astype(">u4").tobytes() for prompt in prompts]
    order = np.array(sorted(range(count), key=keys.__getitem__), np.int64)
    starts = np.cumsum(lengths) - lengths
    tokens = np.concatenate([*prompts, np.zeros(1, np.int32)]).astype(np.int32)
    common = np.zeros(count, np.int64)
    common_prefixes(tokens, starts, lengths, order, common)
    depth, parent, first, stop, ends = (np.zeros(2 * count + 1, np.int64) for _ in range(5))
    nodes = prefix_forest(lengths[order], common, depth, parent, first, stop, ends)
    # A node that was put between others comes behind the node it is above: sorted by depth, parents come first.
    rank = np.argsort(depth[:nodes], kind="stable")
    place = np.empty(nodes, np.int64)
    place[rank] = np.arange(nodes)
    parents = np.where(parent[rank] >= 0, place[parent[rank]], -1)
    return PrefixForest(order, depth[rank], parents, first[rank], stop[rank], ends[rank])


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """What is shared, and in which order prompts go.

    Attributes:
        mode: How it was found: `multilevel`, `flat` or `exact`.
        depth, parent: int64 [S], the shared prefixes: their tokens, and the shorter one that each goes on (-1: none).
        users: int64 [S], prompts that begin with each.
        prefix_of: int64 [n], the longest shared prefix of each prompt, -1 for none.
        rank: int64 [n], the place of each prompt in the order of work.
        groups: Prompts by their shortest shared prefix, in that order; a prompt that shares nothing is a group alone.
        saved_tokens: Prompt tokens that need not be computed.
        ideal_saved_tokens: The same, if every level of the tree is shared.
        total_tokens: Of all prompts.
        digests: Of each prompt.
    """

    mode: str
    depth: Integers
    parent: Integers
    users: Integers
    prefix_of: Integers
    rank: Integers
    groups: tuple[tuple[int, ...], ...]
    saved_tokens: int
    ideal_saved_tokens: int
    total_tokens: int
    digests: tuple[bytes, ...]

    def holds(self, member: int, prompt: NDArray[np.int32]) -> bool:
        """Whether `prompt` is the one that was planned at this place."""
        return 0 <= member < len(self) and self.digests[member] == _digest(prompt)

    def __len__(self) -> int:
        return len(self.prefix_of)

    def path(self, member: int) -> list[int]:
        """The shared prefixes of a prompt, the longest first."""
        found, prefix = [], int(self.prefix_of[member])
        while prefix >= 0:
            found.append(prefix)
            prefix = int(self.parent[prefix])
        return found


def plan_batch(
    prompts: Sequence[NDArray[np.int32]], made: Sequence[float] | None = None, mode: Mode = "auto"
) -> BatchPlan:
    """What of `prompts` is computed once.

    Args:
        prompts: Token ids of each, at least one.
        made: How many tokens each will probably make; None: equally many. Groups that make much for what they read
            go first.
        mode: `multilevel` shares every level, `flat` and `exact` one prefix a group; `auto` is `multilevel`.

    Raises:
        UsageError: a prompt is empty, `made` is not as long as `prompts`, or there is no such mode.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise UsageError("a prompt of the batch is empty: at least one token is needed")
    if mode not in MODES:
        raise UsageError(f"there is no way {mode!r} to share prefixes", hint=f"one of {', '.join(MODES)}")
    expected = np.ones(len(prompts)) if made is None else np.asarray(made, np.float64)
    if expected.shape != (len(prompts),):
        raise UsageError(f"{len(prompts)} prompts and {expected.size} expected lengths of answers")
    tree = forest(prompts)
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    ideal = int(lengths.sum() - tree.run.sum())
    choose: dict[str, Callable[[PrefixForest], Integers]] = {"flat": _greedy_heads, "exact": _best_heads}
    chosen = choose.get(mode, _every_level)(tree)
    prefixes = _Prefixes.of(tree, chosen, chained=mode not in choose)
    groups = _grouped(tree, prefixes)
    groups.sort(key=lambda group: -_ratio(group, prefixes, lengths, expected))
    rank = np.empty(len(prompts), np.int64)
    rank[np.array([member for group in groups for member in group], np.int64)] = np.arange(len(prompts))
    own = np.where(prefixes.of_prompt >= 0, prefixes.depth[prefixes.of_prompt], 0) if len(chosen) else 0 * lengths
    above = np.where(prefixes.parent >= 0, prefixes.depth[prefixes.parent], 0) if len(chosen) else prefixes.depth
    return BatchPlan(
        "multilevel" if mode == "auto" else mode,
        prefixes.depth, prefixes.parent, prefixes.users, prefixes.of_prompt, rank,
        tuple(tuple(group) for group in groups), int(own.sum() - (prefixes.depth - above).sum()), ideal,
        int(lengths.sum()), tuple(map(_digest, prompts)),
    )  # fmt: skip


def _digest(prompt: NDArray[np.int32]) -> bytes:
    return hashlib.blake2b(prompt.tobytes(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """Chosen nodes, renumbered; `of_prompt` is the deepest of each prompt."""

    depth: Integers
    parent: Integers
    users: Integers
    of_prompt: Integers

    @staticmethod
    def of(tree: PrefixForest, chosen: Integers, *, chained: bool) -> _Prefixes:
        number = np.full(len(tree.depth), -1, np.int64)
        number[chosen] = np.arange(len(chosen))
        nearest = np.full(len(tree.depth), -1, np.int64)
        parent = np.full(len(chosen), -1, np.int64)
        for node in range(1, len(tree.depth)):
            above = nearest[tree.parent[node]]
            if number[node] >= 0 and chained:
                parent[number[node]] = above
            nearest[node] = number[node] if number[node] >= 0 else above
        of_prompt = np.full(len(tree.order), -1, np.int64)
        for node in np.argsort(tree.depth, kind="stable"):
            of_prompt[tree.order[tree.first[node] : tree.stop[node]]] = nearest[node]
        users = np.bincount(of_prompt[of_prompt >= 0], minlength=len(chosen)).astype(np.int64)
        for node in range(len(chosen) - 1, -1, -1):
            if parent[node] >= 0:
                users[parent[node]] += users[node]
        return _Prefixes(tree.depth[chosen], parent, users, of_prompt)


def _every_level(tree: PrefixForest) -> Integers:
    shared = tree.members >= 2
    shared[0] = False
    return np.flatnonzero(shared)


def _greedy_heads(tree: PrefixForest) -> Integers:
    """One prefix a group, found from the leaves up: a subtree leaves its parent when sharing its own run among its
    prompts saves more than computing the parent's run once more costs.
    """
    children, run = tree.children(), tree.run.copy()
    attached = [list(below) for below in children]
    members = tree.members.copy()
    for node in range(len(tree.depth) - 1, -1, -1):
        kept: list[int] = []
        for child in attached[node]:
            stay = []
            for grandchild in attached[child]:
                if (members[grandchild] - 1) * run[grandchild] > run[child]:
                    run[grandchild] += run[child]
                    members[child] -= members[grandchild]
                    kept.append(grandchild)
                else:
                    stay.append(grandchild)
            attached[child] = stay
            if members[child] > 0:
                kept.append(child)
        attached[node] = kept
    return np.array(sorted(node for node in attached[0] if members[node] >= 2), np.int64)


def _best_heads(tree: PrefixForest) -> Integers:
    """One prefix a group, the best choice there is.

    For a node and the depth of the head chosen above it, what its subtree saves at most is a vector over the nodes
    above; a head pays its own depth once and gives it to every prompt below.
    """
    children = tree.children()
    depth, parent, ends = tree.depth, tree.parent, tree.ends
    gains: list[NDArray[np.int64] | None] = [None] * len(depth)
    as_head: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)] * len(depth)
    for node in range(len(depth) - 1, -1, -1):
        path = _path_depths(depth, parent, node)
        below = np.zeros(len(path) + 1, np.int64)
        for child in children[node]:
            found = gains[child]
            assert found is not None
            below += found
            gains[child] = None
        under = ends[node] * path + below[:-1]
        head = ends[node] * depth[node] - depth[node] + below[-1]
        as_head[node] = head > under
        gains[node] = np.maximum(under, head)
    heads = []
    waiting = [(child, 0) for child in children[0]]
    while waiting:
        node, above = waiting.pop()
        level = len(as_head[node])
        if as_head[node][above]:
            heads.append(node)
            waiting += [(child, level) for child in children[node]]
        else:
            waiting += [(child, above) for child in children[node]]
    return np.array(sorted(heads), np.int64)


def _path_depths(depth: Integers, parent: Integers, node: int) -> Integers:
    """Depths of the nodes above `node`, the root first."""
    found = []
    above = int(parent[node])
    while above >= 0:
        found.append(int(depth[above]))
        above = int(parent[above])
    return np.array(found[::-1], np.int64)


def _grouped(tree: PrefixForest, prefixes: _Prefixes) -> list[list[int]]:
    """Prompts by the topmost prefix above them, lexicographic inside a group."""
    groups: dict[int, list[int]] = {}
    top = prefixes.parent.copy()
    for node in range(len(top)):
        top[node] = node if prefixes.parent[node] < 0 else top[prefixes.parent[node]]
    for member in tree.order.tolist():
        prefix = prefixes.of_prompt[member]
        groups.setdefault(int(top[prefix]) if prefix >= 0 else -1 - member, []).append(member)
    return list(groups.values())


def _ratio(group: list[int], prefixes: _Prefixes, lengths: Integers, made: NDArray[np.float64]) -> float:
    """Tokens that a group makes for each that it reads."""
    deepest = prefixes.of_prompt[group]
    own = np.where(deepest >= 0, prefixes.depth[deepest], 0) if len(prefixes.depth) else np.zeros(len(group), np.int64)
    read = int((lengths[group] - own).sum())
    seen: set[int] = set()
    for prefix in deepest.tolist():
        while prefix >= 0 and prefix not in seen:
            seen.add(prefix)
            above = int(prefixes.parent[prefix])
            read += int(prefixes.depth[prefix] - (prefixes.depth[above] if above >= 0 else 0))
            prefix = above
    return float(made[group].sum()) / max(1, read)
