import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load():
    spec = importlib.util.spec_from_file_location("windlass_docs", ROOT / "tools" / "docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = load()


@pytest.mark.parametrize("name", ["help.md", "settings.md", "systems.md", "results.md", "README.md"])
def test_a_generated_page_is_fresh(name):
    (path,) = (path for path in docs.pages() if path.name == name)
    assert path.read_text(encoding="utf-8") == docs.pages()[path], f"run `make docs` and commit {name}"


def test_every_command_has_help_and_an_example():
    import typer

    from windlass.app.cli import app

    page = docs.help_page()
    leaves = [
        (path, command)
        for path, command in docs._commands(("windlass",), typer.main.get_command(app))
        if not hasattr(command, "commands")
    ]
    assert len(leaves) >= 8
    for path, command in leaves:
        section = page.split(f"# {' '.join(path)}\n", 1)[1].split("\n#", 1)[0]
        assert "Example:" in section, f"{' '.join(path)} shows no example"
        for param in command.params:
            assert param.name == "help" or param.hidden or param.help, f"{' '.join(path)}: {param.name} has no help"


def test_every_system_has_an_anchor():
    from windlass.core import catalogue

    page = docs.systems_page()
    for row in catalogue.systems():
        assert f"### {row.id}\n" in page if row.built else f'<a id="{row.id}"></a>' in page


def test_links_inside_the_repository_lead_somewhere():
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    for page in [*pages, *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_keeps_its_marks():
    text = docs.with_results(f"a\n{docs.BEGIN}\nold\n{docs.END}\nz\n", ["| x |"])
    assert text == f"a\n{docs.BEGIN}\n\n| x |\n\n{docs.END}\nz\n"
    assert docs.with_results(text, ["| x |"]) == text
    with pytest.raises(SystemExit, match="lost its marks"):
        docs.with_results("no marks", [])


def test_check_writes_nothing_and_says_what_is_stale(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "pages", lambda: {tmp_path / "docs" / "a.md": "new\n"})
    assert docs.main(["--check"]) == 1
    assert capsys.readouterr().out == "stale: docs/a.md\n"
    assert not (tmp_path / "docs").exists()
    assert docs.main([]) == 0
    assert (tmp_path / "docs" / "a.md").read_text(encoding="utf-8") == "new\n"
    assert docs.main(["--check"]) == 0
    assert docs.main(["--quick"]) == 2
