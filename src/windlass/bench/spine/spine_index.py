"""`spine-index`: how fast a folder becomes searchable by word, and how little a second look costs.

The peer is the loop one would write with the same libraries: read each file with its usual reader, cut it into
windows of words, index them with bm25s in memory. It keeps nothing on disk, checks nothing, and dies of the first
broken file; ours hashes, isolates, profiles tables and commits durably. Embedding is left out on both sides: it is
the same encoder.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, metric
from windlass.core.randomness import uniform
from windlass.retrieval.pipeline import Pipeline

_WORDS = (
    "harbour berth vessel pilot tide crane cargo mooring channel dredging tariff invoice notice inspection safety "
    "depth quay lock buoy anchor container bulk tanker ferry customs permit weather surge radar watch report meeting "
    "the of and to in is for on with by at from as that this are be was were not all any each under over"
).split()
_PASSAGE_WORDS = 160


def run(context: BenchContext) -> BenchReport:
    files = 300 if context.quick else 2_000
    folder = context.workdir / "folder"
    size = make_folder(folder, files, context.seed)

    def ours() -> int:
        shutil.rmtree(folder / ".windlass", ignore_errors=True)
        with Pipeline.open(folder, encoder=None, model=None) as pipeline:
            return pipeline.index().passages_added

    bm25s = peer_module("bm25s")
    first = compare(ours, (lambda: plain_loop(folder)) if bm25s else None, progress=context.progress)

    def again() -> int:
        with Pipeline.open(folder, encoder=None, model=None) as pipeline:
            return pipeline.index().delta.unchanged

    second = compare(again, (lambda: plain_loop(folder)) if bm25s else None, progress=context.progress)
    seconds, peer_seconds = first.ours.wall_median, first.peer.wall_median if first.peer else None
    rate = dict(better="higher", peer_name="plain loop with bm25s")
    return context.report(
        mode="measured",
        workload=f"{files} files, {size / 1e6:.1f} MB: Markdown, text, HTML and CSV in equal parts, no embedding",
        metrics=[
            metric("files", "files/s", files / seconds, peer=_per(files, peer_seconds), **rate),  # type: ignore[arg-type]
            metric("bytes", "MB/s", size / 1e6 / seconds, peer=_per(size / 1e6, peer_seconds), **rate),  # type: ignore[arg-type]
            *first.metrics("first index", peer_name="plain loop with bm25s", least_ratio=1.0),
            *second.metrics("unchanged second index", peer_name="plain loop, which starts over", least_ratio=10),
        ],
    )


def make_folder(folder: Path, files: int, seed: int) -> int:
    """Write `files` files of 1 to 12 KB and return their bytes."""
    total = 0
    for number in range(files):
        picks = uniform(seed, number, size=150 + 60 * (number % 31)) * len(_WORDS)
        words = [_WORDS[int(pick)] for pick in picks]
        sentences = [" ".join(words[i : i + 14]).capitalize() + "." for i in range(0, len(words), 14)]
        name, text = _RENDER[number % len(_RENDER)](number, sentences, words)
        path = folder / f"part{number % 17}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        total += len(text)
    return total


def plain_loop(folder: Path) -> int:
    """Read, window and index every file in memory; returns the number of windows."""
    import bm25s
    from selectolax.lexbor import LexborHTMLParser as HTMLParser

    windows: list[str] = []
    for path in sorted(folder.rglob("*.*")):
        if ".windlass" in path.parts:
            continue
        if path.suffix == ".html":
            text = HTMLParser(path.read_bytes()).text(separator=" ")
        elif path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                text = " ".join(" ".join(row) for row in csv.reader(file))
        else:
            text = path.read_text("utf-8")
        words = text.split()
        windows += [" ".join(words[i : i + _PASSAGE_WORDS]) for i in range(0, len(words), _PASSAGE_WORDS)]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(windows, stopwords="en", show_progress=False), show_progress=False)
    return len(windows)


def _markdown(number: int, sentences: list[str], words: list[str]) -> tuple[str, str]:
    body = "\n\n".join(f"## Section {i}\n\n" + " ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))
    return f"note{number}.md", f"# Note {number}\n\n{body}\n"


def _text(number: int, sentences: list[str], words: list[str]) -> tuple[str, str]:
    return f"memo{number}.txt", "\n".join(sentences) + "\n"


def _html(number: int, sentences: list[str], words: list[str]) -> tuple[str, str]:
    body = "".join(f"<p>{sentence}</p>" for sentence in sentences)
    return f"page{number}.html", f"<html><head><title>Page {number}</title></head><body>{body}</body></html>"


def _csv(number: int, sentences: list[str], words: list[str]) -> tuple[str, str]:
    rows = [f"{i},{words[i]},{words[-i - 1]},{number * i % 97}" for i in range(len(words) // 4)]
    return f"table{number}.csv", "id,first,second,amount\n" + "\n".join(rows) + "\n"


_RENDER = (_markdown, _text, _html, _csv)


def _per(amount: float, seconds: float | None) -> float | None:
    return None if seconds is None else amount / seconds
