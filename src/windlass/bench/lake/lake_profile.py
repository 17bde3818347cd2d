"""`lake-profile`: profiling many small files and one large one, against DuckDB's `SUMMARIZE`.

Both start from the file and end with types, ranges, nulls and distinct counts of every column. Ours also leaves row
hashes, duplicate rows, candidate keys, quantiles, frequent values, HyperLogLog, bottom-k and MinHash of every column;
DuckDB's distinct counts and quartiles are estimates, ours are exact up to 65,536 distinct values. DuckDB has one
connection for all files and its usual number of threads; ours runs on one.
"""

from __future__ import annotations

from pathlib import Path

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.lake.data import unpack_tables
from windlass.bench.report import BenchReport, metric
from windlass.core.randomness import integers, uniform
from windlass.lake.hashing import hash_table
from windlass.lake.profile import profile_table
from windlass.lake.table_files import file_cells, profile_file

_QUICK_FILES = 100
_LARGE_ROWS = 600_000
_QUICK_ROWS = 60_000


def run(context: BenchContext) -> BenchReport:
    files = unpack_tables(context.workdir / "tables")
    if context.quick:
        files = files[:: len(files) // _QUICK_FILES]
    large = context.workdir / "large.parquet"
    make_large(large, _QUICK_ROWS if context.quick else _LARGE_ROWS, context.seed)
    duckdb = peer_module("duckdb")
    name = f"DuckDB {duckdb.__version__} SUMMARIZE" if duckdb else "DuckDB SUMMARIZE"
    # What the first use compiles is compiled by a few files; the peer has nothing to warm up but the disk's cache.
    profile_all(files[:5])
    small = compare(
        lambda: profile_all(files),
        (lambda: summarize_all(files, "read_csv_auto")) if duckdb else None,
        warm_up=context.quick,
        progress=context.progress,
    )
    one = compare(
        lambda: profile_file(str(large)),
        (lambda: summarize_all([large], "read_parquet")) if duckdb else None,
        progress=context.progress,
    )
    size = sum(path.stat().st_size for path in files)
    rows = "60,000" if context.quick else "600,000"
    return context.report(
        mode="measured",
        workload=f"{len(files)} CSV files of {size / 1e6:.1f} MB in all; one Parquet file of {rows} rows and 8 columns",
        metrics=[
            *small.metrics("many small files", peer_name=name, least_ratio=4),
            *one.metrics("one large Parquet file", peer_name=name, least_ratio=1),
            metric("columns profiled", "", small.ours.result, better="higher"),
        ],
    )


def profile_all(files: list[Path]) -> int:
    """Profile and hash the rows of every file; returns the number of columns."""
    columns = 0
    for path in files:
        hashed = hash_table(file_cells(str(path)))
        hashed.row_hashes()
        columns += len(profile_table(path.stem, hashed).columns)
    return columns


def summarize_all(files: list[Path], reader: str) -> int:
    """The same files by DuckDB; one it cannot read counts as done."""
    import duckdb

    columns = 0
    with duckdb.connect() as connection:
        for path in files:
            try:
                columns += len(connection.execute(f"SUMMARIZE SELECT * FROM {reader}(?)", [str(path)]).fetchall())
            except duckdb.Error:
                continue
    return columns


def make_large(path: Path, rows: int, seed: int) -> None:
    """A table as of invoice lines: keys, quantities, prices, dates, flags, comments."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    draws = {name: integers(seed, name, size=rows, high=high) for name, high in _COLUMNS.items()}
    words = np.array(["deliver", "hold", "collect", "return", "none", "urgent", "fragile", "cold"])
    table = pa.table(
        {
            "line": np.arange(rows),
            "order": draws["order"],
            "part": draws["part"],
            "quantity": draws["quantity"] + 1,
            "price": np.round(uniform(seed, "price", size=rows) * 1e5) / 100,
            "shipped": pa.array(draws["day"].astype("datetime64[D]") + np.datetime64("1992-01-01").astype(int)),
            "flag": words[draws["flag"]],
            "comment": np.char.add(np.char.add(words[draws["word"] % 8], " "), draws["word"].astype(str)),
        }
    )
    pq.write_table(table, path)


_COLUMNS = {"order": 150_000, "part": 20_000, "quantity": 50, "day": 2_500, "flag": 8, "word": 400_000}
