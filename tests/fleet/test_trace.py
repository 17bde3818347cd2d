"""Readers of request traces."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import NotFound
from windlass.fleet.trace import read
from windlass.sim.trace import RequestTrace, TraceError

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,100,0,100,API log\n"
)
MOONCAKE = "\n".join(
    json.dumps({"timestamp": t, "input_length": 1000, "output_length": 5, "hash_ids": ids})
    for t, ids in ((27_000, [1, 2]), (30_000, [1, 3]))
)
PLAIN = "arrival_s,prompt_tokens,output_tokens\n1.5,10,2\n2.0,20,4\n"


def written(tmp_path, text, name="trace.csv", compress=False):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if compress else text.encode())
    return path


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("text", "arrivals", "inputs", "outputs"),
    [
        (AZURE, [0.0, 4.314579], [374, 396], [44, 109]),
        (BURST, [0.0, 40.0], [472, 100], [18, 0]),
        (MOONCAKE, [0.0, 3.0], [1000, 1000], [5, 5]),
        (PLAIN, [0.0, 0.5], [10, 20], [2, 4]),
    ],
)
def test_each_format_is_known_by_its_header(tmp_path, text, arrivals, inputs, outputs, compress):
    trace = read(written(tmp_path, text, "anything", compress))
    assert trace.arrival_s == pytest.approx(arrivals, abs=1e-6)
    assert trace.input_tokens.tolist() == inputs
    assert trace.output_tokens.tolist() == outputs


def test_what_a_format_says_more_is_kept(tmp_path):
    burst = read(written(tmp_path, BURST))
    assert burst.failed.tolist() == [False, True] and burst.model == ["ChatGPT", "GPT-4"]
    mooncake = read(written(tmp_path, MOONCAKE))
    assert mooncake.request(1).prefix_blocks == (1, 3) and mooncake.meta["block_tokens"] == 512


def test_our_own_format_too(tmp_path):
    trace = RequestTrace.poisson(2.0, 20, ([5], [6]), seed=1)
    trace.save(tmp_path / "own")
    assert np.array_equal(read(tmp_path / "own").arrival_s, trace.arrival_s)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,prompt_tokens,output_tokens\n1,x,2\n", "line 2: not a request"),
        ("arrival_s,prompt_tokens,output_tokens\n1,2\n", "line 2: not a request"),
        ("arrival_s,prompt_tokens,output_tokens\n2,1,1\n1,1,1\n", "line 3: arrives before"),
        ("arrival_s,prompt_tokens,output_tokens\n2,-1,1\n", "line 2: -1 input"),
        ("arrival_s,prompt_tokens,output_tokens\nnan,1,1\n", "line 2: arrives before"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        (AZURE.replace("2023-11-16 18:15:50.9951690", "yesterday"), "line 3: not a request"),
        ('{"timestamp": 1}\n', "line 1: not a request: no field 'input_length'"),
        ("{broken\n", "line 1: not a request"),
        ("a,b,c\n1,2,3\n", "no format known by its header 'a,b,c'"),
        ("", "no format known"),
    ],
)
def test_a_bad_row_is_named(tmp_path, text, message):
    with pytest.raises(TraceError, match=message):
        read(written(tmp_path, text))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(NotFound):
        read(tmp_path / "missing.csv")
    whole = gzip.compress(PLAIN.encode() * 100)
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TraceError, match="damaged compression"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(TraceError, match="not text"):
        read(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    try:
        read(path)
    except TraceError:
        pass


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "rows", "seconds"),
    [("azure_llm_2023_conv.csv.gz", 19_366, 3502), ("azure_llm_2023_code.csv.gz", 8_819, 3436)],
)
def test_the_public_traces(name, rows, seconds):
    import os
    from pathlib import Path

    trace = read(Path(os.environ["WINDLASS_SHARED_DATA"]) / "fleet" / name)
    assert len(trace) == rows
    assert trace.duration_s == pytest.approx(seconds, abs=1)
