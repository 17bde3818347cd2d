"""Step times measured on an executor whose law is known."""

from __future__ import annotations

import pytest

from tests.serving.conftest import request, scripted_engine
from windlass.serving.batch import BatchShape
from windlass.serving.cost import StepFit
from windlass.serving.scheduler import StallFree
from windlass.serving.step_time import measure

LAW = StepFit(0.004, 0.006, 0.001, 1e-6, 2e-6, 0.002, 0.0)


@pytest.mark.parametrize("pages", [600, 60])
def test_the_law_is_found_and_the_memory_left_as_it_was(pages: int) -> None:
    engine = scripted_engine(
        StallFree(64), pages=pages, page_tokens=16, seconds=lambda batch: LAW.seconds(BatchShape.of(batch))
    )
    found = measure(engine.executor, engine.kv)
    engine.kv.check()
    assert engine.kv.free_pages == pages
    for shape in (BatchShape(20, 1, 1_000.0, 0), BatchShape(5, 5, 0.0, 2_000), BatchShape(90, 1, 4_000.0, 0)):
        assert found.seconds(shape) == pytest.approx(LAW.seconds(shape), rel=0.03)
    engine.submit(request("a", 10, 3))
    assert len(engine.run_until_idle()) == 3
