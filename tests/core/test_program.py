"""The records of work: what they refuse, and that shapes hold no values."""

import math
import threading

import numpy as np
import pytest

from windlass.core.errors import TensorValueInSimulation, UsageError
from windlass.core.program import ITEM_BYTES, OpCost, Report, Shape, Wait, WallClock


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("flops", {"flops": -1.0}),
        ("flops", {"flops": math.nan}),
        ("bytes", {"bytes": math.inf}),
        ("units", {"units": -2}),
        ("data type", {"dtype": "float7"}),
    ],
)
def test_a_cost_names_the_field_that_is_wrong(field, change):
    good = {"flops": 1.0, "bytes": 1.0, "dtype": "bf16", "kind": "gemm", "shape": (1, 1, 1)}
    with pytest.raises(UsageError, match=field):
        OpCost(**{**good, **change})


def test_gemm_counts_each_matrix_once():
    m, n, k = 3, 5, 7
    cost = OpCost.gemm(m, n, k, "fp32")
    a, b = np.zeros((m, k), np.float32), np.zeros((k, n), np.float32)
    assert cost.bytes == a.nbytes + b.nbytes + (a @ b).nbytes
    assert cost.flops == 2 * m * n * k
    assert OpCost.gemm(m, n, k, "fp32", weights="int4").bytes == a.nbytes + (a @ b).nbytes + k * n / 2


def test_gemm_of_an_unknown_type_says_so():
    with pytest.raises(UsageError, match="unknown data type 'fp3'"):
        OpCost.gemm(1, 1, 1, "fp3")


def test_item_bytes_are_those_of_numpy():
    assert ITEM_BYTES["fp32"] == np.dtype(np.float32).itemsize
    assert ITEM_BYTES["fp16"] == np.dtype(np.float16).itemsize
    assert ITEM_BYTES["int8"] == np.dtype(np.int8).itemsize


def test_a_shape_knows_its_size_and_no_values():
    shape = Shape((3, 4), "bf16")
    assert shape.nbytes == 24
    assert Shape((3,), "int4").nbytes == 2
    for look in (
        lambda: shape[0],
        lambda: float(shape),
        lambda: bool(shape),
        lambda: np.asarray(shape),
        lambda: shape + 1,
        lambda: list(shape),
        lambda: shape > 0,
    ):
        with pytest.raises(TensorValueInSimulation, match=r"\(3, 4\)"):
            look()


def test_shapes_compare_as_records():
    assert Shape((2,), "fp32") == Shape((2,), "fp32") != Shape((3,), "fp32")


def test_a_wait_is_for_something():
    with pytest.raises(UsageError, match="Wait for nothing"):
        Wait()


def test_wall_clock_calls_once_and_not_when_cancelled():
    clock, called, done = WallClock(), [], threading.Event()
    never = clock.call_later(0.01, called.append, "never")
    never.cancel()
    clock.call_later(0.02, lambda: (called.append("late"), done.set()))
    assert done.wait(10)
    assert called == ["late"]


def test_a_report_is_made_by_name():
    report = Report(mode="simulated", seconds=1.5, error=0.1)
    assert report.metrics == {} and report.assumptions == []
