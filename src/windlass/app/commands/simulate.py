"""`windlass simulate`: what would happen on machines that are not here."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from windlass.app.options import AsJson

if TYPE_CHECKING:
    from windlass.core.program import Report

# Kind of a scenario -> module:function(scenario, where, progress) -> Report. An area that simulates something adds
# its row here; nothing is imported before it is asked for.
SCENARIOS = {
    "operators": "windlass.sim.scenarios:operators",
    "collectives": "windlass.sim.scenarios:collectives",
    "prefill": "windlass.sim.scenarios:prefill",
    "serving": "windlass.app.serving_scenario:serving",
}


def register(app: typer.Typer) -> None:
    app.command("simulate")(simulate)


def simulate(
    scenario: Annotated[Path, typer.Argument(help="A TOML file; its `kind` says what is simulated.")],
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Write what happened when, for a browser's trace viewer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a scenario on a virtual clock: named hardware, the same policies that run for real.

    Every figure is marked simulated and comes with its calibration error.

    Example: windlass simulate examples/scenarios/serving.toml
    """
    from windlass.app import terminal
    from windlass.app.terminal import TerminalProgress
    from windlass.core.errors import UsageError

    progress = TerminalProgress(quiet=as_json)
    try:
        report = run_scenario(scenario, progress)
    finally:
        progress.close()
    if trace is not None:
        write = getattr(report, "to_chrome_trace", None)
        if write is None or not getattr(report, "spans", None):
            raise UsageError(f"{scenario} leaves no trace", hint="leave --trace out")
        write(trace)
    if as_json:
        terminal.print_json(summary(report))
    else:
        _print(scenario, report)


def run_scenario(path: Path, progress: Any) -> Report:
    """Read a scenario and run it.

    Raises:
        UsageError: not TOML, or of an unknown kind; a field of it is wrong.
    """
    from windlass.core.errors import NotFound, UsageError

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}", hint="check the place it names") from error
    kind = document.get("kind")
    if kind not in SCENARIOS:
        raise UsageError(f"{path}: kind is {kind!r}", hint=f"one of {', '.join(SCENARIOS)}")
    module, _, name = SCENARIOS[kind].partition(":")
    report: Report = getattr(importlib.import_module(module), name)(document, str(path), progress)
    return report


def summary(report: Report) -> dict[str, Any]:
    """The figures of a report, without its spans."""
    found: dict[str, Any] = {
        "mode": report.mode,
        "seconds": report.seconds,
        "error": report.error,
        "metrics": report.metrics,
        "assumptions": report.assumptions,
    }
    for name in ("joules", "utilisation", "link_bytes"):
        value = getattr(report, name, None)
        if value:
            found[name] = value
    return found


def _print(scenario: Path, report: Report) -> None:
    band = f", off by about {report.error:.0%} on average" if report.error is not None else ""
    print(f"{scenario.name}: {report.mode}, {report.seconds:.6g} s{band}")
    for name, value in report.metrics.items():
        print(f"  {name}: {value:.6g} ({report.mode})")
    joules = getattr(report, "joules", None)
    if joules:
        print(f"  energy: {joules:.4g} J ({report.mode})")
    for assumption in report.assumptions:
        print(f"  rests on {assumption}")
