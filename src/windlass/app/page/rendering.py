"""The HTML of the page: Jinja templates beside this file, everything escaped unless it is already `Markup`."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from windlass.app.page import wording
from windlass.core.paths import printable

_SETTLED_KINDS = {
    "markdown": "Markdown",
    "text": "Plain text",
    "html": "HTML",
    "pdf": "PDF",
    "docx": "Word",
    "pptx": "PowerPoint",
    "xlsx": "Excel",
    "csv": "CSV",
    "tsv": "TSV",
    "json": "JSON",
    "jsonl": "JSON lines",
    "parquet": "Parquet",
    "code": "Source code",
    "waiting": "Not read yet",
    "failed": "Could not be read",
}


def render(name: str, **values: Any) -> Markup:
    """The template `name` with `values` in it."""
    return Markup(_environment().get_template(f"{name}.jinja").render(values))


@cache
def asset(name: str) -> str:
    """The text of a style sheet or script of the page."""
    return resources.files("windlass.app.page").joinpath(name).read_text("utf-8")


def kind_title(kind: str) -> str:
    """A format's name for people."""
    return _SETTLED_KINDS.get(kind, kind.upper() if len(kind) <= 4 else kind.capitalize())


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("windlass.app.page", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=wording.size,
        duration=wording.duration,
        plural=wording.plural,
        printable=printable,
        kind_title=kind_title,
    )
    environment.globals.update(place=wording.place, passage_snippet=wording.passage_snippet, sentence=wording.sentence)
    return environment
