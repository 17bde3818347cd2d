"""Near-duplicate texts against all pairs of word n-gram sets, by brute force."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import unicodedata
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import Cancelled, UsageError
from windlass.core.progress import Silent
from windlass.core.randomness import integers
from windlass.lake.text_dedup import find_near_duplicates

WORDS = "the of harbour berth vessel pilot tide crane quay notice depth to and at before".split()


def make_texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of which every third is an edited copy of an earlier one."""
    texts: list[list[str]] = []
    for number in range(count):
        draws = integers(seed, number, size=200, high=1 << 30)
        if number % 3 == 2:
            words = list(texts[int(draws[0]) % number])
            for place in draws[1 : 1 + int(draws[1]) % 12]:
                words[int(place) % len(words)] = f"w{int(place) % 50}"
        else:
            words = [WORDS[int(draw) % len(WORDS)] + str(int(draw) % 7) for draw in draws[: 5 + int(draws[0]) % 150]]
        texts.append(words)
    return [(f"t{number:04}", " ".join(words)) for number, words in enumerate(texts)]


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())
    if len(words) < n:
        return {(word,) for word in words}
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def brute_force(texts: list[tuple[str, str]], threshold: float) -> dict[tuple[str, str], float]:
    sets = {name: shingles(text) for name, text in texts}
    found = {}
    for a, b in combinations(sorted(sets), 2):
        if sets[a] and sets[b]:
            share = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
            if share >= threshold:
                found[a, b] = share
    return found


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_pairs_and_similarities_are_those_of_brute_force(threshold: float) -> None:
    texts = make_texts(300)
    want = brute_force(texts, threshold)
    result = find_near_duplicates(texts, threshold=threshold)
    found = {(pair.first, pair.second): pair.similarity for pair in result.pairs}
    assert found.keys() <= want.keys()
    assert all(abs(found[pair] - want[pair]) < 1e-12 for pair in found)
    assert len(found) >= 0.995 * len(want) > 5


def test_the_order_of_the_texts_does_not_matter() -> None:
    texts = make_texts(120, seed=1)
    one, other = find_near_duplicates(texts), find_near_duplicates(reversed(texts))
    assert (one.pairs, one.clusters, one.characters) == (other.pairs, other.clusters, other.characters)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text(st.sampled_from("ab é漢字ﬁ,\n1_"), max_size=30), max_size=8))
def test_odd_texts_never_give_a_wrong_pair(bodies: list[str]) -> None:
    texts = [(str(number), body) for number, body in enumerate(bodies)]
    for pair in find_near_duplicates(texts).pairs:
        assert 0.7 <= pair.similarity <= 1


def test_the_longest_text_of_a_cluster_is_kept() -> None:
    page = " ".join(f"word{i}" for i in range(60))
    result = find_near_duplicates([("b", page), ("a", page + " and more"), ("c", page), ("d", "quite another text")])
    assert result.clusters == (("a", "b", "c"),)
    assert result.keep == {"b": "a", "c": "a"}
    assert result.characters == 2 * len(page)
    assert "share" in result.explain("b", "a") and "no near-duplicates" in result.explain("a", "d")


def test_short_empty_and_wordless_texts() -> None:
    result = find_near_duplicates([("a", ""), ("b", "..."), ("c", "one"), ("d", "One!"), ("e", "two")])
    assert [(pair.first, pair.second) for pair in result.pairs] == [("c", "d")]


def test_scripts_without_spaces_are_cut_by_character() -> None:
    one = "港湾内では速力を五ノット以下に保つこと"
    result = find_near_duplicates([("a", one), ("b", one + "。"), ("c", one[:-1] + "事")], threshold=0.6)
    assert {(p.first, p.second) for p in result.pairs} == {("a", "b"), ("a", "c"), ("b", "c")}


def test_many_copies_are_linked_and_not_squared() -> None:
    texts = [(f"{number:06}", "the same notice to mariners as always") for number in range(20_000)]
    result = find_near_duplicates(texts)
    assert len(result.clusters) == 1 and len(result.clusters[0]) == 20_000
    assert len(result.pairs) == 19_999


def test_copies_of_near_duplicates_are_paired_with_each_other() -> None:
    page = " ".join(f"word{i}" for i in range(60))
    texts = [("a", page), ("b", page), ("c", page + " end"), ("d", page + " end")]
    found = {(p.first, p.second) for p in find_near_duplicates(texts).pairs}
    assert found == set(combinations("abcd", 2))


def test_ids_and_arguments_are_checked() -> None:
    with pytest.raises(UsageError, match="'a'"):
        find_near_duplicates([("a", "x"), ("a", "y")])
    with pytest.raises(UsageError, match="threshold"):
        find_near_duplicates([], threshold=0)
    assert find_near_duplicates([]).pairs == ()


def test_it_stops_when_cancelled() -> None:
    progress = Silent()
    progress.cancel()
    with pytest.raises(Cancelled):
        find_near_duplicates(make_texts(10), progress=progress)


@pytest.mark.shared
def test_all_true_pairs_of_the_documentation_texts_and_no_other() -> None:
    folder = Path(os.environ["WINDLASS_SHARED_DATA"]) / "lake" / "text"
    with gzip.open(folder / "rdocs.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [(entry["id"], entry["text"]) for entry in map(json.loads, file)]
    with open(folder / "near_duplicate_truth.csv", encoding="utf-8", newline="") as table:
        truth = {tuple(sorted(row[:2])) for row in list(csv.reader(table))[1:] if float(row[2]) >= 0.7}
    found = {(pair.first, pair.second) for pair in find_near_duplicates(texts).pairs}
    assert found <= truth and len(found) >= 0.995 * len(truth)
