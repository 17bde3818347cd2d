# ruff: noqa: RUF001 - typographic quotes, dashes and stops are what texts are made of
"""Words as retrieval compares them: lower case, stemmed, without function words, weighted by rarity.

The stemmer is Porter's (An algorithm for suffix stripping, 1980) with his later departures (`-bli` and `-logi`), for
English; words with digits or letters outside a-z are left as they are, so that other languages, identifiers and
numbers compare exactly.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

Idf = Callable[[Sequence[str]], dict[str, float]]
"""The rarity of each word, as it was written (any case, not stemmed): higher is rarer, never negative."""

_WORD = re.compile(r"\d+(?:[.,:]\d+)+|[^\W_]+(?:['’][^\W_]+)?")

STOP_WORDS = frozenset(
    "a about above after again against all also am an and any are aren't as at be because been before being below "
    "between both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each etc "
    "few for from further had hadn't has hasn't have haven't having he her here hers him his how i if in into is isn't "
    "it it's its itself just let me more most my no nor not of off on once only or other our ours out over own per "
    "please same she should shouldn't so some such than that that's the their theirs them then there these they "
    "this those through to too under until up upon us very was wasn't we were weren't what what's when where which "
    "while who whom whose why will with within without won't would wouldn't you your yours tell give show find list "
    "say says said according mean means many much may might must shall".split()
)


class Term(NamedTuple):
    """One word of a text: as compared (`stem`), as written, and where."""

    stem: str
    written: str
    start: int
    end: int


def terms(text: str) -> list[Term]:
    """Every word and number of `text`, function words included."""
    return [Term(stem(m.group()), m.group(), m.start(), m.end()) for m in _WORD.finditer(text)]


def content_terms(text: str) -> list[Term]:
    """The words of `text` that carry meaning; identifiers such as `max_draft_m` give their parts."""
    return [term for term in terms(text) if not is_stop_word(term.written)]


def stems(text: str) -> set[str]:
    """The stems of the content words of `text`."""
    return {term.stem for term in content_terms(text)}


def is_stop_word(word: str) -> bool:
    return word.casefold().replace("’", "'") in STOP_WORDS


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The form under which `word` is compared.

    Example:
        >>> stem("Dredging"), stem("berths"), stem("1,200"), stem("Zürich")
        ('dredg', 'berth', '1200', 'zürich')
    """
    plain = unicodedata.normalize("NFKC", word).casefold().replace("’", "'")
    if plain[0].isdigit():
        return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = plain.removesuffix("'s").replace("'", "")
    if len(plain) <= 2 or not (plain.isascii() and plain.isalpha()):
        return plain
    return _porter(plain)


def local_idf(texts: Sequence[str]) -> Idf:
    """Rarity estimated from the passages at hand, for callers without an index. Unknown words are the rarest."""
    documents: Counter[str] = Counter()
    for text in texts:
        documents.update(stems(text))
    total = max(1, len(texts))

    def rarity(word: str) -> float:
        count = documents.get(stem(word), 0)
        return math.log(1 + (total - count + 0.5) / (count + 0.5))

    return lambda words: {word: rarity(word) for word in words}


def weights(found: Iterable[Term], idf: Idf) -> dict[str, float]:
    """Stem -> rarity. A floor keeps a word that stands in every passage from weighing nothing."""
    written = {term.stem: term.written for term in found}
    rarity = idf(list(dict.fromkeys(written.values())))
    return {stem_: max(0.1, rarity.get(word, 0.0)) for stem_, word in written.items()}


def recall(wanted: dict[str, float], present: set[str]) -> float:
    """Share of the weight of `wanted` whose stems are `present`; 0 when nothing is wanted."""
    total = sum(wanted.values())
    return sum(weight for stem_, weight in wanted.items() if stem_ in present) / total if total else 0.0


# Porter's measure: the number of vowel-consonant sequences.
_CONSONANT = "[^aeiou]"
_VOWEL = "[aeiouy]"
_C = _CONSONANT + "[^aeiouy]*"
_V = _VOWEL + "[aeiou]*"
_HAS_VOWEL = re.compile(f"^(?:{_C})?{_V}")
_MEASURE_OVER_0 = re.compile(f"^(?:{_C})?{_V}{_C}")
_MEASURE_IS_1 = re.compile(f"^(?:{_C})?{_V}{_C}(?:{_V})?$")
_MEASURE_OVER_1 = re.compile(f"^(?:{_C})?{_V}{_C}{_V}{_C}")
_SHORT_END = re.compile(f"^{_C}{_VOWEL}[^aeiouwxy]$")

_STEP_2 = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
    ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
    ("iviti", "ive"), ("biliti", "ble"), ("logi", "log"),
)  # fmt: skip
_STEP_3 = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""),
)  # fmt: skip
_STEP_4 = (
    "ement", "ance", "ence", "able", "ible", "ment", "sion", "tion", "ant", "ent", "ism", "ate", "iti", "ous", "ive",
    "ize", "al", "er", "ic", "ou",
)  # fmt: skip


def _porter(word: str) -> str:
    starts_with_y = word.startswith("y")
    if starts_with_y:
        word = "Y" + word[1:]
    word = _strip_plural_and_tense(word)
    word = _replace_suffix(word, _STEP_2)
    word = _replace_suffix(word, _STEP_3)
    word = _strip_derivation(word)
    if word.endswith("e"):
        base = word[:-1]
        if _MEASURE_OVER_1.match(base) or (_MEASURE_IS_1.match(base) and not _SHORT_END.match(base)):
            word = base
    if word.endswith("ll") and _MEASURE_OVER_1.match(word):
        word = word[:-1]
    return "y" + word[1:] if starts_with_y else word


def _strip_plural_and_tense(word: str) -> str:
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("eed"):
        if _MEASURE_OVER_0.match(word[:-3]):
            word = word[:-1]
    else:
        suffix = "ed" if word.endswith("ed") else "ing" if word.endswith("ing") else ""
        base = word[: len(word) - len(suffix)]
        if suffix and _HAS_VOWEL.match(base):
            word = _restore_ending(base)
    if word.endswith("y") and _HAS_VOWEL.match(word[:-1]):
        word = word[:-1] + "i"
    return word


def _restore_ending(base: str) -> str:
    if base.endswith(("at", "bl", "iz")):
        return base + "e"
    if len(base) > 1 and base[-1] == base[-2] and base[-1] not in "aeioulsz":
        return base[:-1]
    return base + "e" if _SHORT_END.match(base) else base


def _replace_suffix(word: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for suffix, replacement in pairs:
        if word.endswith(suffix):
            base = word[: -len(suffix)]
            return base + replacement if _MEASURE_OVER_0.match(base) else word
    return word


def _strip_derivation(word: str) -> str:
    for suffix in _STEP_4:
        if word.endswith(suffix):
            base = word[: -len(suffix)] + ("s" if suffix == "sion" else "t" if suffix == "tion" else "")
            return base if _MEASURE_OVER_1.match(base) else word
    return word
