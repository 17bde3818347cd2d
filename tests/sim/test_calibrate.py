"""This machine as a device, and the record that keeps it."""

import pytest

from windlass.core.errors import Cancelled, SimulationError, WorkspaceError
from windlass.core.program import OpCost
from windlass.core.progress import Silent
from windlass.sim import calibrate
from windlass.sim.cost import CostModel
from windlass.sim.hardware import hardware


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch):
    monkeypatch.setenv("WINDLASS_CALIBRATION", str(tmp_path / "cache" / "machine.json"))


def test_a_machine_that_was_never_measured_says_how():
    with pytest.raises(SimulationError, match="doctor --calibrate"):
        hardware("local")


def test_measuring_makes_a_device_and_the_record_keeps_it():
    measured = calibrate.calibrate()
    again = hardware("local")
    assert again == measured
    assert again.mem_bw > 1e8 and again.flops["fp32"] > 1e8
    assert 0 < again.efficiency.error < 1 and "this machine" in again.efficiency.fitted_on
    assert CostModel().op(OpCost.gemm(64, 512, 512, "fp32"), again).seconds > 0
    calibrate.update_record("engine", {"a": 1})
    assert hardware("local") == measured
    assert calibrate.read_record()["engine"] == {"a": 1}


def test_a_damaged_record_is_refused(tmp_path):
    calibrate.update_record("engine", {"a": 1})
    path = calibrate.record_path()
    path.write_text(path.read_text().replace('"a"', '"b"'))
    with pytest.raises(WorkspaceError):
        calibrate.read_record()


def test_measuring_can_be_stopped():
    progress = Silent()
    progress.cancel()
    with pytest.raises(Cancelled):
        calibrate.measure_local(progress)
