"""Data-parallel jobs: one function over many items, in processes, threads, on Ray, or here.

`TaskPool.map` yields results in the order of the items and holds only a bounded window of them, so that a job over a
million files needs the memory of a few. A worker that dies is named with the item it died on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Literal, TypeVar, get_args

from windlass.core.crew import Crew, Outcome, Serial, TaskFailed, Threads, shown
from windlass.core.errors import UsageError, WindlassError
from windlass.core.progress import Progress, check_cancelled

__all__ = ["Kind", "TaskFailed", "TaskPool", "usable_cores"]

Kind = Literal["processes", "threads", "serial", "ray"]

Item = TypeVar("Item")
Result = TypeVar("Result")

# Results wait behind a slow item; so many items a worker may be started before the oldest is done.
_WINDOW = 4
_POLL_SECONDS = 0.1


class TaskPool:
    """Runs a function over items with `workers` workers.

    Args:
        kind: `processes` for Python work that needs several cores (the function must stand at the top of a module),
            `threads` for work that waits or releases the interpreter lock, `serial` for neither, `ray` for the
            cluster that `ray.init` finds (extra `cluster`).
        workers: How many; by default as many as this process may use cores. `serial` has one.

    Example:
        >>> list(TaskPool("threads").map(abs, [-3, 2, -1]))
        [3, 2, 1]
    """

    def __init__(self, kind: Kind = "processes", workers: int | None = None) -> None:
        if kind not in get_args(Kind):
            raise UsageError(f"unknown kind of task pool {kind!r}", hint="one of " + ", ".join(get_args(Kind)))
        if workers is not None and workers < 1:
            raise UsageError(f"a task pool of {workers} workers cannot work", hint="give 1 or more")
        self.kind: Kind = kind
        self.workers = 1 if kind == "serial" else workers or usable_cores()

    def map(
        self,
        fn: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        size_hint: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Result]:
        """Yield `fn(item)` for every item, in order; items are drawn as workers come free.

        Nothing runs before the first result is asked for. When the caller stops asking, the rest is abandoned: worker
        processes are killed, threads finish the item they are at.

        Args:
            size_hint: How many items there are, for `progress`, when `items` has no length.
            progress: Gets a stage named after the function; when cancelled, the work stops.

        Raises:
            UsageError: the function cannot be sent to another process, or Ray is not installed.
            TaskFailed: the function raised, or its worker died; `item` says on what. A `WindlassError` that the
                function raises comes out as it is, with a note that names the item.
            Cancelled: `progress` was cancelled.
        """
        crew = self._crew(fn)
        stage = getattr(fn, "__name__", "tasks")
        window = 1 if self.kind == "serial" else self.workers * _WINDOW
        if progress is not None:
            progress.start(stage, len(items) if isinstance(items, Sized) else size_hint, "items")
        try:
            for item, outcome in _in_order(crew, iter(items), window, progress):
                if outcome.error is not None:
                    raise _told(outcome, item, stage)
                if progress is not None:
                    progress.advance(stage)
                yield outcome.result
        finally:
            crew.close()
            if progress is not None:
                progress.finish(stage)

    def _crew(self, fn: Callable[[Any], Any]) -> Crew:
        if self.kind == "processes":
            from windlass.core.crew_processes import Processes

            return Processes(fn, self.workers)
        if self.kind == "threads":
            return Threads(fn, self.workers)
        if self.kind == "ray":
            from windlass.core.crew_ray import Ray

            return Ray(fn, self.workers)
        return Serial(fn)


def usable_cores() -> int:
    """How many cores this process may use, at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_order(
    crew: Crew, items: Iterator[Item], window: int, progress: Progress | None
) -> Iterator[tuple[Item, Outcome]]:
    """Keep `window` items under way or waiting to be yielded, and yield their outcomes in order."""
    under_way: dict[int, Item] = {}
    done: dict[int, Outcome] = {}
    given, turn, exhausted = 0, 0, False
    while True:
        while not exhausted and given - turn < window:
            try:
                item = next(items)
            except StopIteration:
                exhausted = True
                break
            under_way[given] = item
            crew.give(given, item)
            given += 1
        if turn == given:
            return
        while turn not in done:
            if progress is not None:
                check_cancelled(progress)
            done.update(crew.take(_POLL_SECONDS))
        yield under_way.pop(turn), done.pop(turn)
        turn += 1


def _told(outcome: Outcome, item: object, stage: str) -> BaseException:
    """The exception to raise for a failed item."""
    error = outcome.error
    name = shown(item)
    if isinstance(error, TaskFailed) and error.item is None:
        return TaskFailed(f"{error.what} while {stage} worked on {name}", item=item, hint=error.hint)
    if isinstance(error, WindlassError):
        error.add_note(f"while {stage} worked on {name}")
        return error
    failed = TaskFailed(f"{stage} failed on {name}: {type(error).__name__}: {error}", item=item)
    failed.__cause__ = error
    if outcome.trace and error is not None and error.__traceback__ is None:
        failed.add_note(outcome.trace)  # it came from another process, where its own traceback stayed
    return failed
