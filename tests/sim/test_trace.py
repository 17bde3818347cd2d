"""Request traces: what they refuse, how they change, and that a file keeps them."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.sim.trace import RequestTrace, TraceError

LENGTHS = ([10, 20, 30], [1, 2, 3])


def small(**more):
    return RequestTrace(np.array([0.0, 1.0, 3.0]), np.array([5, 6, 7]), np.array([1, 2, 3]), **more)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (([0.0, 1.0], [1], [1, 1]), "input_tokens has 1 rows"),
        (([1.0, 0.0], [1, 1], [1, 1]), "row 1 arrives before row 0"),
        (([0.0, math.nan], [1, 1], [1, 1]), "not finite"),
        (([-1.0, 0.0], [1, 1], [1, 1]), "negative"),
        (([0.0, 1.0], [1, -1], [1, 1]), "input_tokens"),
        (([0.0, 1.0], [1, 1], [1, math.nan]), "output_tokens"),
    ],
)
def test_what_is_no_trace_is_refused(columns, message):
    with pytest.raises(TraceError, match=message):
        RequestTrace(*map(np.array, columns))


def test_gaps_have_the_mean_and_spread_that_were_asked_for():
    for cv in (0.0, 0.5, 1.0, 3.0):
        trace = RequestTrace.gamma(4.0, cv, 100_000, LENGTHS, seed=1)
        gaps = np.diff(trace.arrival_s)
        assert gaps.mean() == pytest.approx(0.25, rel=0.03)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05, abs=1e-6)
    assert np.array_equal(trace.output_tokens * 10, trace.input_tokens)  # drawn as pairs


def test_a_seed_is_a_trace():
    one, same, other = (RequestTrace.poisson(1.0, 50, LENGTHS, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.arrival_s, same.arrival_s)
    assert not np.array_equal(one.arrival_s, other.arrival_s)


def test_windows_rates_and_joins():
    trace = small()
    cut = trace.window(0.5, 3.5)
    assert cut.arrival_s.tolist() == [0.5, 2.5] and cut.input_tokens.tolist() == [6, 7]
    assert trace.scale_rate(2.0).arrival_s.tolist() == [0.0, 0.5, 1.5]
    assert trace.rate == pytest.approx(2 / 3)
    joined = RequestTrace.concatenate([trace, small(session=np.array([4, 5, 6]))])
    assert joined.arrival_s.tolist() == [0.0, 0.0, 1.0, 1.0, 3.0, 3.0]
    assert joined.session.tolist() == [-1, 4, -1, 5, -1, 6]
    assert joined.request(1).session == 4 and joined.request(0).session is None
    for factor in (0.0, math.inf, -1.0):
        with pytest.raises(UsageError):
            trace.scale_rate(factor)


def test_a_resample_draws_rows_and_gaps_of_the_trace():
    drawn = small().resample(1000, seed=1)
    assert len(drawn) == 1000
    pairs = set(zip(drawn.input_tokens.tolist(), drawn.output_tokens.tolist(), strict=True))
    assert pairs == {(5, 1), (6, 2), (7, 3)}
    assert set(np.diff(drawn.arrival_s).round(9)) == {1.0, 2.0}


rows = st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 2**31 - 1), st.integers(0, 10**6)), max_size=20)


@settings(max_examples=10, deadline=None)
@given(rows, st.booleans())
def test_a_file_keeps_everything(tmp_path_factory, found, blocks):
    arrivals = np.array(sorted(row[0] for row in found))
    count = len(found)
    trace = RequestTrace(
        arrivals,
        np.array([row[1] for row in found]),
        np.array([row[2] for row in found]),
        kind=["chat"] * count,
        session=np.arange(count),
        prefix_blocks=[np.arange(i) for i in range(count)] if blocks else None,
        service_s=np.linspace(0, 1, count).astype(np.float32),
        meta={"source": "made here"},
    )
    path = tmp_path_factory.mktemp("trace") / "trace.parquet"
    trace.save(path)
    back = RequestTrace.load(path)
    for name, column in trace._columns().items():
        other = getattr(back, name)
        assert len(other) == len(column)
        assert all(np.array_equal(a, b) for a, b in zip(column, other, strict=True)), name
    assert back.meta == trace.meta


def test_other_files_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = tmp_path / "other.parquet"
    parquet.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(TraceError, match="no trace that Windlass wrote"):
        RequestTrace.load(path)
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(TraceError, match="not readable"):
        RequestTrace.load(path)


def test_the_error_survives_a_process():
    error = TraceError("a.csv", 7, "not a request", hint="look")
    back = pickle.loads(pickle.dumps(error))
    assert (back.path, back.line, str(back)) == ("a.csv", 7, str(error))
