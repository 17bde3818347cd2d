"""`windlass index`: collections of vectors, from the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from windlass.app.options import AsJson
from windlass.core.errors import NotFound, UsageError

if TYPE_CHECKING:
    from windlass.core.access import Access
    from windlass.vectors import Collection, SearchResult

_BATCH = 5_000

Path_ = Annotated[Path, typer.Argument(metavar="COLLECTION", help="The folder of the collection.", show_default=False)]
Filtered = Annotated[str | None, typer.Option("--filter", help="For example: year >= 2020 and lang in ('en', 'de')")]
Tenants = Annotated[list[str] | None, typer.Option("--tenant", help="For whom it is asked; may be given often.")]
Principal = Annotated[str | None, typer.Option("--principal", help="For whom it is asked, by name.")]
Vector = Annotated[str | None, typer.Option("--vector", help="Numbers with commas between them, or a .npy file.")]
LikeId = Annotated[str | None, typer.Option("--like", help="Look for rows like the one with this id.")]
Count = Annotated[int, typer.Option("-k", "--k", help="How many rows.")]
Recall = Annotated[float | None, typer.Option(help="Share of the true nearest rows to find, such as 0.95.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Collections of vectors: make, fill, search, look after.", no_args_is_help=True)
    for command in (create, add, search, explain, optimize, verify, stats):
        group.command(command.__name__)(command)
    app.add_typer(group, name="index")


def create(
    path: Path_,
    dim: Annotated[int, typer.Option(help="Numbers in a vector.", show_default=False)],
    metric: Annotated[str, typer.Option(help="cosine, ip (dot product) or l2.")] = "cosine",
    dtype: Annotated[str, typer.Option(help="How numbers are stored: f32, f16 or i8.")] = "f32",
    field: Annotated[
        list[str] | None,
        typer.Option(help="A field as name:type; int, float, str, bool, timestamp or set[str]. May be given often."),
    ] = None,
    tenants: Annotated[bool, typer.Option("--tenants", help="Rows belong to tenants.")] = False,
    text_ids: Annotated[bool, typer.Option("--text-ids", help="Ids are texts, not whole numbers.")] = False,
    kind: Annotated[str, typer.Option(help="Of index: auto, flat, postings or tenant-tree.")] = "auto",
) -> None:
    """Make an empty collection.

    Example: windlass index create notes.vectors --dim 384 --field year:int --field lang:str
    """
    from windlass import vectors

    fields = {}
    for text in field or []:
        name, colon, kind_of = text.rpartition(":")
        if not colon:
            raise UsageError(f"--field {text!r}", hint="write it as name:type, for example year:int")
        fields[name] = vectors.Field(kind_of)  # type: ignore[arg-type]  # checked by Field
    ids = "str" if text_ids else "int"
    schema = vectors.Schema(dim, metric, dtype, fields, tenants, ids)  # type: ignore[arg-type]  # checked by Schema
    vectors.create(path, schema, kind=kind).close()
    print(f"made {path}")


def add(
    path: Path_,
    rows: Annotated[Path, typer.Argument(help=".jsonl, .parquet or .npz; see below.", show_default=False)],
    on_conflict: Annotated[str, typer.Option(help="For ids that are there: error, replace or skip.")] = "error",
) -> None:
    """Add rows from a file, 5,000 at a time; each batch is stored wholly or not at all.

    JSON lines and Parquet have `id`, `vector`, the fields, and `tenants` where the collection has tenants. An .npz
    file has arrays `ids` and `vectors`, and one for each field.

    Example: windlass index add notes.vectors rows.jsonl --on-conflict replace
    """
    from windlass import vectors

    if not rows.is_file():
        raise NotFound(f"no file {rows}")
    added = skipped = 0
    with vectors.open(path, mode="rw") as collection:
        for batch in _batches(rows, collection):
            commit = collection.add(**batch, on_conflict=on_conflict)  # type: ignore[arg-type]  # checked by add
            added, skipped = added + commit.rows, skipped + commit.skipped
    print(f"stored {added:,} rows" + (f", skipped {skipped:,}" if skipped else ""))


def search(
    path: Path_,
    vector: Vector = None,
    like: LikeId = None,
    k: Count = 10,
    filter: Filtered = None,
    tenant: Tenants = None,
    principal: Principal = None,
    recall: Recall = None,
    as_json: AsJson = False,
) -> None:
    """The rows nearest to a vector, best first, as id and score.

    Example: windlass index search notes.vectors --like 42 --filter "year >= 2020" -k 5
    """
    found = _found(path, vector, like, k, filter, tenant, principal, recall)
    pairs = _pairs(found)
    if as_json:
        print(json.dumps([{"id": row_id, "score": score} for row_id, score in pairs]))
    else:
        for row_id, score in pairs:
            print(f"{row_id}\t{score:.4f}")


def explain(
    path: Path_,
    vector: Vector = None,
    like: LikeId = None,
    k: Count = 10,
    filter: Filtered = None,
    tenant: Tenants = None,
    principal: Principal = None,
    recall: Recall = None,
    as_json: AsJson = False,
) -> None:
    """How a search is done and what it costs.

    Example: windlass index explain notes.vectors --like 42 --filter "year >= 2020"
    """
    found = _found(path, vector, like, k, filter, tenant, principal, recall)
    counters = asdict(found.counters)
    if as_json:
        print(json.dumps({"plan": found.plan, "found": int(found.n_found[0]), **counters}))
        return
    print(f"plan                {found.plan}")
    for name, value in counters.items():
        if isinstance(value, dict):
            value = ", ".join(f"{stage} {milliseconds:.2f} ms" for stage, milliseconds in value.items())
        print(f"{name.replace('_', ' '):<19} {value}")


def optimize(
    path: Path_,
    kind: Annotated[str | None, typer.Option(help="Of index; without it, as the collection was made.")] = None,
    as_json: AsJson = False,
) -> None:
    """Join what was added, drop what was deleted, and put an index over it.

    Example: windlass index optimize notes.vectors
    """
    from windlass import vectors
    from windlass.app import terminal

    progress = terminal.TerminalProgress(quiet=as_json)
    try:
        with vectors.open(path, mode="rw") as collection:
            report = collection.optimize(kind, progress=progress)
    finally:
        progress.close()
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        print(f"{report.rows:,} rows in {report.segments_after} segment ({report.kind}), {report.seconds:.1f} s")


def verify(
    path: Path_,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check that what is on the disk is what was written.

    Example: windlass index verify notes.vectors --deep
    """
    from windlass import vectors

    with vectors.open(path) as collection:
        report = collection.verify(deep=deep)
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        print(f"whole: {report.rows:,} rows in {report.segments} segments")


