"""Writes the generated pages: docs/help.md, settings.md, systems.md, results.md and the results table of README.md.

python tools/docs.py            write what is stale
python tools/docs.py --check    write nothing; exit 1 when a page is stale
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from windlass.bench.report import markdown_table, results_page, results_table
from windlass.core import catalogue
from windlass.core.settings import FILE_NAME, OTHER_VARIABLES, PREFIX, documented

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results: written by `make docs` -->", "<!-- end of results -->"


def pages() -> dict[Path, str]:
    """Every generated page with the text it should have."""
    results = ROOT / "docs" / "results"
    return {
        ROOT / "docs" / "help.md": help_page(),
        ROOT / "docs" / "settings.md": settings_page(),
        ROOT / "docs" / "systems.md": systems_page(),
        ROOT / "docs" / "results.md": results_page(results),
        ROOT / "README.md": with_results((ROOT / "README.md").read_text(encoding="utf-8"), results_table(results)),
    }


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        f"Every setting has a default that works. To change one, write it into `{FILE_NAME}` in the folder you lift,",
        f"or set the environment variable `{PREFIX}SECTION_NAME`; the environment beats the file, and a flag of a",
        "command beats both. A name that does not exist is refused, with the nearest one.",
        "",
        "```toml",
        "[search]",
        "k = 12",
        "",
        "[server]",
        "port = 9000",
        "```",
    ]
    sections: dict[str, list[list[str]]] = {}
    for item in documented():
        section, key = item.name.split(".")
        row = [f"`{key}`", f"`{item.default}`", item.expected, item.meaning, f"`{item.environment}`"]
        sections.setdefault(section, []).append(row)
    for section, rows in sections.items():
        lines += ["", f"## [{section}]", ""]
        lines += markdown_table(["name", "default", "expected", "meaning", "environment"], rows)
    lines += [
        "",
        "## Of the machine",
        "",
        "These are no settings of a folder, and are read from the environment alone.",
        "",
    ]
    lines += markdown_table(["environment", "meaning"], [[f"`{name}`", text] for name, text in OTHER_VARIABLES.items()])
    return "\n".join(lines) + "\n"


def systems_page() -> str:
    rows = catalogue.systems()
    named = [row for row in rows if row.kind != "base"]
    built = [row for row in rows if row.built]
    lines = [
        "# Systems",
        "",
        "What Windlass is made of: each row is one published system, rebuilt as a part of the whole. *Built* means",
        "that it is used through its package, tested against an exact oracle, and measured by `windlass bench ID`;",
        "*planned* means that it is not there yet. `real` runs on your machine; `real+sim` runs there and its policy",
        "also on the simulator, for hardware you do not have; a base is a part that others stand on.",
        "",
        f"{sum(row.built for row in named)} of {len(named)} systems and "
        f"{len([row for row in built if row.kind == 'base'])} of {len(rows) - len(named)} bases are built.",
        "",
        *markdown_table(
            ["id", "what it does", "after", "package", "kind", "status"],
            [
                [
                    f"[{row.id}](#{row.id})" if row.built else f'<a id="{row.id}"></a>{row.id}',
                    row.does,
                    row.paper,
                    f"`{row.package}`",
                    row.kind,
                    row.status,
                ]
                for row in rows
            ],
        ),
        "",
        "## Built",
    ]
    for row in built:
        lines += [
            "",
            f"### {row.id}",
            "",
            " ".join(row.about.split()),
            "",
            f"In Python: `{row.entry.replace(':', '.')}`. Measured by `windlass bench {row.id}` against {row.peer};",
            f"target: {row.target}.",
        ]
    if not built:
        lines += ["", "Nothing yet."]
    return "\n".join(lines) + "\n"


def help_page() -> str:
    import typer

    from windlass.app.cli import app

    lines = [
        "# The command line",
        "",
        "What `--help` says, for every command. `--json` prints one object for programs; errors are one line on",
        "standard error and an exit status other than 0.",
    ]
    for path, command in _commands(("windlass",), typer.main.get_command(app)):
        lines += ["", f"{'#' * min(len(path) + 1, 4)} {' '.join(path)}", "", *_usage(path, command)]
        lines += ["", *_text(command.help or "")]
        arguments = [row for row in map(_argument, command.params) if row]
        options = [row for row in map(_option, command.params) if row]
        if arguments:
            lines += ["", *markdown_table(["argument", "meaning"], arguments)]
        if options:
            lines += ["", *markdown_table(["option", "default", "meaning"], options)]
    return "\n".join(lines) + "\n"


def with_results(readme: str, table: list[str]) -> str:
    """`readme` with the part between the two marks replaced by `table`."""
    before, found, rest = readme.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"README.md has lost its marks {BEGIN} and {END}")
    body = "\n".join(table) if table else "No results are saved yet: `windlass bench --all --save` writes them."
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    if set(arguments) - {"--check"}:
        print(__doc__, file=sys.stderr)
        return 2
    stale = {path: text for path, text in pages().items() if _read(path) != text}
    for path, text in stale.items():
        print(f"{'stale' if arguments else 'wrote'}: {path.relative_to(ROOT)}")
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if arguments and stale else 0


def _commands(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _commands((*path, name), inner)


def _usage(path: tuple[str, ...], command: Any) -> list[str]:
    words = [*path]
    if hasattr(command, "commands"):
        words.append("COMMAND")
    for param in command.params:
        if param.param_type_name == "argument":
            many = "..." if param.nargs == -1 else ""
            name = param.name.upper().removeprefix("SYSTEM_")
            words.append(f"{name}{many}" if param.required else f"[{name}]{many}")
    return [f"    {' '.join(words)} [OPTIONS]"]


def _text(text: str) -> list[str]:
    """A docstring as Markdown: its example lines as code, what is indented as it stands."""
    lines: list[str] = []
    for line in inspect.cleandoc(text).replace("\b", "").splitlines():
        if line.startswith("Example: "):
            lines += ["Example:", "", f"    {line.removeprefix('Example: ')}"]
        else:
            lines.append(f"    {line.strip()}" if line.startswith("  ") else line)
    return lines


def _argument(param: Any) -> list[str]:
    if param.param_type_name != "argument":
        return []
    return [f"`{param.name.upper().removeprefix('SYSTEM_')}`", param.help or ""]


def _option(param: Any) -> list[str]:
    if param.param_type_name != "option" or param.hidden or param.name == "help":
        return []
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    if param.is_flag and param.secondary_opts:
        default = f"`{(param.opts if param.default else param.secondary_opts)[0]}`"
    else:
        default = "" if param.is_flag or param.default in (None, "") else f"`{param.default}`"
    return [names, default, param.help or ""]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
