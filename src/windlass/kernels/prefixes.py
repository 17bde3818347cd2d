"""What sorted sequences of tokens begin with in common, as a forest; linear in the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled


@compiled
def common_prefixes(tokens: Any, starts: Any, lengths: Any, order: Any, out: Any) -> None:
    """How many first tokens each sequence has in common with the one sorted before it; 0 for the first.

    Args:
        tokens: int32, all sequences one behind the other.
        starts, lengths: int64 [n], where each begins and how long it is.
        order: int64 [n], the sequences in lexicographic order.
        out: int64 [n], by place in `order`.
    """
    if order.size:
        out[0] = 0
    for place in range(1, order.size):
        a, b = order[place - 1], order[place]
        limit = min(lengths[a], lengths[b])
        count = 0
        while count < limit and tokens[starts[a] + count] == tokens[starts[b] + count]:
            count += 1
        out[place] = count


@compiled
def prefix_forest(lengths: Any, common: Any, depth: Any, parent: Any, first: Any, stop: Any, ends: Any) -> int:
    """The nodes of the compact trie of sorted sequences, a node after its parent; how many there are.

    Node 0 is the root. A node is a sequence of tokens that some sequence ends with, or after which sequences differ.

    Args:
        lengths, common: int64 [n], by place: of each sequence, and what `common_prefixes` found.
        depth, parent: int64 [2 n + 1], filled: tokens from the root, and the node above (-1 for the root).
        first, stop: int64 [2 n + 1], filled: the places of the sequences that begin with the node.
        ends: int64 [2 n + 1], zeros, filled: sequences that end there.
    """
    count, stack, top = 1, np.empty(lengths.size + 2, np.int64), 0
    depth[0], parent[0], first[0], stop[0] = 0, -1, 0, lengths.size
    stack[0] = 0
    for place in range(lengths.size):
        shared, last = common[place], -1
        while depth[stack[top]] > shared:
            last = stack[top]
            stop[last] = place
            top -= 1
        if depth[stack[top]] < shared:
            # The sequences so far ran on together past `shared`; a node is put between.
            depth[count], parent[count], first[count] = shared, stack[top], first[last]
            parent[last] = count
            top += 1
            stack[top] = count
            count += 1
        if lengths[place] > depth[stack[top]]:
            depth[count], parent[count], first[count] = lengths[place], stack[top], place
            top += 1
            stack[top] = count
            count += 1
        ends[stack[top]] += 1
    while top >= 0:
        stop[stack[top]] = lengths.size
        top -= 1
    return count
