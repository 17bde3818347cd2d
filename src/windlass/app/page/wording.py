"""Numbers, places and found words as a reader sees them. Everything is escaped here or by the templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup, escape

from windlass.core.paths import printable as printable
from windlass.retrieval.terms import content_terms, stems, terms
from windlass.retrieval.types import Passage

_SNIPPET = 380
_ROWS_SHOWN = 2
# The line below the head of a Markdown table.
_TABLE_RULE = re.compile(r"^[ |:-]*-{3}[ |:-]*$", re.MULTILINE)
_EMPHASIS = re.compile(r"`(?P<code>[^`\n]+)`|\*\*(?P<strong>[^*\n]+)\*\*")
_LINE_MARK = re.compile(r"^\s*(?:[-*+]|#{1,6}|>)\s+")
_ELLIPSIS = "…"


def size(count: int) -> str:
    """Bytes for people.

    Example:
        >>> size(900), size(1536), size(5 << 20)
        ('900 B', '1.5 KB', '5.0 MB')
    """
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KB", "MB", "GB", "TB"):
        value /= 1024
        if value < 1024 or unit == "TB":
            return f"{value:.1f} {unit}"
    raise AssertionError("the last unit always fits")


def duration(seconds: float) -> str:
    """Time left, no more exact than it can be known.

    Example:
        >>> duration(3), duration(48), duration(700), duration(9000)
        ('a few seconds', 'about 50 seconds', 'about 12 minutes', 'about 2.5 hours')
    """
    if seconds < 8:
        return "a few seconds"
    if seconds < 90:
        return f"about {round(seconds / 10) * 10} seconds"
    if seconds < 5400:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def plural(count: int, one: str, many: str = "") -> str:
    """`1 file`, `2 files`, `1,204 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def place(page: int | None, table: str | None, rows: Sequence[int] | None, file: str = "") -> str:
    """Where in a file: page, table (when the file's name does not say it), rows."""
    parts = []
    if page is not None:
        parts.append(f"page {page}")
    if table and table not in file:
        parts.append(f"table {printable(table)}")
    if rows is not None:
        parts.append(f"row {rows[0]:,}" if rows[0] == rows[1] else f"rows {rows[0]:,} to {rows[1]:,}")
    return ", ".join(parts)


def sentence(text: str) -> Markup:
    """A sentence of an answer, escaped; the emphasis and code marks of Markdown are set, links are not made.

    Example:
        >>> sentence("**15 %** off <b>")
        Markup('<strong>15 %</strong> off &lt;b&gt;')
    """
    plain = _LINE_MARK.sub("", text)
    parts: list[Markup] = []
    last = 0
    for found in _EMPHASIS.finditer(plain):
        tag = "code" if found["code"] else "strong"
        parts += [
            escape(plain[last : found.start()]),
            Markup(f"<{tag}>{{}}</{tag}>").format(found["code"] or found["strong"]),
        ]
        last = found.end()
    parts.append(escape(plain[last:]))
    return Markup("").join(parts)


def marked(text: str, query: str) -> Markup:
    """`text`, escaped, with the words of `query` in <mark>, whatever their endings.

    Example:
        >>> marked("Dredging <works>", "who dredges?")
        Markup('<mark>Dredging</mark> &lt;works&gt;')
    """
    wanted = {term.stem for term in content_terms(query)}
    parts: list[Markup] = []
    last = 0
    for term in terms(text):
        if term.stem in wanted:
            parts += [escape(text[last : term.start]), Markup("<mark>{}</mark>").format(text[term.start : term.end])]
            last = term.end
    parts.append(escape(text[last:]))
    return Markup("").join(parts)


def passage_snippet(passage: Passage, query: str, length: int = _SNIPPET) -> Markup:
    """What to show of a found passage: of table rows the ones that fit, of everything else a stretch of its text."""
    if passage.kind != "rows" or passage.rows is None:
        return snippet(passage.text, query, length)
    wanted = stems(query)
    rows = list(enumerate(passage.text.splitlines(), passage.rows[0]))
    fitting = sorted(rows, key=lambda row: (-len(wanted & stems(row[1])), row[0]))[:_ROWS_SHOWN]
    best = len(wanted & stems(fitting[0][1])) if fitting else 0
    shown = [row for row in sorted(fitting) if len(wanted & stems(row[1])) == best]
    line = Markup('<span class="row-line"><span class="row-number">row {:,}</span>{}</span>')
    return Markup("").join(line.format(number, snippet(text, query, length // len(shown))) for number, text in shown)


def snippet(text: str, query: str, length: int = _SNIPPET) -> Markup:
    """The stretch of `text` with most different words of `query`, marked, about `length` characters long."""
    text = " ".join(_TABLE_RULE.sub(" ", text).replace("**", "").split())
    if len(text) <= length:
        return marked(text, query)
    wanted = {term.stem for term in content_terms(query)}
    found = [term for term in terms(text) if term.stem in wanted]
    best, most = 0, 0
    for first in found:
        inside = {term.stem for term in found if first.start <= term.start < first.start + length * 3 // 4}
        if len(inside) > most:
            best, most = first.start, len(inside)
    start = _word_start(text, max(0, best - length // 5))
    end = text.rfind(" ", start, start + length) if start + length < len(text) else len(text)
    end = end if end > start else start + length
    cut = marked(text[start:end], query)
    return Markup("{}{}{}").format(_ELLIPSIS if start else "", cut, _ELLIPSIS if end < len(text) else "")


def _word_start(text: str, near: int) -> int:
    space = text.find(" ", near, near + 40)
    return 0 if near == 0 else space + 1 if space >= 0 else near
