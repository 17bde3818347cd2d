import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.bench.machine import describe
from windlass.bench.report import (
    BenchReport,
    figure,
    markdown_table,
    metric,
    read_saved,
    results_page,
    results_table,
    save,
)
from windlass.core.errors import UsageError

CONTRACT = {"system", "mode", "workload", "quick", "machine", "seconds", "metrics"}
METRIC = {"name", "unit", "ours", "peer", "peer_name", "ratio", "target", "ok", "note"}


def report(system="fake", quick=False, ours=2.0, **changes):
    metrics = (
        metric("scan", "s", ours, better="lower", peer=6.0, peer_name="loop 1.0", least_ratio=2.5),
        metric("recall@5", "", 0.95, better="higher", least=0.9),
        metric("lonely", "MB/s", 12345.678, better="higher", peer_name="fastlib", note="cold"),
    )
    fields = {
        "system": system,
        "mode": "measured",
        "workload": "10 files | 3 MB",
        "quick": quick,
        "machine": describe(),
        "seconds": 1.5,
        "metrics": metrics,
    }
    return BenchReport(**{**fields, **changes})


def test_the_json_object_is_the_contract():
    found = json.loads(json.dumps(report().to_json(), allow_nan=False))
    assert set(found) == CONTRACT
    assert all(set(item) == METRIC for item in found["metrics"])
    assert set(found["machine"]) == {"cpu", "cores", "memory_gb", "system", "python", "load"}


positive = st.floats(min_value=1e-6, max_value=1e6)


@given(positive, positive, positive)
def test_a_ratio_above_one_is_always_better(ours, peer, target):
    low = metric("a", "s", ours, better="lower", peer=peer, peer_name="p", least_ratio=target)
    high = metric("a", "1/s", ours, better="higher", peer=peer, peer_name="p", least_ratio=target)
    assert (low.ratio > 1) == (peer / ours > 1)
    assert (high.ratio > 1) == (ours / peer > 1)
    assert low.ok == (low.ratio >= target) and high.ok == (high.ratio >= target)


def test_a_missing_peer_is_null_and_says_so():
    item = metric("scan", "s", 1.0, better="lower", peer_name="fastlib", least_ratio=2, note="cold")
    assert (item.peer, item.ratio, item.ok) == (None, None, None)
    assert item.target == "ratio >= 2"
    assert item.note == "cold; fastlib is not installed (extra `peers`)"


def test_targets_on_our_own_figure_need_no_peer():
    assert metric("recall", "", 0.9, better="higher", least=0.9).ok is True
    assert metric("recall", "", 0.8999, better="higher", least=0.9).ok is False
    assert metric("size", "MB", 3.0, better="lower", most=2.5).ok is False
    assert metric("size", "MB", 3.0, better="lower").ok is None


def test_a_zero_makes_no_infinite_ratio():
    assert metric("lost", "", 0.0, better="lower", peer=4.0, peer_name="p").ratio is None
    assert metric("lost", "", 4.0, better="lower", peer=0.0, peer_name="p").ratio == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_figures_must_be_finite(bad):
    with pytest.raises(ValueError, match="must be finite"):
        metric("a", "s", bad, better="lower")
    with pytest.raises(ValueError, match="must be finite"):
        metric("a", "s", 1.0, better="lower", peer=bad, peer_name="p")
    with pytest.raises(ValueError, match="one target"):
        metric("a", "s", 1.0, better="lower", least=1, most=2)


def test_saving_appends_and_writes_the_page(tmp_path):
    folder = tmp_path / "docs" / "results"
    path = save(report(ours=1.0), folder)
    save(report(ours=2.0), folder)
    save(report(ours=9.0, quick=True), folder)
    save(report(system="other", quick=True), folder)
    history = read_saved(path)
    assert [item["metrics"][0]["ours"] for item in history] == [1.0, 2.0, 9.0]
    assert all(set(item) == CONTRACT | {"date", "version"} for item in history)
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == results_page(folder)
    assert "| scan | 2.00 s | 6.00 s (loop 1.0) | 3.00 | ratio >= 2.5 | yes |" in page, "the newest full run"
    assert page.index("## fake") < page.index("## other")
    assert "quick run of" in page.split("## other")[1]
    assert {entry.name for entry in folder.iterdir()} == {"fake.json", "other.json"}
    table = "\n".join(results_table(folder))
    assert "`fake` | recall@5 | 0.950 | - | - | ours >= 0.9 | yes" in table
    assert "lonely" not in table


def test_no_results_make_an_empty_page(tmp_path):
    assert results_table(tmp_path) == []
    assert results_page(tmp_path).startswith("# Results")


@pytest.mark.parametrize("text", ["", "{", "{}", "[3]", "null"])
def test_a_damaged_file_is_never_overwritten(tmp_path, text):
    path = tmp_path / "fake.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"fake\.json is not"):
        save(report(), tmp_path)
    assert path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (12345.678, "12,346"), (0.04567, "0.0457"), (1.0, "1.00"), (5e-7, "5.00e-07")],
)
def test_figures_read_well(value, text):
    assert figure(value) == text


@given(st.floats(min_value=-1e300, max_value=1e300))
def test_every_figure_keeps_two_digits(value):
    shown = float(figure(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.006, abs=1e-300)


def test_a_bar_in_a_cell_does_not_break_the_table():
    assert markdown_table(["a"], [["x|y"]])[-1] == "| x\\|y |"
