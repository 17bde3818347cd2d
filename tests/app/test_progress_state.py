"""The snapshot of a running job."""

from __future__ import annotations

from windlass.app.progress_state import PageProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_steady_work_has_an_honest_estimate() -> None:
    clock = Clock()
    progress = PageProgress(clock=clock)
    progress.start("read", 100, "files")
    for _ in range(40):
        clock.now += 1.0
        progress.advance("read")
    stage = progress.snapshot().current
    assert stage is not None
    assert abs((stage.eta_seconds or 0) - 60) < 1
    assert stage.seconds == 40


def test_the_estimate_follows_a_change_of_speed() -> None:
    clock = Clock()
    progress = PageProgress(clock=clock)
    progress.start("read", 1000, "files")
    for step in range(60):
        clock.now += 1.0
        progress.advance("read", 1 if step < 30 else 10)
    stage = progress.snapshot().current
    assert stage is not None
    assert abs((stage.eta_seconds or 0) - (1000 - 330) / 10) < 5


def test_what_cannot_be_known_is_not_guessed() -> None:
    clock = Clock()
    progress = PageProgress(clock=clock)
    progress.start("scan", None, "files")
    progress.advance("scan", 5)
    clock.now = 3
    assert progress.snapshot().current.eta_seconds is None  # type: ignore[union-attr]
    progress.start("read", 10, "files")
    assert progress.snapshot().current.eta_seconds is None  # type: ignore[union-attr]


def test_a_new_job_forgets_the_last_one_and_an_error_leaves_nothing_running() -> None:
    progress = PageProgress(clock=Clock())
    progress.start("scan", None, "files")
    progress.finish("scan")
    progress.start("read", 3, "files")
    assert [stage.name for stage in progress.snapshot().stages] == ["read"]
    progress.start("embed", 3, "passages")
    assert [stage.name for stage in progress.snapshot().stages] == ["read", "embed"]
    progress.job_over()
    assert not progress.snapshot().active
    progress.finish("never started")
    progress.advance("never started")
    progress.cancel()
    assert progress.cancelled
