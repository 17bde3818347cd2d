"""Step times fitted from measurements, and measured on an executor whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.serving.conftest import request, scripted_engine
from windlass.core.errors import UsageError
from windlass.serving.batch import BatchShape
from windlass.serving.scheduler import StallFree
from windlass.serving.step_time import LinearStepTime, measure

LAW = LinearStepTime(0.004, 0.001, 0.002, 1e-6, 2e-6)


def shapes(count: int) -> list[BatchShape]:
    rng = np.random.default_rng(1)
    return [BatchShape(*(int(n) for n in rng.integers(1, [200, 9, 90_000, 9_000]))) for _ in range(count)]


def test_an_exact_law_is_found() -> None:
    found = LinearStepTime.fit(shapes(40), [LAW.seconds(shape) for shape in shapes(40)])
    for part in LinearStepTime.__slots__:
        assert getattr(found, part) == pytest.approx(getattr(LAW, part), rel=1e-6)


def test_noise_never_makes_a_part_negative() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        seconds = [0.01 * float(noise) for noise in rng.uniform(0.5, 2.0, 12)]
        found = LinearStepTime.fit(shapes(12), seconds)
        assert min(getattr(found, part) for part in LinearStepTime.__slots__) >= 0
        assert found.seconds(shapes(1)[0]) > 0


def test_measuring_leaves_the_memory_as_it_was() -> None:
    engine = scripted_engine(StallFree(64), pages=600, seconds=lambda batch: LAW.seconds(BatchShape.of(batch)))
    found = measure(engine.executor, engine.kv)
    engine.kv.check()
    assert engine.kv.free_pages == 600
    for shape in (BatchShape(20, 1, 5_000.0, 0), BatchShape(5, 5, 0.0, 2_000)):
        assert found.seconds(shape) == pytest.approx(LAW.seconds(shape), rel=1e-6)
    engine.submit(request("a", 10, 3))
    assert len(engine.run_until_idle()) == 3


def test_a_small_memory_is_measured_too() -> None:
    engine = scripted_engine(StallFree(64), pages=60, seconds=lambda batch: LAW.seconds(BatchShape.of(batch)))
    assert measure(engine.executor, engine.kv).seconds(BatchShape(20, 1, 200.0, 0)) > 0
    assert engine.kv.free_pages == 60


@pytest.mark.parametrize("seconds", [[], [0.0], [1.0, 2.0]])
def test_measurements_that_are_none_are_refused(seconds: list[float]) -> None:
    with pytest.raises(UsageError):
        LinearStepTime.fit(shapes(1), seconds)
