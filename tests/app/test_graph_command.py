"""`windlass graph` from a file to a result, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from selectolax.lexbor import LexborHTMLParser
from typer.testing import CliRunner

from windlass.app.cli import app
from windlass.core.errors import GraphFormatError, UsageError


@pytest.fixture()
def stored(tmp_path: Path) -> Path:
    lines = ["source,target"]
    for group in "ab":
        lines += [f"fan{group}{fan},{group}{account}" for account in range(6) for fan in range(12)]
    (tmp_path / "follows.csv").write_text("\n".join(lines))
    into = tmp_path / "follows.graph"
    run("import", str(tmp_path / "follows.csv"), str(into), "--directed")
    return into


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["graph", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_communities_rank_and_embed(stored: Path, tmp_path: Path) -> None:
    found = json.loads(run("communities", str(stored), "a0", "a1", "--size", "4", "--json"))
    assert {row["node"] for row in found} == {"a2", "a3", "a4", "a5"}
    fused = json.loads(run("communities", str(stored), "a0", "--size", "5", "--fuse", "--json"))
    assert len(fused) == 5
    ranked = run("rank", str(stored), "fana0", "--top", "3")
    assert len(ranked.splitlines()) == 3 and ranked.splitlines()[0].endswith("fana0")
    run("rank", str(stored), "fana0", "--out", str(tmp_path / "r.parquet"))
    assert parquet.read_table(tmp_path / "r.parquet").column_names == ["node", "score"]
    run("embed", str(stored), "--dim", "8", "--out", str(tmp_path / "v.parquet"))
    table = parquet.read_table(tmp_path / "v.parquet")
    assert table.num_rows == 36 and len(table["vector"][0]) == 8


def test_what_is_not_there_is_named(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no node 'zoe'"):
        run("rank", str(stored), "zoe")
    with pytest.raises(GraphFormatError, match="holds no graph"):
        run("rank", str(tmp_path), "a0")


def test_a_picture_is_one_file_that_loads_nothing(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    names = [hostile, "b", "c", "d"]
    lines = [f"{a}\t{b}" for a in names for b in names if a < b]
    (tmp_path / "edges.tsv").write_text("\n".join(lines))
    run("import", str(tmp_path / "edges.tsv"), str(tmp_path / "g.graph"))
    out = tmp_path / "picture.html"
    said = run("plot", str(tmp_path / "g.graph"), "b", "--out", str(out))
    assert "4 nodes, 6 edges" in said
    page = LexborHTMLParser(out.read_text())
    assert [script.attributes.get("type") for script in page.css("script")] == [
        "application/json",
        "text/plain",
        "module",
    ]
    assert not page.css("[src], link, img, iframe")
    assert "default-src 'none'" in page.css_first("meta[http-equiv]").attributes["content"]
    picture = json.loads(page.css_first("#picture").text())
    dots = [point for series in picture["options"]["series"] if series["type"] == "scatter" for point in series["data"]]
    assert hostile in {point["name"] for point in dots} and len(dots) == 4
    assert [point["name"] for point in dots if point.get("symbol") == "diamond"] == ["b"]
    library = page.css_first("#library").text().replace("<\\/script", "</script")
    assert f" as {picture['export']}" in library and len(library) > 500_000
    with pytest.raises(UsageError, match="no node 'zoe'"):
        run("plot", str(tmp_path / "g.graph"), "zoe", "--out", str(out))
