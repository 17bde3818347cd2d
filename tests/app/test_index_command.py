"""`windlass index`, driven as a person drives it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from windlass.app import cli


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["windlass", "index", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def rows_file(folder, lines):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_make_fill_search_and_look_after(run, tmp_path):
    place = tmp_path / "c"
    assert run("create", place, "--dim", 2, "--field", "year:int", "--field", "lang:str")[0] == 0
    rows = [{"id": n, "vector": [1, n], "year": 2000 + n, "lang": "en" if n % 2 else "de"} for n in range(6)]
    assert run("add", place, rows_file(tmp_path, rows))[1] == "stored 6 rows\n"
    found = json.loads(run("search", place, "--vector", "1,0", "--filter", "lang = 'en'", "-k", 2, "--json")[1])
    assert [row["id"] for row in found] == [1, 3]
    assert run("search", place, "--like", 4, "-k", 1)[1] == "4\t1.0000\n"
    assert "exact over 3 rows" in run("explain", place, "--like", 4, "--filter", "year > 2002")[1]
    assert json.loads(run("optimize", place, "--json")[1])["kind"] == "flat"
    assert run("verify", place, "--deep")[1] == "whole: 6 rows in 1 segments\n"
    assert json.loads(run("stats", place, "--json")[1])["rows"] == 6


def test_rows_from_parquet_and_arrays(run, tmp_path):
    place = tmp_path / "c"
    run("create", place, "--dim", 2, "--text-ids", "--tenants")
    table = pa.table({"id": ["a", "b"], "vector": [[1.0, 0.0], [0.0, 1.0]], "tenants": [["x"], ["x", "y"]]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert run("add", place, tmp_path / "rows.parquet")[0] == 0
    assert run("search", place, "--vector", "0,1", "--tenant", "y")[1] == "b\t1.0000\n"
    status, _, error = run("search", place, "--vector", "0,1")
    assert status == 2 and "say for whom you ask" in error
    other = tmp_path / "d"
    run("create", other, "--dim", 2, "--field", "n:int")
    np.savez(tmp_path / "rows.npz", ids=np.arange(3), vectors=np.eye(3, 2) + 1, n=np.arange(3))
    assert run("add", other, tmp_path / "rows.npz")[1] == "stored 3 rows\n"
    np.save(tmp_path / "q.npy", np.array([1.0, 1.0]))
    assert run("search", other, "--vector", tmp_path / "q.npy", "--filter", "n = 2")[1].startswith("2\t")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "{c}", "nothing.jsonl"], "no file nothing.jsonl"),
        (["search", "{c}"], "give --vector or --like"),
        (["search", "{c}", "--vector", "a,b"], "write numbers with commas"),
        (["search", "{c}", "--like", "x"], "ids of this collection are whole numbers, not 'x'"),
        (["search", "{c}", "--like", "7"], "no row 7"),
        (["search", "{c}", "--vector", "1,2,3"], "the collection has dim 2"),
        (["search", "{c}", "--vector", "1,2", "--filter", "year >"], "filter, column 7"),
        (["search", "nowhere", "--vector", "1,2"], "no collection in nowhere"),
        (["create", "{c}", "--dim", "2"], "holds a collection already"),
        (["create", "{c}x", "--dim", "2", "--field", "year"], "write it as name:type"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, words, message):
    run("create", tmp_path / "c", "--dim", 2)
    status, out, error = run(*(word.replace("{c}", str(tmp_path / "c")) for word in words))
    assert status == 2 and not out
    assert message in error and error.count("\n") == 1
