"""A pipeline that a one-shot command can use at once: brought up to date when that is possible and quick."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from windlass.app.lift import lift
from windlass.app.terminal import TerminalProgress, print_notices
from windlass.core.errors import WorkspaceLocked
from windlass.core.workspace import Workspace
from windlass.retrieval.pipeline import Pipeline


@contextlib.contextmanager
def ready(folder: Path, *, offline: bool = False, quiet: bool = False) -> Iterator[Pipeline]:
    """The pipeline over `folder`, indexed. While another process indexes it, what is there already is used.

    Raises:
        WindlassError: The folder or its workspace cannot be used.
    """
    is_new = not Workspace.exists(folder)
    with Pipeline.open(folder) as pipeline:
        progress = TerminalProgress(quiet=quiet)
        if is_new and not quiet:
            print(f"{folder} is not indexed yet; indexing it first", file=sys.stderr)
        try:
            report = lift(pipeline, progress, offline=offline, survey=False)
        except WorkspaceLocked as error:
            if is_new:
                raise
            print_notices([str(error)])
        else:
            print_notices(report.notices)
        finally:
            progress.close()
        yield pipeline
