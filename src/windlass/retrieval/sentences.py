# ruff: noqa: RUF001 - typographic quotes, dashes and stops are what texts are made of
"""Where the sentences of a text stand, to the character.

Answers and citations are made of these spans, so the rules lean towards keeping things whole: a number, a date, an
abbreviation or a name with initials is never cut, a table row or a list item is one sentence, and a line break inside
a wrapped paragraph is only white space.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LONGEST_SENTENCE = 700
NARROW_BLOCK = 40

_LINE = re.compile(r"[^\n\r\f\v\u2028\u2029]+")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•‣◦▪–]\s+|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)]\s+)\S")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+\S")
_RULE = re.compile(r"\s*(?:[-=_*~]{3,}|```.*|~~~.*)\s*$")
_FIELD = re.compile(r"\s*[^\W\d_][\w /().-]{0,38}\s?:\s+\S")
_TABLE_ROW = re.compile(r".*\.{4,}|.*…{2,}|\s*\|.*\|\s*$|[^|]*\|[^|]*\|.*$|[^\t]+\t+[^\t]+\t.*$")
# A stop, and no small letter after it. One class in front, because the engine skips to it; then the two cases.
_STOP = re.compile(
    r"[.!?…。！？](?:(?<=[.!?…])[.!?…]*[\"'”’»)\]*_]*(?=\s)(?![\s\"'“‘«(\[*_]*[a-z])|(?<=[。！？])[。！？]*[」』”’）]*)"
)
_WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘«]+$")
_WORD_AFTER = re.compile(r"[\s\"'“‘«(\[*_]*([^\s]*)")
_NUMBER_OF_ITEM = re.compile(r"\(?(?:\d{1,3}|\w|[ivx]{1,4})")
_SOFT_CUT = re.compile(r"[;:]\s+|[\n\r\f\v\u2028\u2029]+\s*")

# A line that is a rule or a list item begins with one of these, or has a stop or a bracket near its beginning.
_MARKS = frozenset("-=_*~`+•‣◦▪–")
_NEVER_LAST = frozenset(
    "mr mrs ms dr prof rev hon capt cpt cdr lt col gen sgt adm st ste mt ft messrs e.g i.e eg ie cf vs viz al approx "
    "ca fig figs eq eqs ref refs sec ch vol pp resp incl excl est tel min max temp dept u.s u.k m.v s.s jr sr "
    "ph.d".split()
)
_BEFORE_NUMBER = frozenset("no nos nr art p par jan feb mar apr jun jul aug sep sept oct nov dec".split())
_SPECIAL = _NEVER_LAST | _BEFORE_NUMBER
_LONGEST_SPECIAL = max(map(len, _SPECIAL))
_OPENERS = frozenset(
    "the a an this that these those it its he she they we you i in on at by for from if when where while after before "
    "as all any each every no not only there here such some to with however please see use do".split()
)


class Span(NamedTuple):
    """A half-open character range."""

    start: int
    end: int


def sentence_spans(text: str, start: int = 0, end: int | None = None) -> list[Span]:
    """The sentences of `text[start:end]`, in order, as spans into `text`.

    Spans do not overlap, carry no white space at their ends, and together hold every character that is not white
    space. Headings, list items, table rows and "field: value" lines are sentences of their own.

    Example:
        >>> text = "Depth is 3.5 m at Berth No. 4. Ask Capt. J. Ruiz."
        >>> [text[a:b] for a, b in sentence_spans(text)]
        ['Depth is 3.5 m at Berth No. 4.', 'Ask Capt. J. Ruiz.']
    """
    end = len(text) if end is None else min(end, len(text))
    spans: list[Span] = []
    for run in _runs(text, max(0, start), end):
        for sentence in [run] if _is_row(text, run) else _split_run(text, run):
            if sentence.end - sentence.start <= LONGEST_SENTENCE:
                _append_trimmed(spans, text, *sentence)
            else:
                spans.extend(_split_overlong(text, sentence))
    return spans


def _runs(text: str, start: int, end: int) -> list[Span]:
    """Stretches of whole lines between which no sentence can pass."""
    runs: list[Span] = []
    first_line = _LINE.match(text, start, end)
    if first_line is not None and first_line.end() == end:  # a single line, as most paragraphs of a web page are
        return [Span(start, end)]
    for block in _blocks(text, start, end):
        lines = [text[first:last] for first, last in block]
        width = max(map(len, lines))
        marked = _marked_lines(lines)
        run_start = block[0][0]
        for number in range(1, len(block)):
            if _breaks(lines[number - 1], lines[number], width, marked[number - 1] or marked[number]):
                runs.append(Span(run_start, block[number - 1][1]))
                run_start = block[number][0]
        runs.append(Span(run_start, block[-1][1]))
    return runs


def _marked_lines(lines: list[str]) -> list[bool]:
    """Which lines could be a heading, a rule, a table row or a list item: most are not, and are spared the patterns."""
    whole = "".join(lines)
    if any(mark in whole for mark in ("|", "\t", "#", "....", "……")):
        return [True] * len(lines)
    heads = [line.lstrip()[:6] for line in lines]
    return [head[0] in _MARKS or "." in head or ")" in head for head in heads]


def _blocks(text: str, start: int, end: int) -> list[list[tuple[int, int]]]:
    """The spans of lines without the blank ones, grouped between blank lines."""
    blocks: list[list[tuple[int, int]]] = []
    previous_end = -1
    for match in _LINE.finditer(text, start, end):
        line = match.span()
        if text[line[0] : line[1]].isspace():
            continue
        gap = text[previous_end : line[0]] if previous_end >= 0 else "\n\n"
        if gap != "\n" and _is_blank_between(gap):
            blocks.append([line])
        else:
            blocks[-1].append(line)
        previous_end = line[1]
    return blocks


def _is_blank_between(gap: str) -> bool:
    return gap.replace("\r\n", "\n").count("\n") + gap.count("\f") * 2 + gap.count("\u2029") * 2 >= 2


def _breaks(before: str, after: str, width: int, marked: bool) -> bool:
    """Whether the line break between two lines of one block ends a sentence."""
    if marked:
        if any(rule.match(before) for rule in (_HEADING, _RULE, _TABLE_ROW)):
            return True
        if any(rule.match(after) for rule in (_HEADING, _RULE, _TABLE_ROW, _LIST_ITEM)):
            return True
    before, first_word = before.rstrip(), after.split(maxsplit=1)[0]
    if first_word[0].islower() or before.endswith((",", "-")):
        return False
    if ":" in after and _FIELD.match(after) and (before.endswith((".", ":")) or _FIELD.match(before)):
        return True
    if width <= NARROW_BLOCK:
        return True
    # The next word would have fitted on this line, so whoever broke it meant to.
    return len(before) + 1 + len(first_word) + 8 <= width


def _is_row(text: str, run: Span) -> bool:
    piece = text[run.start : run.end]
    return ("|" in piece or "\t" in piece) and "\n" not in piece and _TABLE_ROW.match(piece) is not None


def _split_run(text: str, run: Span) -> list[Span]:
    spans: list[Span] = []
    position = run.start
    for stop in _STOP.finditer(text, run.start, run.end):
        if stop.end() >= run.end or not _ends_sentence(text, run, position, stop):
            continue
        _append_trimmed(spans, text, position, stop.end())
        position = stop.end()
    _append_trimmed(spans, text, position, run.end)
    return spans


def _ends_sentence(text: str, run: Span, position: int, stop: re.Match[str]) -> bool:
    mark = stop.group()
    if mark.startswith(("....", "……")):
        return False  # the dots that lead from an entry to its number
    if mark[0] in "。！？":
        return True
    if mark == "." and _is_plain(text, position, stop.start()):
        return True
    following = _WORD_AFTER.match(text, stop.end(), run.end)
    next_word = following.group(1) if following else ""
    if next_word[:1].islower():
        return False
    if not mark.startswith(".") or mark.startswith(".."):
        return True
    before = _WORD_BEFORE.search(text, max(position, stop.start() - 40), stop.start())
    word = before.group() if before else ""
    if _NUMBER_OF_ITEM.fullmatch(word) and not text[position : stop.start() - len(word)].strip():
        return False  # the number of a list item or a section
    lowered = word.casefold()
    if lowered in _NEVER_LAST:
        return False
    next_is_number = next_word[:1].isdigit()
    if next_is_number and (lowered in _BEFORE_NUMBER or re.fullmatch(r"\d{1,2}", word)):
        return False
    is_initial = len(word) == 1 and word.isalpha() and word.isupper()
    return not is_initial or re.sub(r"\W+$", "", next_word).casefold() in _OPENERS


def _is_plain(text: str, position: int, stop: int) -> bool:
    """Whether an ordinary word stands before a full stop and an ASCII word behind it: no other rule speaks then."""
    after = text[stop + 2 : stop + 3]
    if not (after.isascii() and after.isalnum()):
        return False
    word = text[max(position, stop - _LONGEST_SPECIAL - 2) : stop].rpartition(" ")[2]
    return len(word) > 1 and word.isalpha() and word.casefold() not in _SPECIAL and bool(word.strip("ivx"))


def _split_overlong(text: str, span: Span) -> list[Span]:
    """A text without full stops is cut at its semicolons and line ends, so that a quotation stays readable."""
    pieces: list[Span] = []
    position = span.start
    for cut in _SOFT_CUT.finditer(text, span.start, span.end):
        if cut.end() - position >= LONGEST_SENTENCE // 3:
            _append_trimmed(pieces, text, position, cut.end())
            position = cut.end()
    _append_trimmed(pieces, text, position, span.end)
    return pieces


def _append_trimmed(spans: list[Span], text: str, start: int, end: int) -> None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        spans.append(Span(start, end))
