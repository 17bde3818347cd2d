"""Near-duplicate texts: candidates by MinHash and bands (Broder 1997), every pair verified by exact Jaccard.

A text is the set of its word 5-grams, in lower case and under NFKC; a text of a script without spaces is one of
characters. Texts with equal sets are found first and compared once. The bands are chosen so that a pair at the
threshold is missed with probability at most 1/1000, and the false candidates that this brings are removed by counting:
what is reported is exact, not estimated. Nothing depends on the order of the texts.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.kernels.minhash import (
    band_keys,
    candidate_pairs,
    choose_bands,
    common_values,
    hash_sets,
    merge_sets,
    signatures,
    slot_constants,
    sort_unique,
)
from windlass.kernels.shingles import LETTER, PLAIN, SPACE, WHOLE, mark_folded, unknown_points, word_shingles

SIGNATURE_VERSION = 1
THRESHOLD, WORDS, SLOTS = 0.7, 5, 128

_CODE_POINTS = 0x110000
_ASCII_WORDS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz_")
_LOT_CHARACTERS = 4 << 20
_LISTED_PAIRS = 64 * 64
_NEW_CHARACTERS = 4096
# Scripts written without spaces between words: Thai and Lao, Burmese, Khmer, kana, Chinese characters.
_NO_SPACES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0x20000, 0x3FFFF),
)
_JAMO = ((0x1100, 0x11FF), (0xA960, 0xA97F), (0xD7B0, 0xD7FF))


class PairStage(NamedTuple):
    """How many pairs were alive before and after one stage of a search for pairs, and what it cost."""

    name: str
    pairs_in: int
    pairs_out: int
    seconds: float


class TextPair(NamedTuple):
    """Two texts and the exact Jaccard similarity of their shingles; `first` is the smaller id."""

    first: str
    second: str
    similarity: float


@dataclass(frozen=True)
class DuplicateTexts:
    """What was found.

    Attributes:
        pairs: Verified pairs, sorted. Where more than 64 texts have equal shingles, each is paired with the kept one
            instead of with all of them.
        clusters: Ids of texts that hang together, the one to keep in front, the others sorted; sorted themselves.
        stages: What each stage left over.
        texts: How many texts were looked at.
        characters: What the texts that need not be kept take.
    """

    pairs: tuple[TextPair, ...]
    clusters: tuple[tuple[str, ...], ...]
    stages: tuple[PairStage, ...]
    texts: int
    characters: int

    @property
    def keep(self) -> dict[str, str]:
        """For every text that need not be kept, the one that stands for it."""
        return {other: cluster[0] for cluster in self.clusters for other in cluster[1:]}

    def explain(self, first: str, second: str) -> str:
        """Why two texts are in one cluster, or that they are not."""
        wanted = tuple(sorted((first, second)))
        for pair in self.pairs:
            if (pair.first, pair.second) == wanted:
                return f"{first} and {second} share {pair.similarity:.1%} of their word sequences"
        for cluster in self.clusters:
            if first in cluster and second in cluster:
                return f"{first} and {second} are both near-duplicates of others in the cluster of {cluster[0]}"
        return f"{first} and {second} are no near-duplicates"


class ShingleSets(NamedTuple):
    """Sets of hashed shingles: those of text `i` are `shingles[offsets[i]:offsets[i + 1]]`, with repeats."""

    shingles: NDArray[np.uint64]
    offsets: NDArray[np.int64]


def find_near_duplicates(
    texts: Iterable[tuple[str, str]],
    *,
    threshold: float = THRESHOLD,
    words: int = WORDS,
    slots: int = SLOTS,
    progress: Progress | None = None,
) -> DuplicateTexts:
    """All pairs of texts whose shingle sets have a Jaccard similarity of at least `threshold`.

    Recall of a pair at the threshold is 0.999 and rises quickly above it; every pair that is reported is exact.

    Args:
        texts: (id, text); texts without any word take no part.
        threshold: In (0, 1].
        words: Words a shingle, 1 to 64.
        slots: Length of a signature.
        progress: Hears of the stages `shingle`, `compare`.

    Raises:
        UsageError: An id is there twice, or an argument is out of range.
        Cancelled: Stopped through `progress`.

    Example:
        >>> page = "the pilot boards at the fairway buoy two hours before high water " * 3
        >>> found = find_near_duplicates([("a", page), ("b", page + "today"), ("c", "something else altogether")])
        >>> [(pair.first, pair.second) for pair in found.pairs]
        [('a', 'b')]
    """
    if not 0 < threshold <= 1 or not 1 <= words <= 64 or not 1 <= slots <= 4096:
        raise UsageError(
            f"threshold {threshold}, words {words}, slots {slots} cannot be used",
            hint="threshold in (0, 1], 1 to 64 words, 1 to 4096 slots",
        )
    progress = progress or Silent()
    clock = time.perf_counter()
    entries = list(texts)
    # One order for all: what is kept and what is reported must not depend on how the texts came in.
    entries.sort(key=lambda entry: (-len(entry[1]), entry[0]))
    ids = [name for name, _ in entries]
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UsageError(f"two texts have the id {twice!r}", hint="give every text an id of its own")
    sets = shingle_texts([text for _, text in entries], words, progress)
    stages = [_stage("shingle", len(ids) * (len(ids) - 1) // 2, len(ids) * (len(ids) - 1) // 2, clock)]
    return _compare(ids, [len(text) for _, text in entries], sets, threshold, slots, stages, progress)


def shingle_texts(texts: Sequence[str], words: int = WORDS, progress: Progress | None = None) -> ShingleSets:
    """Hashed word n-grams of texts."""
    progress = progress or Silent()
    progress.start("shingle", len(texts), "texts")
    shingles: list[NDArray[np.uint64]] = []
    offsets: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    characters = _Characters()
    begin, total = 0, 0
    while begin < len(texts):
        check_cancelled(progress)
        end, size = begin, 0
        while end < len(texts) and (end == begin or size + len(texts[end]) <= _LOT_CHARACTERS):
            size += len(texts[end])
            end += 1
        data, starts = characters.pack(texts[begin:end])
        out, places = np.empty(data.size + end - begin, np.uint64), np.empty(end - begin + 1, np.int64)
        used = word_shingles(data, starts, characters.classes, words, out, places)
        shingles.append(out[:used].copy())
        offsets.append(places[1:] + total)
        total += used
        progress.advance("shingle", end - begin)
        begin = end
    progress.finish("shingle")
    return ShingleSets(np.concatenate([np.empty(0, np.uint64), *shingles]), np.concatenate(offsets))


def sign_sets(sets: ShingleSets, slots: int = SLOTS) -> NDArray[np.uint32]:
    """uint32[sets, slots]: MinHash signatures, which do not change when other texts come or go."""
    table = np.empty((len(sets.offsets) - 1, slots), np.uint32)
    signatures(sets.shingles, sets.offsets, *slot_constants(slots), table)
    return table


def propose_pairs(
    table: NDArray[np.uint32], usable: NDArray[np.bool_], threshold: float = THRESHOLD
) -> NDArray[np.int64]:
    """int64[pairs, 2]: pairs of signatures that may belong to sets at least `threshold` alike."""
    bands, rows = choose_bands(threshold, table.shape[1])
    keys = np.empty((bands, len(table)), np.uint64)
    band_keys(table, bands, rows, keys)
    return candidate_pairs(keys, usable)


def similarities(sets: ShingleSets, pairs: NDArray[np.int64], threshold: float = THRESHOLD) -> NDArray[np.float64]:
    """float64[pairs]: exact Jaccard similarities, nan below the threshold. Sorts the sets that are asked for."""
    wanted = np.zeros(len(sets.offsets) - 1, np.bool_)
    wanted[pairs.ravel()] = True
    counts, common = np.zeros(len(wanted), np.int64), np.empty(len(pairs), np.int64)
    sort_unique(sets.shingles, sets.offsets, wanted, counts)
    common_values(sets.shingles, sets.offsets, counts, pairs, threshold, common)
    together = np.maximum(counts[pairs].sum(axis=1) - common, 1)
    return np.where((common >= 0) & (common >= threshold * together), common / together, np.nan)


def _compare(
    ids: Sequence[str],
    lengths: Sequence[int],
    sets: ShingleSets,
    threshold: float,
    slots: int,
    stages: list[PairStage],
    progress: Progress,
) -> DuplicateTexts:
    progress.start("compare", None, "pairs")
    clock = time.perf_counter()
    table = sign_sets(sets, slots)
    filled = np.diff(sets.offsets) > 0
    same_as = _first_equal(table, sets, filled)
    alone = filled & (same_as == np.arange(len(ids)))
    candidates = propose_pairs(table, alone, threshold)
    stages.append(_stage("bands", stages[-1].pairs_out, len(candidates), clock))
    check_cancelled(progress)
    clock = time.perf_counter()
    exact = similarities(sets, candidates, threshold)
    similar = ~np.isnan(exact)
    pairs, shares = _with_copies(candidates[similar], exact[similar], same_as, filled & ~alone)
    stages.append(_stage("verify", len(candidates), len(pairs), clock))
    progress.advance("compare", len(candidates))
    progress.finish("compare")
    return _result(ids, lengths, pairs, shares, stages)


def _first_equal(table: NDArray[np.uint32], sets: ShingleSets, filled: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each set the first that equals it: equal signatures propose, hashes of the whole sets decide."""
    keys = np.empty((1, len(table)), np.uint64)
    band_keys(table, 1, table.shape[1], keys)
    _, groups, sizes = np.unique(keys[0], return_inverse=True, return_counts=True)
    wanted = filled & (sizes[groups] > 1)
    counts, hashes = np.zeros(len(table), np.int64), np.empty(len(table), np.uint64)
    sort_unique(sets.shingles, sets.offsets, wanted, counts)
    hash_sets(sets.shingles, sets.offsets, wanted, counts, hashes)
    same_as = np.arange(len(table))
    members = np.flatnonzero(wanted)
    _, first, which = np.unique(hashes[members], return_index=True, return_inverse=True)
    same_as[members] = members[first[which]]
    return same_as


