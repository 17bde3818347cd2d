"""The command line as a person meets it: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.main import get_command

from windlass.app import cli

COMMANDS = tuple(get_command(cli.app).commands)  # type: ignore[attr-defined]


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def windlass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    monkeypatch.setenv("WINDLASS_MODELS_ENCODER", "none")
    monkeypatch.setenv("WINDLASS_MODELS_DECODER", "none")

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["windlass", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "port [red]files"
    root.mkdir()
    (root / "rules.md").write_text("# Berths\n\nBerth 4 is dredged every April. Ask the harbour master first.\n")
    (root / "copy.md").write_text((root / "rules.md").read_text())
    (root / "vessels.csv").write_text("imo,name\n9100001,Maren Kirstine\n9100002,Sea Lark\n")
    (root / "broken.pdf").write_bytes(b"%PDF-1.7 this is no pdf")
    (root / "name\nwith newline.txt").write_text("The tide gauge stands on the outer mole.")
    return root


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, windlass: Callable[..., Result]) -> None:
    result = windlass(command, "--help")
    assert result.status == 0
    assert "Example: windlass" in " ".join(result.out.split())


def test_up_prints_a_card_that_names_what_it_found(folder: Path, windlass: Callable[..., Result]) -> None:
    result = windlass("up", folder, "--no-web", "--ask", "When is berth 4 dredged?")
    assert result.status == 0, result.err
    card = " ".join(result.out.replace("│", " ").split())
    assert "5 (" in card and "markdown" in card
    assert "1 exact copies" in card and "copy.md = rules.md" in card
    assert "1 with 2 rows: vessels (2)" in card
    assert "1 not readable" in card and "broken.pdf" in card
    assert "every April" in result.out and "[1]" in result.out and "rules.md" in result.out


def test_up_as_json_is_one_object_on_standard_output(folder: Path, windlass: Callable[..., Result]) -> None:
    result = windlass("up", folder, "--no-web", "--json")
    card = json.loads(result.out)
    assert card["files"] == 5 and card["run"]["files_read"] == 3
    assert [entry[1] for entry in card["failed"]] == ["broken"]
    again = json.loads(windlass("up", folder, "--no-web", "--json").out)
    assert again["run"]["delta"]["total"] == 5 and again["run"]["files_read"] == 0


def test_search_and_ask_lift_a_new_folder_first(folder: Path, windlass: Callable[..., Result]) -> None:
    found = windlass("search", folder, "tide gauge")
    assert found.status == 0 and "name\\nwith newline.txt" in found.out
    assert "not indexed yet" in found.err
    answer = json.loads(windlass("ask", folder, "When is berth 4 dredged?", "--json").out)
    assert answer["found"] and answer["sentences"][0]["citations"][0]["file"] in ("copy.md", "rules.md")
    nothing = windlass("ask", folder, "Who won the chess tournament in Reykjavik?")
    assert nothing.status == 0 and "Not found in your files" in nothing.out


@pytest.mark.parametrize(
    ("make", "status", "says"),
    [
        (lambda root: root / "missing", 2, "no such folder"),
        (lambda root: root / "file.txt", 2, "is a file, not a folder"),
    ],
)
def test_wrong_folders_are_one_line(
    make: Callable[[Path], Path], status: int, says: str, tmp_path: Path, windlass: Callable[..., Result]
) -> None:
    (tmp_path / "file.txt").write_text("x")
    for command in (["up", make(tmp_path), "--no-web"], ["ask", make(tmp_path), "q"], ["search", make(tmp_path), "q"]):
        result = windlass(*command)
        assert result.status == status
        assert says in result.err and result.err.count("\n") == 1 and "Traceback" not in result.err


def test_an_empty_folder_is_fine(tmp_path: Path, windlass: Callable[..., Result]) -> None:
    result = windlass("up", tmp_path, "--no-web")
    assert result.status == 0 and "0 (0 bytes)" in result.out
    assert windlass("ask", tmp_path, "Anything?").out.startswith("Not found")


def test_wrong_values_name_the_field(folder: Path, windlass: Callable[..., Result]) -> None:
    assert "empty" in windlass("search", folder, "  ").err
    assert "unknown search mode 'fuzzy'" in windlass("search", folder, "x", "--mode", "fuzzy").err
    assert "add --no-web" in windlass("up", folder, "--json").err
    assert "k is -3" in windlass("search", folder, "x", "--k", "-3").err
    (folder / "windlass.toml").write_text("[search]\nkk = 3\n")
    result = windlass("search", folder, "x")
    assert result.status == 2 and "search.kk" in result.err and "search.k" in result.err


def test_doctor_checks_a_workspace_and_repairs_it(folder: Path, windlass: Callable[..., Result]) -> None:
    assert "is not indexed" in windlass("doctor", folder).err
    windlass("up", folder, "--no-web")
    database = folder / ".windlass" / "workspace.sqlite"
    damaged = bytearray(database.read_bytes())
    damaged[: len(damaged) // 2] = b"\0" * (len(damaged) // 2)
    database.write_bytes(damaged)
    assert "windlass doctor" in windlass("search", folder, "tide").err
    repaired = windlass("doctor", folder, "--repair")
    assert "builds a new one" in repaired.err
    assert windlass("up", folder, "--no-web").status == 0
    assert "tide" in windlass("search", folder, "tide gauge").out


def test_help_is_quick() -> None:
    """A guard against a heavy import creeping in, by modules and not by the clock."""
    code = (
        "import sys; sys.argv = ['windlass', '--help']\n"
        "from windlass.app import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("numpy", "duckdb", "pyarrow", "fastapi", "nicegui", "torch", "sqlite3", "rich.progress"):
        assert f"'{heavy}'" not in done.stderr, heavy
    assert "up" in done.stdout


def test_keys_are_made_shown_once_and_taken_away(folder: Path, windlass: Callable[..., Result]) -> None:
    assert windlass("keys", "list", folder).status != 0  # not indexed yet
    assert windlass("up", folder, "--no-web").status == 0
    made = windlass("keys", "add", folder, "anna", "--requests-per-minute", "60", "--model", "windlass")
    key = made.out.strip()
    assert key.startswith("wl-")
    listed = windlass("keys", "list", folder, "--json")
    assert key not in listed.out
    (anna,) = json.loads(listed.out)
    assert (anna["name"], anna["keys"], anna["requests_per_minute"], anna["models"]) == ("anna", 1, 60, ["windlass"])
    assert "anna" in windlass("keys", "list", folder).out
    assert windlass("keys", "add", folder, "No Name").status != 0
    assert windlass("keys", "remove", folder, "anna").status == 0
    assert "Nobody has a key" in windlass("keys", "list", folder).out
