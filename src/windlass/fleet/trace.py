"""Request traces of other people, read into `sim.trace.RequestTrace`.

`read` tells the format by the header, never by the name of the file:

    Azure LLM 2023/2024   TIMESTAMP,ContextTokens,GeneratedTokens
    BurstGPT              Timestamp,Model,Request tokens,Response tokens,...; a failed request has no response tokens
    Mooncake              JSON lines: timestamp (ms), input_length, output_length, hash_ids (blocks of 512 tokens)
    plain CSV             arrival_s,prompt_tokens,output_tokens (any of the usual names, times in seconds)
    Parquet               what `RequestTrace.save` writes, and the server's access log

A `.gz` file is read as it is. Rows must be in order of arrival except where a source is known not to be.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from windlass.core.errors import NotFound
from windlass.sim.trace import RequestTrace, TraceError

_Row = dict[str, Any]
_BLOCK_TOKENS = 512  # of Mooncake's prefix hashes
_ARRIVAL = ("arrival_s", "arrived_at", "arrival", "time_s", "timestamp_s")
_INPUT = ("input_tokens", "prompt_tokens", "num_prefill_tokens", "context_tokens")
_OUTPUT = ("output_tokens", "num_decode_tokens", "generated_tokens", "completion_tokens")


def read(path: Path | str) -> RequestTrace:
    """The trace in `path`, whatever its format; times start at 0.

    Raises:
        NotFound: there is no such file.
        TraceError: an unknown format, or a row that makes no sense; it names the line.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    if head == b"PAR1":
        return RequestTrace.load(path)
    rows = _rows(path, _text(path, head))
    columns = list(rows)
    if not columns:
        raise TraceError(path, 0, "no requests in it")
    return _trace(path, columns)


def _text(path: Path, head: bytes) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if head[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(path, 0, f"damaged compression ({error})") from error
    except UnicodeDecodeError as error:
        raise TraceError(path, 0, f"not text in UTF-8 ({error.reason} at byte {error.start})") from error


def _rows(path: Path, text: str) -> Iterator[_Row]:
    if text.lstrip().startswith("{"):
        return _mooncake(path, text)
    header = text.split("\n", 1)[0].strip().split(",")
    names = {name.strip().lower(): name.strip() for name in header}
    if {"timestamp", "contexttokens", "generatedtokens"} <= set(names):
        return _table(path, text, _azure)
    if {"timestamp", "model", "request tokens", "response tokens"} <= set(names):
        return _table(path, text, _burst)
    if any(name in names for name in _ARRIVAL) and any(name in names for name in _INPUT):
        return _table(path, text, _plain)
    raise TraceError(
        path,
        1,
        f"no format known by its header {','.join(header)[:80]!r}",
        hint="name the columns arrival_s, input_tokens, output_tokens",
    )


def _table(path: Path, text: str, parse: Callable[[_Row], _Row]) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(text))
    for row in reader:
        if not any(row.values()):
            continue
        try:
            lowered = {(name or "").strip().lower(): value for name, value in row.items()}
            yield {**parse(lowered), "line": reader.line_num}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TraceError(path, reader.line_num, f"not a request: {_shown(error)}") from error


def _azure(row: _Row) -> _Row:
    # Seven digits of a second, one more than Python reads.
    moment = datetime.fromisoformat(row["timestamp"].strip()[:26]).timestamp()
    return {"arrival": moment, "input": int(row["contexttokens"]), "output": int(row["generatedtokens"])}


def _burst(row: _Row) -> _Row:
    output = int(float(row["response tokens"]))
    found = {"arrival": float(row["timestamp"]), "input": int(float(row["request tokens"])), "output": output}
    return {**found, "failed": not output, "model": row["model"], "kind": row.get("log type") or ""}


def _plain(row: _Row) -> _Row:
    def one_of(names: tuple[str, ...]) -> str:
        return next(str(row[name]) for name in names if name in row)

    found = {"arrival": float(one_of(_ARRIVAL)), "input": int(one_of(_INPUT)), "output": int(one_of(_OUTPUT))}
    return {**found, "model": row.get("model") or "", "kind": row.get("kind") or ""}


def _mooncake(path: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield {
                "arrival": float(row["timestamp"]) / 1e3,
                "input": int(row["input_length"]),
                "output": int(row["output_length"]),
                "blocks": np.array(row.get("hash_ids", ()), np.int64),
                "line": number,
            }
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise TraceError(path, number, f"not a request: {_shown(error)}") from error


def _trace(path: Path, rows: list[_Row]) -> RequestTrace:
    for before, row in zip([rows[0], *rows], rows, strict=False):
        if row["input"] < 0 or row["output"] < 0:
            raise TraceError(path, row["line"], f"{row['input']} input and {row['output']} output tokens")
        if not before["arrival"] <= row["arrival"] < float("inf"):
            raise TraceError(path, row["line"], "arrives before the row above it", hint="sort the file by arrival")
    arrivals = np.array([row["arrival"] for row in rows])
    blocks = [row["blocks"] for row in rows] if "blocks" in rows[0] else None
    meta: dict[str, Any] = {"source": path.name}
    if blocks is not None:
        meta["block_tokens"] = _BLOCK_TOKENS
    return RequestTrace(
        arrivals - arrivals[0],
        np.array([row["input"] for row in rows]),
        np.array([row["output"] for row in rows]),
        kind=[row.get("kind", "") for row in rows],
        model=[row.get("model", "") for row in rows],
        prefix_blocks=blocks,
        failed=np.array([row.get("failed", False) for row in rows]),
        meta=meta,
    )


def _shown(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else str(error)
