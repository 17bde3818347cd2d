"""Files to a `Graph`: edge lists as text or CSV, Parquet, GraphML. Nothing is executed, no entity is resolved."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np

from windlass.core.errors import GraphFormatError, NotFound, UsageError
from windlass.graphs.graph import Graph

_SOURCES = ("source", "src", "from", "u", "node1", "head")
_TARGETS = ("target", "dst", "to", "v", "node2", "tail")
_WEIGHTS = ("weight", "w", "value", "count")
_PARQUET = {".parquet", ".pq"}
_TEXT = {".csv", ".tsv", ".txt", ".edges", ".edgelist", ".el"}
_SHOWN_LINES = 5


def read_graph(
    path: str | Path,
    *,
    directed: bool = False,
    source: str | None = None,
    target: str | None = None,
    weight: str | None = None,
) -> Graph:
    """Read a graph by the ending of its file: `.parquet`, `.graphml`, or an edge list (`.csv`, `.tsv`, `.txt`, `.gz`).

    An edge list has two or three columns, separated by tab, comma, semicolon or blanks; lines that begin with # or %
    are comments; a first line of names is a header. Numbers from 0 are taken as node numbers when there are not many
    more numbers than edges, all else as names. Repeated edges are summed, self loops are dropped.

    Args:
        directed: For edge lists and Parquet; a GraphML file says so itself.
        source, target, weight: Columns by name; by default the usual names, else the first two and a numeric third.

    Raises:
        NotFound: There is no such file.
        GraphFormatError: The file is broken, or a line has too few columns; the first such lines are named.
        UsageError: A named column is not there, or an edge is impossible (see `Graph.from_edges`).
    """
    file = Path(path)
    if not file.is_file():
        raise NotFound(f"no file {file}", hint="check the path")
    kinds = [suffix.lower() for suffix in file.suffixes if suffix.lower() != ".gz"]
    kind = kinds[-1] if kinds else ".txt"
    if kind == ".graphml":
        return _read_graphml(file)
    if kind not in _PARQUET | _TEXT:
        raise UsageError(f"{file}: no reader for {kind}", hint="use .parquet, .graphml, .csv, .tsv, .txt or .edges")
    asked = {name for name in (source, target, weight) if name is not None}
    table = _read_parquet(file) if kind in _PARQUET else _read_text(file, asked)
    names = list(table)
    if len(names) < 2:
        raise GraphFormatError(f"{file} has {len(names)} columns, an edge needs two")
    begin = _column(table, source, _SOURCES, names[0], file)
    end = _column(table, target, _TARGETS, names[1], file)
    third = next((name for name in names if name.lower() in _WEIGHTS and name not in (begin, end)), None)
    if third is None and len(names) == 3 and kind in _TEXT:
        third = names[2]
    chosen = weight or third
    if chosen is not None and chosen not in table:
        raise UsageError(f"{file} has no column {chosen!r}", hint=f"it has {', '.join(names)}")
    values = None if chosen is None else _numbers(table[chosen], chosen, file)
    sources, targets = table[begin], table[end]
    return Graph.from_edges(sources, targets, values, directed=directed, relabel=_are_names(sources, targets))


def _column(table: dict[str, Any], asked: str | None, usual: tuple[str, ...], default: str, file: Path) -> str:
    if asked is not None:
        if asked not in table:
            raise UsageError(f"{file} has no column {asked!r}", hint=f"it has {', '.join(table)}")
        return asked
    return next((name for name in table if name.lower() in usual), default)


def _are_names(sources: Any, targets: Any) -> bool:
    """Numbers far beyond what the edges could need are names, such as account numbers."""
    if sources.dtype == object or targets.dtype == object or not len(sources):
        return True
    least, most = min(sources.min(), targets.min()), max(sources.max(), targets.max())
    return bool(least < 0 or most > 16 * len(sources) + 1024)


def _numbers(values: np.ndarray, name: str, file: Path) -> np.ndarray:
    if values.dtype != object:
        return values
    try:
        return np.array([float(value) for value in values], np.float32)
    except (TypeError, ValueError) as error:
        raise GraphFormatError(f"{file}: column {name!r} holds what is no number: {error}") from error


def _read_parquet(file: Path) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        table = parquet.read_table(file)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GraphFormatError(f"{file} is no readable Parquet file: {error}", hint="write it again") from error
    return {name: _as_array(table[name], name, file) for name in table.column_names}


def _as_array(column: Any, name: str, file: Path) -> np.ndarray:
    """int64, float64 or objects (text), without nulls."""
    import pyarrow as pa

    if column.null_count:
        raise GraphFormatError(f"{file}: column {name!r} has {column.null_count} empty cells", hint="remove those rows")
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        array: np.ndarray = column.to_numpy()
        return array
    made = np.empty(len(column), object)
    made[:] = [str(value) for value in column.to_pylist()]
    return made


def _read_text(file: Path, asked: set[str]) -> dict[str, np.ndarray]:
    import pyarrow as pa
    from pyarrow import csv

    data = _plain_text(file)
    delimiter, header = _shape(data, asked)
    if delimiter == " ":
        data = b"\n".join(b" ".join(line.split()) for line in data.splitlines())
    wrong: list[tuple[int, str]] = []

    def note(row: Any) -> str:
        wrong.append((row.number or 0, row.text))
        return "skip"

    first = data.lstrip(b"\n").split(b"\n", 1)[0]
    names = None if header else [f"column{at}" for at in range(1, first.count(delimiter.encode()) + 2)]
    try:
        table = csv.read_csv(
            io.BytesIO(data),
            read_options=csv.ReadOptions(column_names=names, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=delimiter, invalid_row_handler=note),
            convert_options=csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False),
        )
    except (pa.ArrowException, ValueError) as error:
        raise GraphFormatError(f"{file} is no readable edge list: {error}", hint="one edge a line") from error
    if wrong:
        lines = "; ".join(f"line {number}: {text[:60]!r}" for number, text in wrong[:_SHOWN_LINES])
        raise GraphFormatError(f"{file}: {len(wrong)} lines have not {table.num_columns} columns ({lines})")
    return {name: _as_array(table[name], name, file) for name in table.column_names}


def _plain_text(file: Path) -> bytes:
    """The bytes of a text file, unpacked, comment lines left out as empty ones so that line numbers hold."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix.lower() == ".gz" else file.read_bytes()
    except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
        raise GraphFormatError(f"cannot read {file}: {error}", hint="the file is cut or damaged") from error
    if b"\0" in data[:65536]:
        raise GraphFormatError(f"{file} is no text", hint="an edge list is text, one edge a line")
    data = data.replace(b"\r\n", b"\n").removeprefix(b"\xef\xbb\xbf")
    if data.startswith((b"#", b"%")) or b"\n#" in data or b"\n%" in data:
        data = b"\n".join(b"" if line.startswith((b"#", b"%")) else line for line in data.split(b"\n"))
    if not data.strip():
        raise GraphFormatError(f"{file} holds no edges", hint="one edge a line: source, target, weight if any")
    return data


