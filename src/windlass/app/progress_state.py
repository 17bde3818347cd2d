"""What the running job is doing, as a snapshot that any thread may take: for the page, the API and the terminal."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_WINDOW_SECONDS = 15.0
_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class StageView:
    """One stage of a job at one moment.

    Attributes:
        name: As the job calls it (`scan`, `read`, `embed`, ...).
        unit: What is counted.
        done, total: Units finished, and all of them (None when unknown).
        detail: The current one.
        running: False once it is over.
        seconds: Time spent so far.
        eta_seconds: Time left at the speed of the last seconds; None when it cannot be known.
    """

    name: str
    unit: str
    done: int
    total: int | None
    detail: str
    running: bool
    seconds: float
    eta_seconds: float | None


@dataclass(frozen=True, slots=True)
class ProgressView:
    """A job at one moment: its stages in the order in which they began."""

    active: bool
    stages: tuple[StageView, ...]

    @property
    def current(self) -> StageView | None:
        """The stage that runs now, the last to begin when several do."""
        return next((stage for stage in reversed(self.stages) if stage.running), None)


@dataclass(slots=True)
class _Stage:
    unit: str
    total: int | None
    started: float
    done: int = 0
    detail: str = ""
    ended: float | None = None
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_SAMPLES))


class PageProgress:
    """A `Progress` that remembers.

    A stage that starts when none is running begins a new job: the stages of the last one are forgotten.

    Args:
        clock: Seconds that only grow.

    Example:
        >>> progress = PageProgress(clock=lambda: 0.0)
        >>> progress.start("read", 10, "files")
        >>> progress.advance("read", 4, "notes.md")
        >>> stage = progress.snapshot().current
        >>> stage.done, stage.total, stage.detail
        (4, 10, 'notes.md')
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._stages: dict[str, _Stage] = {}
        self._cancelled = False

    def start(self, stage: str, total: int | None, unit: str) -> None:
        now = self._clock()
        with self._lock:
            if all(known.ended is not None for known in self._stages.values()):
                self._stages.clear()
            self._stages.pop(stage, None)  # a stage that comes again stands at the end
            fresh = _Stage(unit, total, now)
            fresh.samples.append((now, 0))
            self._stages[stage] = fresh

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        now = self._clock()
        with self._lock:
            known = self._stages.get(stage)
            if known is not None:
                known.done += done
                known.detail = detail or known.detail
                if now - known.samples[-1][0] >= _WINDOW_SECONDS / _SAMPLES:
                    known.samples.append((now, known.done))

    def finish(self, stage: str) -> None:
        with self._lock:
            known = self._stages.get(stage)
            if known is not None and known.ended is None:
                known.ended = self._clock()

    def cancel(self) -> None:
        """Ask the running job, and every later one, to stop."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def job_over(self) -> None:
        """The job ended, whatever its stages said: after an error or a cancellation none is left running."""
        with self._lock:
            for stage in self._stages.values():
                stage.ended = stage.ended if stage.ended is not None else self._clock()

    def snapshot(self) -> ProgressView:
        """How things stand now."""
        now = self._clock()
        with self._lock:
            stages = tuple(_view(name, stage, now) for name, stage in self._stages.items())
        return ProgressView(any(stage.running for stage in stages), stages)


def _view(name: str, stage: _Stage, now: float) -> StageView:
    ended = stage.ended
    return StageView(
        name=name,
        unit=stage.unit,
        done=stage.done,
        total=stage.total,
        detail=stage.detail,
        running=ended is None,
        seconds=(now if ended is None else ended) - stage.started,
        eta_seconds=_seconds_left(stage, now) if ended is None else None,
    )


def _seconds_left(stage: _Stage, now: float) -> float | None:
    if stage.total is None:
        return None
    if stage.done >= stage.total:
        return 0.0
    # The oldest sample within the window: fast or slow starts stop counting after a while.
    since, done_then = next(
        ((moment, done) for moment, done in stage.samples if now - moment <= _WINDOW_SECONDS), stage.samples[-1]
    )
    if stage.done == done_then:  # nothing lately: the average of the whole stage is the better guess
        since, done_then = stage.started, 0
    if stage.done == done_then or now <= since:
        return None
    return (stage.total - stage.done) * (now - since) / (stage.done - done_then)
