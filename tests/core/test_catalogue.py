import importlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from windlass.core.catalogue import system, systems
from windlass.core.errors import NotFound

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    *("core", "kernels", "lake", "vectors", "graphs", "patterns", "models", "comms", "sim"),
    *("serving", "training", "retrieval", "fleet", "codegen"),
}
BASES = {
    *("spine-index", "spine-answer", "models-base", "sim"),
    *("lake-scan", "lake-profile", "text-dedup", "qa-pipeline"),
}


def test_every_row_is_there_once():
    ids = [row.id for row in systems()]
    assert len(ids) == len(set(ids))
    assert {row.id for row in systems() if row.kind == "base"} == BASES
    assert len(ids) == 76 + len(BASES)


@pytest.mark.parametrize("row", systems(), ids=lambda row: row.id)
def test_a_row_is_complete(row):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", row.id)
    assert row.kind in ("real", "real+sim", "base")
    assert row.status in ("planned", "built")
    assert row.package in PACKAGES
    assert row.wave in (0, 1, 2)
    assert row.does and row.peer and row.target
    assert bool(row.paper) == (row.kind != "base")
    assert re.fullmatch(r"windlass(\.[a-z0-9_]+)+(:[A-Za-z_][A-Za-z0-9_]*)?", row.entry)
    assert re.fullmatch(r"windlass\.bench\.[a-z]+\.[a-z0-9_]+", row.bench)
    assert row.anchor == f"docs/systems.md#{row.id}"
    assert not row.about or row.built, "a paragraph would promise what is not there"


def check_built(row):
    """Hold a row that is called built against the code and the documentation."""
    module, _, name = row.entry.partition(":")
    assert name, f"{row.id}: a built row names the class or function"
    assert hasattr(importlib.import_module(module), name), row.entry
    assert callable(importlib.import_module(row.bench).run), row.bench
    assert len(row.about) >= 200, f"{row.id}: its paragraph says too little"
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    section = text.split(f"### {row.id}\n", 1)[1].split("\n### ", 1)[0]
    assert " ".join(row.about.split()) in " ".join(section.split()), f"{row.id}: run `make docs`"


def test_what_is_called_built_is_there():
    for row in systems():
        if row.built:
            check_built(row)


def test_a_row_that_lies_is_seen():
    with pytest.raises(AssertionError, match="names the class"):
        check_built(replace(system("fastrp"), entry="windlass.core.errors"))
    with pytest.raises(ModuleNotFoundError):
        check_built(replace(system("fastrp"), entry="windlass.core.nowhere:Thing"))
    with pytest.raises(ModuleNotFoundError):
        check_built(replace(system("fastrp"), entry="windlass.core.errors:Busy", bench="windlass.bench.nowhere"))


def test_what_has_a_benchmark_is_not_called_planned():
    for row in systems():
        path = ROOT.joinpath("src", *row.bench.split(".")).with_suffix(".py")
        assert row.built or not path.exists(), f"{row.id} has a benchmark: is it built?"


def test_unknown_ids_get_the_nearest():
    with pytest.raises(NotFound, match=r"unknown system 'fastpr'; did you mean fastrp"):
        system("fastpr")
    with pytest.raises(NotFound, match=r"windlass systems"):
        system("qqqqqqqqqq")


def test_rows_are_found_by_id():
    for row in systems():
        assert system(row.id) is row
