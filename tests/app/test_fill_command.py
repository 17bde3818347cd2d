"""`windlass lake fill` as a person types it: estimates near the truth, the source untouched, hopeless cells refused."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from windlass.app import cli


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    monkeypatch.setenv("WINDLASS_MODELS_ENCODER", "none")
    monkeypatch.setenv("WINDLASS_MODELS_DECODER", "none")
    monkeypatch.setattr(sys, "argv", ["windlass", "lake", "fill", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    output = capsys.readouterr()
    return int(stopped.value.code or 0), output.out + output.err


def test_estimates_are_near_and_marked_and_the_source_stays(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    length = rng.uniform(50, 300, 120)
    rows = [
        {"id": n, "name": f"ship {n}", "length": f"{at:.1f}", "beam": f"{at / 7:.2f}", "draught": f"{at / 25:.2f}"}
        for n, at in enumerate(length)
    ]
    for n in range(0, 60, 3):
        rows[n]["beam"] = ""
    rows[100].update(length="", beam="", draught="")
    folder = tmp_path / "folder"
    folder.mkdir()
    with open(folder / "ships.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    before = (folder / "ships.csv").read_bytes()
    out = tmp_path / "filled.csv"
    code, text = run(monkeypatch, capsys, folder, "ships", "--json", "--out", out)
    assert code == 0, text
    found = json.loads(text[text.index("{") :])
    assert found["columns"] == ["length", "beam", "draught"] and found["refused"] == 3
    assert len(found["estimates"]) == 20 and found["error_share"] < 0.3
    for estimate in found["estimates"]:
        truth = length[estimate["row"]] / 7
        assert abs(estimate["value"] - truth) < 0.15 * truth + 4 * estimate["error"]
    assert (folder / "ships.csv").read_bytes() == before
    with open(out, newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["estimated"] for row in written[:4]] == ["beam", "", "", "beam"]
    assert written[0]["beam"] and not written[100]["beam"] and written[1]["name"] == "ship 1"
    code, text = run(monkeypatch, capsys, folder, "ships", "--out", out)
    assert code == 2 and "is there already" in text


def test_a_table_without_numbers_or_of_an_unknown_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "names.csv").write_text("name,town\n" + "".join(f"a{n},b{n}\n" for n in range(40)))
    code, text = run(monkeypatch, capsys, tmp_path, "names")
    assert code == 2 and "too few numbers" in text
    code, text = run(monkeypatch, capsys, tmp_path, "nowhere")
    assert code == 2 and "no table's file or name contains 'nowhere'" in text
    assert not [path for path in Path(tmp_path).glob("*.csv") if path.name != "names.csv"]
