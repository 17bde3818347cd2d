import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.core.settings import OTHER_VARIABLES, Settings, documented, load


def write(folder, text):
    (folder / "windlass.toml").write_text(text, encoding="utf-8")


def test_defaults_without_file_or_environment(tmp_path):
    assert load(tmp_path, environment={}) == Settings()
    assert load(None, environment={}) == Settings()


def test_each_layer_beats_the_one_below(tmp_path):
    write(tmp_path, "[server]\nport = 1001\nmax_body_mb = 3\n[search]\nk = 3\n")
    environment = {"WINDLASS_SEARCH_K": "4", "WINDLASS_SERVER_MAX_BODY_MB": "4", "PATH": "/bin"}
    settings = load(tmp_path, environment=environment, overrides={"search.k": 5, "server.host": None})
    assert (settings.server.port, settings.server.max_body_mb, settings.search.k) == (1001, 4, 5)
    assert settings.server.host == Settings().server.host


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().server.port = 1  # type: ignore[misc]


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    write(tmp_path, "[server]\nprot = 1\n")
    with pytest.raises(UsageError, match=r"server\.prot.*windlass\.toml.*did you mean server\.port\?"):
        load(tmp_path, environment={})
    write(tmp_path, "[sever]\nport = 1\n")
    with pytest.raises(UsageError, match=r"\[sever\].*did you mean server\?"):
        load(tmp_path, environment={})
    with pytest.raises(UsageError, match=r"WINDLASS_SERVER_PRT.*WINDLASS_SERVER_PORT"):
        load(None, environment={"WINDLASS_SERVER_PRT": "1"})
    with pytest.raises(UsageError, match=r"WINDLASS_SEVER_PORT.*WINDLASS_SERVER_PORT"):
        load(None, environment={"WINDLASS_SEVER_PORT": "1"})
    with pytest.raises(UsageError, match=r"unknown setting server"):
        Settings().with_overrides({"server": 3})


def test_other_variables_of_ours_are_left_alone():
    others = {name: "somewhere" for name in OTHER_VARIABLES}
    assert load(None, environment={**others, "WINDLASS": "1"}) == Settings()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('port = "80"', "a whole number from 0 to 65,535"),
        ("port = 80.5", "a whole number"),
        ("port = true", "a whole number"),
        ("port = 65536", "from 0 to 65,535"),
        ("host = 7", "a text"),
        ('host = "  "', "a text"),
        ("port = []", "a whole number"),
    ],
)
def test_wrong_value_names_setting_file_and_expectation(tmp_path, line, expected):
    write(tmp_path, f"[server]\n{line}\n")
    with pytest.raises(UsageError) as caught:
        load(tmp_path, environment={})
    message = str(caught.value)
    name = line.split()[0]
    assert f"server.{name} in {tmp_path / 'windlass.toml'} is" in message
    assert expected in message


def test_nan_and_bad_choice_are_refused(tmp_path):
    write(tmp_path, "[answer]\nmin_evidence = nan\n")
    with pytest.raises(UsageError, match=r"min_evidence.*nan.*a number from 0 to 1"):
        load(tmp_path, environment={})
    with pytest.raises(UsageError, match="one of auto, extract, generate"):
        load(None, environment={"WINDLASS_ANSWER_MODE": "magic"})


def test_environment_text_that_is_no_number_says_so():
    with pytest.raises(UsageError, match=r"server\.port in .* WINDLASS_SERVER_PORT is 'x'"):
        load(None, environment={"WINDLASS_SERVER_PORT": "x"})


def test_broken_files_are_usage_errors(tmp_path):
    write(tmp_path, "[server\nport = 1\n")
    with pytest.raises(UsageError, match=r"not valid TOML.*line 1"):
        load(tmp_path, environment={})
    (tmp_path / "windlass.toml").write_bytes(b"\xff\xfe[\x00s")
    with pytest.raises(UsageError, match="not UTF-8"):
        load(tmp_path, environment={})
    (tmp_path / "windlass.toml").unlink()
    (tmp_path / "windlass.toml").mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path, environment={})
    (tmp_path / "windlass.toml").rmdir()
    write(tmp_path, "server = 3\n")
    with pytest.raises(UsageError, match=r"expected a section.*\[server\]"):
        load(tmp_path, environment={})


def test_a_whole_number_is_good_where_a_number_is_wanted():
    settings = Settings().with_overrides({"limits.reader_seconds": 5})
    assert type(settings.limits.reader_seconds) is float
    assert settings.limits.reader_seconds == 5.0


def test_every_setting_is_read_somewhere():
    source = Path(__file__).resolve().parents[2] / "src" / "windlass"
    files = [path for path in source.rglob("*.py") if path.name != "settings.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    dead = [item.name for item in documented() if not re.search(rf"\.{item.name.split('.')[1]}\b", text)]
    assert not dead, "settings that change nothing"


def test_every_setting_is_documented_and_its_default_is_valid():
    documents = documented()
    assert len({item.name for item in documents}) == len(documents)
    for item in documents:
        assert item.meaning.endswith("."), item.name
        settings = load(None, environment={item.environment: str(item.default)})
        assert settings == Settings(), item.name
    assert len(documents) <= 30, "a setting more is a question more: which one can go?"


@given(st.sampled_from([item.name for item in documented()]), st.one_of(st.integers(), st.floats(), st.text()))
def test_any_value_is_taken_or_refused_with_its_name(name, value):
    section, key = name.split(".")
    try:
        settings = Settings().with_overrides({name: value})
    except UsageError as error:
        assert name in str(error)
        return
    taken = getattr(getattr(settings, section), key)
    assert type(taken) is type(getattr(getattr(Settings(), section), key))
    assert taken == value
    assert not (isinstance(taken, float) and math.isnan(taken))
