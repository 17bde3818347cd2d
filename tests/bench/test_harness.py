import json
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from windlass.app.commands import bench as bench_command
from windlass.app.commands import systems as systems_command
from windlass.bench import harness
from windlass.bench.harness import compare, peer_module, run_bench
from windlass.bench.report import metric
from windlass.core import catalogue
from windlass.core.errors import Cancelled, DataMissing, ModelError, NotFound, UsageError
from windlass.core.progress import Silent


def fake_row(system_id, run, monkeypatch):
    name = f"fake_bench_{system_id}"
    module = types.ModuleType(name)
    module.run = run
    monkeypatch.setitem(sys.modules, name, module)
    row = catalogue.system("fastrp")
    return replace(row, id=system_id, bench=name, status="built", kind="base", about="x" * 200)


def good(context):
    (context.workdir / "data").write_text("x", encoding="utf-8")
    factor = 2.0 if context.quick else 3.0
    figure = metric("speed", "1/s", factor + context.seed, better="higher", peer=1.0, peer_name="p", least_ratio=2.5)
    return context.report(mode="measured", workload=str(context.workdir), metrics=[figure])


def without_model(context):
    raise ModelError("no model", hint="windlass models pull")


@pytest.fixture
def catalogue_of_fakes(monkeypatch):
    rows = (
        fake_row("good", good, monkeypatch),
        fake_row("modelless", without_model, monkeypatch),
        replace(catalogue.system("fastrp"), id="later", status="planned"),
    )
    monkeypatch.setattr(catalogue, "systems", lambda: rows)
    return rows


@pytest.fixture
def command():
    app = typer.Typer()
    bench_command.register(app)
    systems_command.register(app)
    runner = CliRunner()
    return lambda *words: runner.invoke(app, list(words), env={"COLUMNS": "200"})


def test_runs_alternate_and_the_median_is_reported():
    calls, naps = [], iter([0.0, 0.03, 0.0, 0.0])

    def ours():
        calls.append("ours")
        time.sleep(next(naps))
        return len(calls)

    comparison = compare(ours, lambda: calls.append("peer"), repeats=3)
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert comparison.ours.result == 7
    assert comparison.ours.wall_median == sorted(comparison.ours.wall)[1]
    assert max(comparison.ours.wall) >= 0.03
    assert len(comparison.peer.wall) == len(comparison.peer.cpu) == 3


def test_cpu_seconds_do_not_count_sleep_and_do_count_work():
    def work():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    comparison = compare(lambda: time.sleep(0.05), work, warm_up=False)
    assert comparison.ours.cpu_median < 0.04 <= comparison.peer.cpu_median
    wall, cpu = comparison.metrics("nap", peer_name="work", least_ratio=0.1)
    assert (wall.name, wall.unit, cpu.name) == ("nap", "s", "nap, CPU")
    assert wall.peer == comparison.peer.wall_median and cpu.ours == comparison.ours.cpu_median
    assert wall.target == "ratio >= 0.1" and cpu.target is None


def test_without_a_peer_only_ours_runs():
    calls = []
    comparison = compare(lambda: calls.append(1), None, repeats=3)
    assert len(calls) == 4 and comparison.peer is None
    wall, cpu = comparison.metrics("scan", peer_name="fastlib", least_ratio=2)
    assert wall.ok is None and "fastlib is not installed" in wall.note and cpu.ratio is None


def test_two_runs_are_not_enough_and_cancelling_stops():
    with pytest.raises(ValueError, match="at least 3"):
        compare(lambda: None, None, repeats=2)
    progress, calls = Silent(), []

    def ours():
        calls.append(1)
        progress.cancel()

    with pytest.raises(Cancelled):
        compare(ours, None, progress=progress)
    assert len(calls) == 1


