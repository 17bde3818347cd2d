"""HTML: the words a person would see, with headings, lists, tables and code as blocks.

The parser is the one of browsers (HTML5 rules, by lexbor); it expands no entities but HTML's own characters,
fetches nothing and runs nothing. The tree is walked without recursion, so nesting is no danger.
"""

from __future__ import annotations

import re
from typing import Any

from windlass.lake.document import BlockKind, Document
from windlass.lake.readers.composing import Composer, clean_title
from windlass.lake.readers.encoding import Decoded, decode
from windlass.lake.readers.source import Source

_DECLARED = re.compile(rb"<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{2,40})", re.IGNORECASE)
_DROPPED = frozenset(
    "script style nav template noscript svg math head iframe object embed canvas audio video select datalist "
    "button dialog map".split()
)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCKS = frozenset(
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure "
    "footer form header hr html legend main menu ol p section summary ul tr td th thead tbody tfoot table li "
    "pre".split()
)
# The time to parse grows with tags times depth; browsers stop nesting at 512.
_CHECKED_TAGS = 20_000
_MOST_DEPTH = 2000
_NESTING_TAG = re.compile(
    r"<(/?)(?!(?:p|li|t[dhr]|thead|tbody|d[dt]|option|br|hr|img|input|meta|link|wbr|col|area|source)\b)[a-zA-Z]"
)
_ANY_TAG = re.compile(r"<[^<>]{0,10000}>")
_BREAK = "\x1f"  # stands for <br> among the words, where a line end is only white space
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)


def decode_html(data: bytes) -> Decoded:
    """Like `decode`, but a file that is not UTF-8 is read as what its `<meta charset>` says."""
    decoded = decode(data)
    declared = _DECLARED.search(data[:4096])
    if decoded.encoding != "utf-8" and not decoded.encoding.startswith("utf-") and declared:
        name = declared.group(1).decode("ascii")
        try:
            return Decoded(data.decode(name), name.lower())
        except (LookupError, UnicodeDecodeError):
            return decoded
    return decoded


def read_html(source: Source, decoded: Decoded) -> Document:
    """Rendered text: headings, paragraphs, lists, tables (`a | b` lines) and preformatted code."""
    from selectolax.lexbor import LexborHTMLParser

    composer = Composer()
    composer.warnings.extend(decoded.warnings)
    text = decoded.text
    if text.count("<") > _CHECKED_TAGS and _depth(text) > _MOST_DEPTH:
        composer.warnings.append(f"tags are nested more than {_MOST_DEPTH:,} deep and were dropped")
        text = _ANY_TAG.sub(" ", text)
    tree = LexborHTMLParser(text)
    if tree.root is not None:
        _Walk(composer).over(tree.root)
    head_title = tree.css_first("head > title")
    title = clean_title(head_title.text()) if head_title is not None else ""
    return composer.document("html", title=title or composer.first_heading() or source.stem)


def _depth(text: str) -> int:
    """How deep tags that want closing are nested, roughly."""
    depth = deepest = 0
    for match in _NESTING_TAG.finditer(text):
        if match.group(1):
            depth = max(0, depth - 1)
        else:
            depth += 1
            deepest = max(deepest, depth)
    return deepest


class _Walk:
    """Goes through the tree in document order and hands finished stretches to the composer."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._words: list[str] = []  # of the current paragraph, heading, item or cell
        self._items: list[str] = []  # of the current outermost list
        self._lists = 0
        self._table: _Rows | None = None
        self._pre = 0

    def over(self, root: Any) -> None:
        # Nodes are compared by their serialised subtrees; depth tells when we are back, and costs nothing.
        node, depth = root, 0
        while True:
            wanted = self._enter(node)
            child = node.child if wanted else None
            if child is not None:
                node, depth = child, depth + 1
                continue
            if wanted:
                self._leave(node)
            following = node.next if depth else None
            while depth and following is None:
                node, depth = node.parent, depth - 1
                self._leave(node)
                following = node.next if depth else None
            if following is None:
                self._flush()
                return
            node = following

    def _enter(self, node: Any) -> bool:
        """Look at a node on the way down; true when its children are wanted."""
        tag: str | None = node.tag
        if tag == "-text":
            self._words.append(node.text_content or "")
            return False
        if tag is None or tag.startswith(("-", "!", "_")) or tag in _DROPPED or _hidden(node):
            return False
        if tag == "br":
            self._words.append(_BREAK)
        elif tag in _BLOCKS or tag in _HEADINGS:
            self._begin(tag)
        return True

    def _begin(self, tag: str) -> None:
        if self._table is not None:
            if tag != "table" and tag not in _HEADINGS:
                self._words.append(" ")  # what is a block elsewhere is a word apart in a cell
                return
            # Tables and headings inside: the outer table only arranges the page, and its cells are no cells.
            self._end_table()
        self._flush()
        if tag in ("ul", "ol", "menu"):
            self._lists += 1
        elif tag == "pre":
            self._pre += 1
        elif tag == "table":
            self._table = _Rows()

    def _end_table(self) -> None:
        if self._table is not None:
            self._table.add_cell(self._words)
            self._composer.add("table", self._table.text())
            self._table = None

    def _leave(self, node: Any) -> None:
        tag = node.tag
        if tag not in _BLOCKS and tag not in _HEADINGS:
            return
        if self._table is not None:
            if tag in ("td", "th"):
                self._table.add_cell(self._words)
            elif tag == "tr":
                self._table.end_row()
            elif tag == "table":
                self._end_table()
            return
        level = _HEADINGS.get(tag, 0)
        self._flush(level=level)
        if tag in ("ul", "ol", "menu") and self._lists:
            self._lists -= 1
            if not self._lists:
                self._composer.add("list", "\n".join(self._items))
                self._items.clear()
        elif tag == "pre" and self._pre:
            self._pre -= 1

    def _flush(self, level: int = 0) -> None:
        """What was collected so far is one thing."""
        if not self._words:
            return
        words = "".join(self._words).replace(_BREAK, "\n") if self._pre else _collapsed(self._words)
        self._words.clear()
        if not words or words.isspace():
            return
        if level:
            self._composer.add("heading", words.replace("\n", " "), level=level)
        elif self._lists:
            self._items.append("  " * (self._lists - 1) + "- " + words.strip().replace("\n", " "))
        else:
            kind: BlockKind = "code" if self._pre else "paragraph"
            self._composer.add(kind, words.strip("\n") if self._pre else words)


class _Rows:
    """The rows of one table while it is walked."""

    def __init__(self) -> None:
        self._cells: list[str] = []
        self._lines: list[str] = []

    def add_cell(self, words: list[str]) -> None:
        self._cells.append(_collapsed(words).replace("\n", " "))
        words.clear()

    def end_row(self) -> None:
        if any(self._cells):
            self._lines.append(" | ".join(self._cells))
        self._cells.clear()

    def text(self) -> str:
        self.end_row()
        return "\n".join(self._lines)


def _hidden(node: Any) -> bool:
    """Hidden text is not what a person saw, and a favourite place for orders to language models."""
    attributes = node.attributes
    if not attributes:
        return False
    return "hidden" in attributes or bool(_HIDDEN_STYLE.search(attributes.get("style") or ""))


def _collapsed(words: list[str]) -> str:
    """White space as a browser shows it: runs are one space, only `<br>` breaks a line."""
    joined = "".join(words)
    if _BREAK not in joined:
        return " ".join(joined.split())
    lines = (" ".join(line.split()) for line in joined.split(_BREAK))
    return "\n".join(line for line in lines if line)
