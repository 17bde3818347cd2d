"""`windlass doctor`: what this machine and this folder are like, and what is wrong with them."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from windlass.app.options import AsJson


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(
    folder: Annotated[Path | None, typer.Argument(help="A folder whose workspace is checked as well.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Set a damaged index aside, to be built again.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine for the simulator and the planners (20 s).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the installation, the models and a folder's index.

    Exits with 1 when something is wrong.

    Example: windlass doctor reports --repair
    """
    from windlass.app import terminal
    from windlass.core.errors import UsageError

    if repair and folder is None:
        raise UsageError("--repair needs a folder", hint="windlass doctor FOLDER --repair")
    findings: dict[str, Any] = {"machine": _machine(), "models": _models()}
    problems = list(findings["models"]["problems"])
    if calibrate:
        findings["calibration"] = _calibrate(quiet=as_json)
    if folder is not None:
        findings["workspace"] = _workspace(folder, repair)
        problems += findings["workspace"]["problems"]
    if as_json:
        terminal.print_json(findings)
    else:
        _print(findings)
    if problems:
        raise typer.Exit(1)


def _machine() -> dict[str, Any]:
    import psutil

    import windlass
    from windlass.core import storage

    home = Path.home()
    return {
        "windlass": windlass.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "free_disk_bytes": storage.free_bytes(home if home.exists() else Path("/")),
        "sqlite": __import__("sqlite3").sqlite_version,
    }


def _calibrate(*, quiet: bool) -> dict[str, Any]:
    from windlass.app.calibration import calibrate_steps
    from windlass.app.terminal import TerminalProgress
    from windlass.sim import calibrate

    progress = TerminalProgress(quiet=quiet)
    try:
        found = calibrate.calibrate(progress)
        steps = calibrate_steps(progress)
    finally:
        progress.close()
    fitted = found.efficiency
    return {
        "gflops": round(found.flops["fp32"] / 1e9, 1),
        "memory_gb_per_s": round(found.mem_bw / 1e9, 1),
        "disk_gb_per_s": round(found.tiers[-1].read_bw / 1e9, 2),
        "empty_operation_us": round(found.kernel_launch_s * 1e6, 2),
        "error": f"{fitted.error:.0%} on average over {fitted.fitted_on}",
        "steps": f"{steps.error:.0%} median error over the steps measured" if steps else "no local language model",
        "record": str(calibrate.record_path()),
    }


def _models() -> dict[str, Any]:
    from windlass.core.errors import ModelError
    from windlass.core.settings import Settings
    from windlass.models import store

    found: dict[str, Any] = {"problems": []}
    defaults = Settings().models
    for name in (defaults.encoder, defaults.decoder):
        try:
            store.verify(name)
            found[name] = "verified"
        except ModelError as error:
            found[name] = str(error)
            found["problems"].append(str(error))
    return found


def _workspace(folder: Path, repair: bool) -> dict[str, Any]:
    from windlass.core.errors import NotFound, WorkspaceError
    from windlass.core.workspace import Workspace
    from windlass.core.workspace import repair as set_aside

    if not Workspace.exists(folder):
        raise NotFound(f"{folder} is not indexed", hint=f"run `windlass up {folder}` first")
    problems: list[str] = []
    try:
        with Workspace.open(folder) as workspace:
            problems = workspace.check_integrity()
    except WorkspaceError as error:
        problems = [str(error)]
    found: dict[str, Any] = {"folder": str(folder), "problems": problems}
    if problems and repair:
        found["set_aside"] = str(set_aside(folder))
        found["problems"] = []
        print(
            f"the damaged index lies in {found['set_aside']}; `windlass up {folder}` builds a new one", file=sys.stderr
        )
    return found


def _print(findings: dict[str, Any]) -> None:
    from windlass.app.terminal import size

    for section, values in findings.items():
        print(section)
        for name, value in values.items():
            if name == "problems":
                continue
            shown = size(value) if name.endswith("_bytes") else value
            print(f"  {name.removesuffix('_bytes').replace('_', ' ')}: {shown}")
        for problem in values.get("problems", ()):
            print(f"  problem: {problem}")
