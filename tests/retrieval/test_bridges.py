"""Chains from mentions: against a plain substring search, and what a chain must and must not say."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.retrieval.bridges import bridge_chains, mentions

TITLES = ["Ann Lee", "Port Vale", "Lee", "Vale Bridge (1902)", "Corliss Archer", "of the"]
TEXTS = [
    "Ann Lee is a painter who was born near Port Vale in 1881.",
    "Port Vale has a harbour, two docks and the Vale Bridge over its river.",
    "Lee is a river with mild water and nothing else to be told of the matter.",
    "The bridge was built of riveted steel by engineers from Corliss Archer and opened to carts.",
    "A foundry of heavy engines, wheels and pumps; it closed after the flood.",
    "Words of the text.",
]


def naive(title: str, text: str) -> bool:
    bare = re.sub(r"\s*\([^()]*\)$", "", title).casefold()
    words = " ".join(re.findall(r"[^\W_]+", text.casefold()))
    return f" {bare} " in f" {words} "


def test_mentions_are_whole_titles_the_longest_and_never_ones_own() -> None:
    assert mentions(TITLES, TEXTS) == [[1], [3], [], [4], [], []]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("anna bell cork dune".split()), min_size=1, max_size=6), min_size=2, max_size=9)
)
def test_single_word_mentions_are_those_of_a_substring_search(words: list[list[str]]) -> None:
    titles = ["Anna", "Bell", *(f"Title number {n}" for n in range(len(words) - 2))]
    texts = [" ".join(said) for said in words]
    found = mentions(titles, texts)
    holders = {title: sum(naive(title, text) for text in texts) for title in titles}
    for own, text in enumerate(texts):
        expected = {
            p
            for p, t in enumerate(titles)
            if p != own and naive(t, text) and holders[t] ** 2 <= (len(texts) ** 0.5 // 1 + 1) ** 2
        }
        assert set(found[own]) == expected


def test_a_chain_asks_with_the_first_title_and_without_the_second() -> None:
    chains = list(bridge_chains(TITLES, TEXTS, negatives=3, seed=4))
    assert [chain.gold for chain in chains] == [(0, 1), (1, 3), (3, 4)]
    for chain in chains:
        first, second = chain.gold
        question = chain.question.casefold()
        title, _, words = question.partition(": ")
        assert title == TITLES[first].casefold()
        assert 3 <= len(words.split()) <= 7 and all(word in TEXTS[second].casefold() for word in words.split())
        own = {word for word in re.findall(r"[^\W\d_]+", re.sub(r"\(.*", "", TITLES[second]).casefold())}
        assert not own & set(words.split())
        assert len(set(chain.negatives)) == 3 and not {first, second} & set(chain.negatives)
    assert chains == list(bridge_chains(TITLES, TEXTS, negatives=3, seed=4))
    assert chains != list(bridge_chains(TITLES, TEXTS, negatives=3, seed=5))