def _with_copies(
    pairs: NDArray[np.int64], shares: NDArray[np.float64], same_as: NDArray[np.int64], copies: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of all texts from pairs of different ones: what holds for a text holds for its copies."""
    members: dict[int, list[int]] = {}
    for copy in np.flatnonzero(copies):
        members.setdefault(int(same_as[copy]), [int(same_as[copy])]).append(int(copy))
    found = [(int(first), int(second), float(share)) for (first, second), share in zip(pairs, shares, strict=True)]
    for first, second, share in list(found):
        product = [(a, b, share) for a in members.get(first, [first]) for b in members.get(second, [second])]
        if 1 < len(product) <= _LISTED_PAIRS:
            found += product[1:]
    for root, group in members.items():
        if len(group) ** 2 <= _LISTED_PAIRS:
            found += [(a, b, 1.0) for a, b in combinations(group, 2)]
        else:
            found += [(root, other, 1.0) for other in group[1:]]
    array = np.array([(first, second) for first, second, _ in found], np.int64).reshape(-1, 2)
    return array, np.array([share for _, _, share in found])


def _result(
    ids: Sequence[str],
    lengths: Sequence[int],
    pairs: NDArray[np.int64],
    shares: NDArray[np.float64],
    stages: list[PairStage],
) -> DuplicateTexts:
    parents = np.arange(len(ids))
    merge_sets(pairs, parents)
    groups: dict[int, list[int]] = {}
    for member in np.unique(pairs):
        groups.setdefault(int(parents[member]), []).append(int(member))
    named_groups = [(ids[root], [ids[other] for other in group if other != root]) for root, group in groups.items()]
    clusters = sorted((kept, *sorted(others)) for kept, others in named_groups)
    spare = sum(lengths[member] for root, group in groups.items() for member in group if member != root)
    sides = [(ids[first], ids[second]) for first, second in pairs.tolist()]
    named = sorted(TextPair(min(two), max(two), share) for two, share in zip(sides, shares.tolist(), strict=True))
    return DuplicateTexts(tuple(named), tuple(clusters), tuple(stages), len(ids), spare)


class _Characters:
    """What each character is, found out as characters come up.

    Most texts are in normal form but for capitals. They only have their ASCII letters lowered, which is ten times
    faster than normalising them; a character that is not plain sends its text the long way.
    """

    def __init__(self) -> None:
        self.classes = np.zeros(_CODE_POINTS, np.uint8)  # SPACE
        self._known = np.zeros(_CODE_POINTS, np.uint8)  # UNKNOWN
        for character in _ASCII_WORDS:
            self.classes[ord(character)] = LETTER

    def pack(self, texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Texts in lower case under NFKC as one buffer, and where each begins; all their characters are classified."""
        encoded = [text.encode("utf-8", "replace").lower() for text in texts]
        data, starts = _joined(encoded)
        if all(map(str.isascii, texts)):
            return data, starts
        self._learn(data)
        long_way = np.zeros(len(texts), np.bool_)
        mark_folded(data, starts, self._known, long_way)
        if not long_way.any():
            return data, starts
        for number in np.flatnonzero(long_way).tolist():
            text = unicodedata.normalize("NFKC", texts[number]).lower()
            encoded[number] = text.encode("utf-8", "replace")
            self._learn(_joined([encoded[number]])[0])
        return _joined(encoded)

    def _learn(self, data: NDArray[np.uint8]) -> None:
        room = np.empty(_NEW_CHARACTERS, np.int64)
        found = len(room)
        while found == len(room):
            found = int(unknown_points(data, self._known, room))
            for point in room[:found].tolist():
                character = chr(point)
                self.classes[point] = _class_of(character)
                if _is_plain(character):
                    self._known[point] = PLAIN


def _joined(encoded: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    starts = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(text) for text in encoded], out=starts[1:])
    return np.frombuffer(bytearray(b"".join(encoded)), np.uint8), starts


def _class_of(character: str) -> int:
    if character.isalpha() and any(low <= ord(character) <= high for low, high in _NO_SPACES):
        return WHOLE
    return LETTER if character.isalnum() or character == "_" else SPACE


def _is_plain(character: str) -> bool:
    """Whether normalising and lowering leave a text's words alone as far as this character goes, whatever stands by."""
    if unicodedata.category(character).startswith("M") or any(low <= ord(character) <= high for low, high in _JAMO):
        return False  # may join the character before it
    normal = unicodedata.normalize("NFKC", character).lower()
    return normal == character or (_class_of(character) == SPACE and all(_class_of(part) == SPACE for part in normal))


def _stage(name: str, pairs_in: int, pairs_out: int, since: float) -> PairStage:
    return PairStage(name, pairs_in, pairs_out, time.perf_counter() - since)