def test_a_missing_peer_and_a_broken_one_are_told_apart(tmp_path, monkeypatch):
    assert peer_module("no_such_peer_anywhere") is None
    assert peer_module("no_such_peer_anywhere.inner") is None
    assert peer_module("json") is json
    (tmp_path / "broken_peer.py").write_text("import no_such_dependency", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        peer_module("broken_peer")


def test_run_bench_gives_each_a_folder_of_its_own(catalogue_of_fakes):
    (report,) = run_bench(["good"], seed=4)
    assert (report.system, report.quick, report.mode) == ("good", False, "measured")
    assert report.metrics[0].ours == 7.0 and report.metrics[0].ok
    assert report.seconds >= 0 and report.machine.cores >= 1
    assert not Path(report.workload).exists()


def test_bad_names_are_refused_before_anything_runs(catalogue_of_fakes):
    with pytest.raises(NotFound, match="did you mean good"):
        list(run_bench(["good", "godo"]))
    with pytest.raises(UsageError, match="later is planned"):
        list(run_bench(["later"]))
    with pytest.raises(UsageError, match="built: good, modelless"):
        list(run_bench([]))
    assert [row.id for row in harness.chosen([], everything=True)] == ["good", "modelless"]


def test_the_command_prints_a_table_or_an_object(catalogue_of_fakes, command):
    shown = command("bench", "good")
    assert shown.exit_code == 0 and "speed" in shown.output and "ratio >= 2.5" in shown.output
    printed = command("bench", "good", "--json", "--quick")
    assert printed.exit_code == 0
    assert json.loads(printed.stdout)["quick"] is True


def test_check_exits_with_one_when_a_target_is_missed(catalogue_of_fakes, command):
    assert command("bench", "good", "--check").exit_code == 0
    assert command("bench", "good", "--quick").exit_code == 0
    assert command("bench", "good", "--quick", "--check").exit_code == 1


def test_one_that_cannot_run_does_not_hide_the_others(catalogue_of_fakes, command):
    result = command("bench", "--all", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["system"] == "good"
    assert "modelless: could not run: no model; windlass models pull" in result.stderr
    assert isinstance(command("bench", "modelless").exception, ModelError)
    assert isinstance(command("bench", "good", "--all").exception, UsageError)


def test_a_benchmark_without_its_data_is_skipped(catalogue_of_fakes, command, monkeypatch):
    plain = harness.run_system

    def without_data(row, **options):
        if row.id == "modelless":
            raise DataMissing("no tables here", hint="set the folder")
        return plain(row, **options)

    monkeypatch.setattr(harness, "run_system", without_data)
    result = command("bench", "--all", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["system"] == "good"
    assert "modelless: skipped: no tables here; set the folder" in result.stderr
    assert isinstance(command("bench", "modelless").exception, DataMissing)


def test_save_appends_to_the_checkout(catalogue_of_fakes, command, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "results_folder", lambda: tmp_path / "docs" / "results")
    assert command("bench", "good", "--save").exit_code == 0
    assert command("bench", "good", "--save", "--quick").exit_code == 0
    saved = json.loads((tmp_path / "docs" / "results" / "good.json").read_text(encoding="utf-8"))
    assert [item["quick"] for item in saved] == [False, True]
    assert "## good" in (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")


def test_save_outside_of_a_checkout_is_refused(monkeypatch, tmp_path):
    import windlass

    monkeypatch.setattr(windlass, "__file__", str(tmp_path / "lib" / "site-packages" / "windlass" / "__init__.py"))
    with pytest.raises(UsageError, match="not installed from one"):
        harness.results_folder()


def test_systems_lists_every_row_truthfully(command):
    rows = catalogue.systems()
    printed = json.loads(command("systems", "--json").stdout)["systems"]
    assert [(item["id"], item["status"]) for item in printed] == [(row.id, row.status) for row in rows]
    table = command("systems").output
    built = sum(row.built for row in rows if row.kind != "base")
    assert all(row.id in table for row in rows)
    assert f"{built} of 76 systems" in table


def test_systems_shows_one_row(command):
    text = command("systems", "fastrp").output
    assert "node embeddings by very sparse random projection" in text and "windlass.graphs" in text
    assert json.loads(command("systems", "fastrp", "--json").stdout)["id"] == "fastrp"
    assert isinstance(command("systems", "fastpr").exception, NotFound)