def _shape(data: bytes, asked: set[str]) -> tuple[str, bool]:
    """The delimiter, and whether the first line is a header: it holds a name that was asked for, or two usual ones."""
    first = data.lstrip(b"\n").split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    delimiter = next((mark for mark in ("\t", ",", ";") if mark in first), " ")
    cells = [cell.strip().strip('"') for cell in (first.split(delimiter) if delimiter != " " else first.split())]
    known = _SOURCES + _TARGETS + _WEIGHTS
    return delimiter, bool(asked & set(cells)) or sum(cell.lower() in known for cell in cells) >= 2


def _read_graphml(file: Path) -> Graph:
    from lxml import etree

    opened = gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb")
    names: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    weight_key, directed, seen = None, True, False
    try:
        with opened:
            parser = etree.iterparse(
                opened,
                events=("start", "end"),
                resolve_entities=False,
                no_network=True,
                load_dtd=False,
                huge_tree=False,
            )
            for event, element in parser:
                tag = etree.QName(element).localname if isinstance(element.tag, str) else ""
                if event == "start":
                    if tag == "graph":
                        seen, directed = True, element.get("edgedefault", "directed") != "undirected"
                    continue
                if tag == "key" and element.get("for") in ("edge", "all") and element.get("attr.name") == "weight":
                    weight_key = element.get("id")
                elif tag == "node":
                    names.setdefault(element.attrib["id"], len(names))
                    element.clear()
                elif tag == "edge":
                    ends = [names.setdefault(element.attrib[end], len(names)) for end in ("source", "target")]
                    pairs.append((ends[0], ends[1]))
                    cell = next((d.text for d in element if weight_key and d.get("key") == weight_key), None)
                    weights.append(1.0 if cell is None else float(cell))
                    element.clear()
    except (etree.XMLSyntaxError, KeyError, ValueError, OSError, EOFError) as error:
        raise GraphFormatError(f"{file} is no readable GraphML: {error}", hint="write it again") from error
    if not seen:
        raise GraphFormatError(f"{file} holds no <graph>", hint="GraphML has a graph element")
    made = Graph.from_edges(
        [a for a, _ in pairs], [b for _, b in pairs], None if all(w == 1 for w in weights) else weights,
        num_nodes=len(names), directed=directed,
    )  # fmt: skip
    ids = np.empty(len(names), object)
    ids[:] = list(names)
    return Graph(made.indptr, made.indices, made.weights, made.directed, ids)
