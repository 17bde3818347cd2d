"""Pairs of passages of which one leads to the other, found in any collection: questions to learn hops from, unlabelled.

Passage A mentions the title of passage B. Whoever asks something that only B answers, but knows only A, asks with A's
title and words of B: that is the question of a chain, with A and then B as its gold passages. What else A mentions are
the negatives: as near to A as B is, and wrong. The mentions are those of any text with titles (a folder's headings,
an encyclopaedia); no model writes or judges anything.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from windlass.core.randomness import integers, permutation, rand
from windlass.retrieval.terms import content_terms, is_stop_word

_WORD = re.compile(r"[^\W_]+")
_REMARK = re.compile(r"\s*\([^()]*\)\s*$")
_FEWEST_WORDS, _MOST_WORDS = 3, 7


@dataclass(frozen=True, slots=True)
class Chain:
    """A question and the passages that answer it one after the other.

    Attributes:
        question: What is asked.
        gold: Positions of its passages, in the order in which one leads to the next.
        negatives: Positions of passages as near to the way as the gold ones, and wrong.
    """

    question: str
    gold: tuple[int, ...]
    negatives: tuple[int, ...]


def mentions(titles: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """For each text, the positions of the passages whose title it mentions, in the order of mention, itself excluded.

    A title is compared as whole words, whatever their case, without a remark in brackets at its end. Of titles that
    overlap in the text the longest counts. One that stands in more than the square root of all texts says nothing and
    is left out, and so is one without any word that carries meaning.

    Example:
        >>> mentions(["The Tower", "Ann Lee (painter)"], ["Ann Lee painted it.", "Born near the tower."])
        [[1], [0]]
    """
    by_title: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, title in enumerate(titles):
        words = _plain(_REMARK.sub("", title))
        if any(len(word) > 2 and not is_stop_word(word) and not word.isdigit() for word in words):
            by_title[words].append(position)
    longest: dict[str, int] = defaultdict(int)
    for words in by_title:
        longest[words[0]] = max(longest[words[0]], len(words))
    found = [_mentioned(_plain(text), by_title, longest) for text in texts]
    holders: dict[tuple[str, ...], int] = defaultdict(int)
    for names in found:
        for words in names:
            holders[words] += 1
    most = math.isqrt(len(texts)) + 1
    return [
        [
            position
            for words in names
            if holders[words] <= most
            for position in by_title[words]
            if position != own and titles[position] != titles[own]
        ]
        for own, names in enumerate(found)
    ]


def bridge_chains(titles: Sequence[str], texts: Sequence[str], *, negatives: int = 5, seed: int = 0) -> Iterator[Chain]:
    """A chain for every mention of one passage's title in another's text.

    Args:
        titles: One for each passage, at best unique.
        texts: The passages, without their titles.
        negatives: How many for each chain; where a passage mentions fewer, others are drawn.
        seed: Of the words that are taken and the negatives that are drawn.
    """
    linked = mentions(titles, texts)
    for first, targets in enumerate(linked):
        for second in targets:
            words = _telling_words(titles[second], texts[second], seed, first, second)
            if len(words) < _FEWEST_WORDS:
                continue
            drawn = integers(seed, "negatives", first, second, size=2 * negatives, high=len(texts)).tolist()
            offered = itertools.chain(targets, drawn, range(len(texts)))
            wrong = dict.fromkeys(other for other in offered if other not in (first, second))
            yield Chain(
                f"{titles[first]}: {' '.join(words)}", (first, second), tuple(itertools.islice(wrong, negatives))
            )


def _mentioned(
    words: tuple[str, ...], by_title: dict[tuple[str, ...], list[int]], longest: dict[str, int]
) -> dict[tuple[str, ...], None]:
    found: dict[tuple[str, ...], None] = {}
    at = 0
    while at < len(words):
        for length in range(min(longest.get(words[at], 0), len(words) - at), 0, -1):
            if words[at : at + length] in by_title:
                found[words[at : at + length]] = None
                at += length - 1
                break
        at += 1
    return found


def _telling_words(title: str, text: str, seed: int, *key: int) -> list[str]:
    """3 to 7 words of the text in their order, none of them the title's."""
    named = {term.stem for term in content_terms(title)}
    words = list(dict.fromkeys(term.written for term in content_terms(text) if term.stem not in named))
    count = _FEWEST_WORDS + int(rand(seed, "words", *key) * (_MOST_WORDS - _FEWEST_WORDS + 1))
    chosen = permutation(seed, "chosen", *key, size=len(words))[:count]
    return [words[place] for place in sorted(chosen.tolist())]


def _plain(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))
