"""The catalogue of systems: what Windlass is made of, what is built, and how each part is measured.

The rows stand in `systems.toml` beside this file. `windlass systems`, docs/systems.md, `windlass bench` and
the coverage test read them here, so that none of them can say something else.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Literal

from windlass.core.errors import NotFound

Kind = Literal["real", "real+sim", "base"]
Status = Literal["planned", "built"]


@dataclass(frozen=True, slots=True)
class System:
    """One row of the catalogue.

    Attributes:
        id: The name that `windlass bench` and the documentation use.
        does: What it does for a person, in one line.
        paper: Where the idea comes from; empty for a base.
        package: The package of `windlass` it lives in.
        area: The subject it belongs to.
        kind: `real` runs on this machine; `real+sim` runs here and its policy also on the simulator; `base`
            is a shared part that the others stand on.
        wave: In which round of work it is due.
        status: `planned`, or `built`: usable, tested, and measured by its benchmark.
        entry: Module, or `module:name`, where it is used from Python. A built row has both.
        bench: Module of its benchmark, which defines `run(context)`.
        peer: What the benchmark runs it against.
        target: What counts as done.
        about: A paragraph for the documentation; empty while planned.
    """

    id: str
    does: str
    paper: str
    package: str
    area: str
    kind: Kind
    wave: int
    status: Status
    entry: str
    bench: str
    peer: str
    target: str
    about: str = ""

    @property
    def anchor(self) -> str:
        """Where the documentation speaks of it."""
        return f"docs/systems.md#{self.id}"

    @property
    def built(self) -> bool:
        return self.status == "built"


@cache
def systems() -> tuple[System, ...]:
    """Every row: the bases first, then the 76 systems in the order of the catalogue."""
    text = files("windlass.core").joinpath("systems.toml").read_text(encoding="utf-8")
    return tuple(_system(row) for row in tomllib.loads(text)["system"])


def system(system_id: str) -> System:
    """The row called `system_id`.

    Raises:
        NotFound: no such row; the message names the nearest ids.

    Example:
        >>> system("fastrp").package
        'graphs'
    """
    rows = {row.id: row for row in systems()}
    if system_id in rows:
        return rows[system_id]
    nearest = difflib.get_close_matches(system_id, rows, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`windlass systems` lists them all"
    raise NotFound(f"unknown system {system_id!r}", hint=hint)


def _system(row: dict[str, object]) -> System:
    names = {item.name for item in fields(System)}
    unknown = set(row) - names
    if unknown:
        raise ValueError(f"systems.toml, {row.get('id')}: unknown field {', '.join(sorted(unknown))}")
    module = str(row["id"]).replace("-", "_")
    return System(**{"bench": f"windlass.bench.{row['package']}.{module}", **row})  # type: ignore[arg-type]