def stats(path: Path_, as_json: AsJson = False) -> None:
    """Sizes, segments and dead rows.

    Example: windlass index stats notes.vectors
    """
    from windlass import vectors

    with vectors.open(path) as collection:
        found = asdict(collection.stats())
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        if name == "segments":
            value = ", ".join(f"{part['kind']} {part['live']:,}" for part in value) or "none"
        print(f"{name.replace('_', ' '):<15} {value:,}" if isinstance(value, int) else f"{name:<15} {value}")


def _found(
    path: Path,
    vector: str | None,
    like: str | None,
    k: int,
    filter: str | None,
    tenant: list[str] | None,
    principal: str | None,
    recall: float | None,
) -> SearchResult:
    from windlass import vectors

    with vectors.open(path) as collection:
        access = _access(tenant, principal)
        query = _query(collection, vector, like, access)
        return collection.search(query, k, filter=filter, access=access, recall=recall)


def _pairs(found: SearchResult) -> list[tuple[Any, float]]:
    count = int(found.n_found[0])
    return list(zip(found.ids[0, :count].tolist(), found.scores[0, :count].tolist(), strict=True))


def _access(tenant: list[str] | None, principal: str | None) -> Access | None:
    from windlass.core.access import Access

    if tenant and principal:
        raise UsageError("--tenant and --principal", hint="give one of them")
    if tenant:
        return Access(tenants=tenant)
    return Access(principal) if principal else None


def _query(collection: Collection, vector: str | None, like: str | None, access: Access | None) -> Any:
    import numpy as np

    if (vector is None) == (like is None):
        raise UsageError("what to look for?", hint="give --vector or --like, one of them")
    if like is not None:
        wanted = like if collection.schema.ids == "str" else _whole(like)
        rows = collection.get([wanted], access=access)
        if not rows.num_rows:
            raise NotFound(f"no row {like}")
        return rows["vector"].to_pylist()[0]
    if vector is not None and vector.endswith(".npy"):
        try:
            return np.load(vector, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {vector}: {error}") from error
    try:
        return [float(number) for number in (vector or "").split(",")]
    except ValueError as error:
        raise UsageError(f"--vector: {error}", hint="write numbers with commas between them") from error


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"ids of this collection are whole numbers, not {text!r}") from error


def _batches(path: Path, collection: Collection) -> Iterator[dict[str, Any]]:
    """The rows of a file as arguments of `Collection.add`."""
    fields = list(collection.schema.fields)
    if path.suffix == ".npz":
        yield from _from_arrays(path, fields)
        return
    for rows in _from_parquet(path) if path.suffix == ".parquet" else _from_lines(path):
        for number, row in enumerate(rows):
            unknown = set(row) - {"id", "vector", "tenants", *fields}
            if unknown or "id" not in row or "vector" not in row:
                what = f"unknown: {', '.join(sorted(unknown))}" if unknown else "id or vector is missing"
                raise UsageError(f"{path}, row {number + 1} of a batch: {what}", hint=f"the fields are {fields}")
        batch: dict[str, Any] = {"ids": [row["id"] for row in rows], "vectors": [row["vector"] for row in rows]}
        batch["attrs"] = {name: [row.get(name) for row in rows] for name in fields}
        if collection.schema.tenants:
            batch["tenants"] = [set(row.get("tenants") or ()) for row in rows]
        yield batch


def _from_lines(path: Path) -> Iterator[list[dict[str, Any]]]:
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: {error}", hint="write one JSON object a line") from error
            if not isinstance(row, dict):
                raise UsageError(f"{path}, line {number} is no object", hint="write one JSON object a line")
            rows.append(row)
            if len(rows) == _BATCH:
                yield rows
                rows = []
    if rows:
        yield rows


def _from_parquet(path: Path) -> Iterator[list[dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(_BATCH):
            yield batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"cannot read {path}: {error}") from error


def _from_arrays(path: Path, fields: list[str]) -> Iterator[dict[str, Any]]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if not {"ids", "vectors"} <= set(arrays):
        raise UsageError(f"{path} has no arrays ids and vectors")
    for start in range(0, len(arrays["ids"]), _BATCH):
        part = {name: array[start : start + _BATCH] for name, array in arrays.items()}
        attrs = {name: part[name].tolist() for name in fields if name in part}
        yield {"ids": part["ids"].tolist(), "vectors": part["vectors"], "attrs": attrs}
