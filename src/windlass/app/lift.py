"""What `up` does: read the folder, fetch missing models, embed, then keep up with changes.

Words come first: the folder can be searched as soon as it was read, while models are still on their way.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from windlass.core.errors import Cancelled, WindlassError, WorkspaceLocked
from windlass.core.progress import Progress
from windlass.core.workspace import STATE_FOLDER
from windlass.retrieval.pipeline import IndexReport, Pipeline

# Many editors save in several steps; network drives send no events at all, so a full look follows now and then.
_QUIET_MS = 1_000
_FULL_LOOK_MS = 300_000
_RETRY_SECONDS = 5.0


class FanOut:
    """One `Progress` that tells several, and is cancelled when any of them is."""

    def __init__(self, *listeners: Progress) -> None:
        self._listeners = listeners

    def start(self, stage: str, total: int | None, unit: str) -> None:
        for listener in self._listeners:
            listener.start(stage, total, unit)

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        for listener in self._listeners:
            listener.advance(stage, done, detail)

    def finish(self, stage: str) -> None:
        for listener in self._listeners:
            listener.finish(stage)

    @property
    def cancelled(self) -> bool:
        return any(listener.cancelled for listener in self._listeners)


def lift(
    pipeline: Pipeline,
    progress: Progress,
    *,
    offline: bool = False,
    embed: bool = True,
    survey: bool = True,
    on_searchable: Callable[[], None] | None = None,
) -> IndexReport:
    """Index the folder once, models included.

    Args:
        pipeline: Over the folder.
        progress: Hears of every stage, downloads among them.
        offline: Do without missing models instead of downloading them.
        embed: False stops when everything can be found by its words.
        survey: Also look for tables in tables and near-copies of texts.
        on_searchable: Called when that is so.

    Raises:
        WindlassError: As `Pipeline.index`. A model that cannot be had is a notice in the report, not an error.
    """
    first = pipeline.index(progress=progress, embed=False, on_searchable=on_searchable)
    if embed:
        notices = [] if offline else pull_missing(pipeline, progress)
        second = pipeline.index(progress=progress)
        first.passages_embedded = second.passages_embedded
        first.seconds["embed"] = second.seconds.get("embed", 0.0)
        first.notices = notices or second.notices
    if survey:  # last: answers do not wait for it, and its first run on a machine compiles for a while
        started = time.perf_counter()
        first.notices = [*first.notices, *compare(pipeline, progress)]
        first.seconds["compare"] = time.perf_counter() - started
    return first


def compare(pipeline: Pipeline, progress: Progress) -> list[str]:
    """Bring what is known beyond single files up to date; returns what a person should know where that fails.

    What was indexed is of use without it, so nothing but a person's wish ends the run.
    """
    try:
        pipeline.survey(progress)
    except Cancelled:
        raise
    except WindlassError as error:
        return [f"tables and texts were not compared: {error}"]
    return []


def pull_missing(pipeline: Pipeline, progress: Progress) -> list[str]:
    """Download the models that the settings name and this machine lacks; returns what a person should know."""
    from windlass.models import store

    wanted = (pipeline.settings.models.encoder, pipeline.settings.models.decoder)
    for name in wanted:
        if not store.is_known(name):
            continue
        try:
            store.pull(name, progress=progress)  # returns at once when the model is there and verified
        except Cancelled:
            raise
        except WindlassError as error:
            return [str(error)]
    return []


def warm_up(pipeline: Pipeline) -> None:
    """Compile the local model's kernels in a process of their own, so that the first chat need not wait for them.

    Compiling holds the interpreter; here it would make the page stutter for the best part of a minute.
    """
    from windlass.models import store

    name = pipeline.settings.models.decoder
    if store.is_known(name) and any(model.name == name for model in store.installed()):
        command = [sys.executable, "-m", "windlass.app.cli", "models", "warmup", name]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def keep_up(
    pipeline: Pipeline,
    progress: Progress,
    stop: threading.Event,
    *,
    on_change: Callable[[IndexReport], None],
    on_error: Callable[[WindlassError], None],
) -> None:
    """Watch the folder until `stop` is set and index what changes.

    While another process holds the workspace, what changed waits for it.
    """
    import watchfiles

    folder = pipeline.workspace.folder
    state = pipeline.workspace.state

    def relevant(_: watchfiles.Change, path: str) -> bool:
        return not (Path(path).is_relative_to(state) or STATE_FOLDER in Path(path).parts)

    def look() -> bool:
        """Index once; True when there was something new."""
        while not stop.is_set():
            try:
                report = pipeline.index(progress=progress)
                compare(pipeline, progress)
            except WorkspaceLocked:
                stop.wait(_RETRY_SECONDS)
            except Cancelled:
                stop.set()
            except WindlassError as error:
                on_error(error)
                return False
            else:
                if not report.delta.quiet:
                    on_change(report)
                return not report.delta.quiet
        return False

    while look():  # what changed while passages were embedded and nobody watched
        stop.wait(_QUIET_MS / 1000)
    for _ in watchfiles.watch(
        folder,
        watch_filter=relevant,
        debounce=_QUIET_MS,
        stop_event=stop,
        rust_timeout=_FULL_LOOK_MS,
        yield_on_timeout=True,
        raise_interrupt=False,
        ignore_permission_denied=True,
    ):
        look()
