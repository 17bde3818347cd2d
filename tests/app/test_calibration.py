"""What `windlass doctor --calibrate` keeps about the language model."""

import pytest

from windlass.app import calibration
from windlass.core.progress import Silent
from windlass.serving.cost import StepFit
from windlass.sim.calibrate import read_record, update_record


@pytest.fixture(autouse=True)
def own_record(tmp_path, monkeypatch):
    monkeypatch.setenv("WINDLASS_CALIBRATION", str(tmp_path / "machine.json"))


def test_nothing_is_known_of_a_machine_that_was_never_measured():
    assert calibration.known_steps("any") is None


def test_steps_are_known_for_the_model_they_were_measured_with():
    fit = StepFit(0.004, 0.0, 0.002, 1e-6, 1e-6, 1e-4, 0.05)
    update_record(calibration.SECTION, {"model": "small", **fit.to_json()})
    update_record("device", {"name": "local"})
    assert calibration.known_steps("small") == fit
    assert calibration.known_steps("large") is None
    assert set(read_record()) == {calibration.SECTION, "device"}


def test_without_the_model_nothing_is_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("WINDLASS_MODELS_DECODER", str(tmp_path / "none.gguf"))
    assert calibration.calibrate_steps(Silent()) is None
    assert read_record() == {}


@pytest.mark.models
def test_the_default_model_is_measured_and_kept():
    fit = calibration.calibrate_steps(Silent())
    assert fit is not None and 0 < fit.error < 0.5
    assert read_record()[calibration.SECTION]["model"]
