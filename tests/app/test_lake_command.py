"""`windlass lake` on a small folder, as a person types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from selectolax.lexbor import LexborHTMLParser

from windlass.app import cli
from windlass.app.page.table_picture import picture
from windlass.retrieval.pipeline import Pipeline

Run = Callable[..., tuple[int, str]]
CALLS = "id,vessel,draught\n" + "".join(f"{n},vessel {n % 13},{n / 4}\n" for n in range(200))
SOME = "id,vessel,draught\n" + "".join(f"{n},vessel {n % 13},{n / 4}\n" for n in range(20, 150, 2))


@pytest.fixture
def lake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("WINDLASS_MODELS_ENCODER", "none")
    monkeypatch.setenv("WINDLASS_MODELS_DECODER", "none")

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["windlass", "lake", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "calls.csv").write_text(CALLS)
    (tmp_path / "copy of calls.csv").write_text(CALLS)
    (tmp_path / "some.csv").write_text(SOME)
    return tmp_path


def test_scan_says_what_changed(lake: Run, folder: Path) -> None:
    status, out = lake("scan", folder)
    assert status == 0 and "3 files, 0 of them unchanged" in out
    assert "equal    calls.csv = copy of calls.csv" in out
    (folder / "some.csv").rename(folder / "few.csv")
    assert "renamed  some.csv -> few.csv" in lake("scan", folder)[1]
    assert json.loads(lake("scan", folder, "--json")[1])["total"] == 3


def test_profile_describes_columns(lake: Run, folder: Path) -> None:
    status, out = lake("profile", folder, "some")
    assert status == 0 and "some.csv: some, 65 rows; key: id" in out and "calls" not in out
    assert "draught" in out and "5 to 37" in out
    (table,) = json.loads(lake("profile", folder, "some", "--json")[1])
    assert [column["name"] for column in table["columns"]] == ["id", "vessel", "draught"]
    assert lake("profile", folder, "nothing of the kind") == (0, "No table found.\n")


def test_reclaim_and_restore(lake: Run, folder: Path) -> None:
    status, out = lake("reclaim", folder)
    assert status == 0 and "some.csv" in out and "Nothing was changed" in out
    assert len(list(folder.glob("*.csv"))) == 3
    plan = json.loads(lake("reclaim", folder, "some.csv", "--json")[1])
    assert [removal["path"] for removal in plan["removals"]] == ["some.csv"] and not plan["applied"]
    status, out = lake("reclaim", folder, "--apply")
    assert status == 0 and "2 files moved" in out
    assert [path.name for path in folder.glob("*.csv")] == ["calls.csv"]
    assert "in the trash" in lake("restore", folder)[1]
    assert "2 files deleted" in lake("reclaim", folder, "--empty-trash")[1]
    status, out = lake("restore", folder, "some.csv", "copy of calls.csv")
    assert status == 0 and "restored some.csv" in out
    assert (folder / "some.csv").read_text() == SOME and (folder / "copy of calls.csv").read_text() == CALLS
    assert lake("restore", folder) == (0, "Nothing was reclaimed.\n")


def test_what_is_wrong_is_said(lake: Run, folder: Path) -> None:
    assert lake("reclaim", folder, "--prices", "gold")[0] == 2
    assert lake("reclaim", folder, "--apply", "--empty-trash")[0] == 2
    status, out = lake("restore", folder, "calls.csv")
    assert status == 2 and "was not reclaimed" in out
    status, out = lake("reclaim", folder, "absent.csv")
    assert status == 2 and "no file absent.csv" in out


def test_joins_as_text_diagram_and_views(lake: Run, tmp_path: Path) -> None:
    customers = "".join(f"{n},Customer {n}\n" for n in range(1, 60))
    orders = "".join(f"{n},{n * 7 % 59 + 1},{n * 3 % 40}.5\n" for n in range(1, 400))
    (tmp_path / "customers.csv").write_text("customer_id,name\n" + customers)
    (tmp_path / "orders.csv").write_text("order_id,customer_id,total\n" + orders)
    status, out = lake("joins", tmp_path)
    assert status == 0 and "orders.customer_id -> customers.customer_id" in out
    assert "erDiagram" in lake("joins", tmp_path, "--format", "mermaid")[1]
    assert 'LEFT JOIN "customers"' in lake("joins", tmp_path, "--format", "sql")[1]
    found = json.loads(lake("joins", tmp_path, "--json")[1])
    assert found["facts"] == ["orders"] and found["joins"][0]["keys"] == ["customer_id"]
    assert lake("joins", tmp_path, "--format", "png")[0] == 2
    with Pipeline.open(tmp_path, encoder=None, model=None) as pipeline:
        (join,) = pipeline.overview().joins
    assert (join.child_file, join.parent_file) == ("orders.csv", "customers.csv")
    drawing = LexborHTMLParser(str(picture([join])))
    assert len(drawing.css("rect")) == 2 and len(drawing.css("path")) == 1
    assert "customer_id = customer_id" in drawing.css("title")[0].text()
