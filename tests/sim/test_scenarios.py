"""Scenario files, from the command line down."""

import json

import pytest

from windlass.app.commands.simulate import SCENARIOS, run_scenario
from windlass.core.errors import NotFound, UsageError
from windlass.core.program import OpCost
from windlass.core.progress import Silent
from windlass.sim.cost import CostModel
from windlass.sim.hardware import hardware

MODEL = "[model]\nlayers = 2\nwidth = 1024\nheads = 8\nkv_heads = 8\nhead = 128\nffn = 4096\nvocabulary = 1000\n"
GOOD = {
    "operators": 'kind = "operators"\ndevices = ["H100"]\ngemm = [[1, 4096, 4096], [512, 4096, 4096]]\n',
    "collectives": 'kind = "collectives"\ncluster = "2x2xA100-IB"\nbytes = [1000000]\nalgorithms = ["auto", "ring"]\n',
    "prefill": 'kind = "prefill"\ncluster = "1x2xH100"\ntokens = [128, 1024]\n' + MODEL,
    "serving": 'kind = "serving"\ndevice = "A100"\nlengths = [[100, 10]]\nrate = 5.0\nrequests = 20\n' + MODEL,
}


def run(tmp_path, text):
    path = tmp_path / "scenario.toml"
    path.write_text(text)
    return run_scenario(path, Silent())


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_every_kind_reports_in_virtual_seconds(tmp_path, kind):
    assert set(GOOD) == set(SCENARIOS)
    report = run(tmp_path, GOOD[kind])
    assert report.mode == "simulated"
    assert report.error is not None and 0 < report.error < 0.5
    assert report.metrics and report.assumptions
    assert all(value >= 0 for value in report.metrics.values())


def test_operators_are_the_cost_models(tmp_path):
    found = run(tmp_path, GOOD["operators"]).metrics["H100-SXM 512x4096x4096 s"]
    assert found == CostModel().op(OpCost.gemm(512, 4096, 4096, "bf16"), hardware("H100")).seconds


def test_a_longer_prompt_takes_longer_and_two_devices_take_less(tmp_path):
    report = run(tmp_path, GOOD["prefill"])
    assert report.metrics["prefill 128 tokens s"] < report.metrics["prefill 1024 tokens s"]
    alone = run(tmp_path, GOOD["prefill"].replace("1x2xH100", "1x1xH100"))
    assert sum(span.kind == "all_reduce" for span in report.spans) == 2 * 2 * 2
    assert not [span for span in alone.spans if span.kind == "all_reduce"]


@pytest.mark.parametrize("policy", ["stall-free", "prefill-first", "hybrid", "decode-first"])
def test_every_policy_serves(tmp_path, policy):
    report = run(tmp_path, f'policy = "{policy}"\n' + GOOD["serving"])
    assert report.metrics["requests"] == 20


def test_a_trace_beside_the_scenario_is_read(tmp_path):
    (tmp_path / "requests.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,2\n1,20,3\n")
    text = GOOD["serving"].replace("lengths = [[100, 10]]", 'trace = "requests.csv"')
    assert run(tmp_path, text).metrics["requests"] == 20
    own_times = text.replace("rate = 5.0\nrequests = 20\n", "")
    assert run(tmp_path, own_times).metrics["requests"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "kind is None"),
        ('kind = "weather"', "kind is 'weather'"),
        ("[[[", "not TOML"),
        (GOOD["operators"].replace("gemm", "gem"), "unknown field gem"),
        (GOOD["operators"].replace("[1, 4096, 4096]", "[1, 2]"), r"gemm has \[1, 2\]"),
        (GOOD["operators"].replace('["H100"]', "[]"), r"devices is \[\]"),
        (GOOD["operators"].replace("H100", "H1000"), "unknown device 'H1000'"),
        (GOOD["collectives"].replace("ring", "magic"), "unknown algorithm 'magic'"),
        (GOOD["collectives"].replace("2x2xA100-IB", "two"), "no part of a cluster"),
        (GOOD["prefill"].replace("layers = 2", "layers = 0"), "layers is 0"),
        (GOOD["prefill"].replace("layers = 2\n", ""), "it needs layers"),
        (GOOD["serving"].replace("rate = 5.0", "rate = -1"), "rate is -1"),
        (GOOD["serving"].replace('device = "A100"\n', ""), "device is missing"),
        ('policy = "none"\n' + GOOD["serving"], "policy is 'none'"),
        (GOOD["serving"].replace("[[100, 10]]", "[100]"), r"lengths is \[100\]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        run(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFound, match="cannot read"):
        run_scenario(tmp_path / "missing.toml", Silent())


def test_the_command_prints_json_and_writes_a_trace(tmp_path, capsys):
    from windlass.app.commands.simulate import simulate

    path = tmp_path / "scenario.toml"
    path.write_text(GOOD["prefill"])
    simulate(path, tmp_path / "trace.json", True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["mode"] == "simulated" and printed["joules"] > 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    path.write_text(GOOD["operators"])
    with pytest.raises(UsageError, match="leaves no trace"):
        simulate(path, tmp_path / "trace.json", True)
    simulate(path, None, False)
    assert "(simulated)" in capsys.readouterr().out
