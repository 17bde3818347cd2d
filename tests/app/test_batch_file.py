"""`windlass batch run`: every line answered once, in order, also after a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from windlass.app.batch_file import run_file
from windlass.core.errors import Cancelled, UsageError
from windlass.core.progress import Silent
from windlass.models.generate import LocalModel

SHARED = "of all the ships that lay in the harbour "


def line(number: int, **body: Any) -> str:
    content = {"model": "m", "messages": [{"role": "user", "content": f"{SHARED}tell of {number}"}], "max_tokens": 3}
    return json.dumps({"custom_id": f"c{number}", "body": {**content, **body}})


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(each) for each in path.read_text().splitlines()]


def text_of(record: dict[str, Any]) -> str:
    return str(record["response"]["body"]["choices"][0]["message"]["content"])


def alone(model: LocalModel, number: int) -> str:
    return "".join(model.chat([{"role": "user", "content": f"{SHARED}tell of {number}"}], max_tokens=3))


def test_lines_are_answered_in_their_order_and_bad_ones_named(tiny: LocalModel, tmp_path: Path) -> None:
    source = written(
        tmp_path / "in.jsonl", line(2), "{", line(0), line(7, messages=[]), line(1), line(8, temperature=9)
    )  # fmt: skip
    report = run_file(tiny, source, tmp_path / "out.jsonl", Silent())
    found = records(tmp_path / "out.jsonl")
    assert [record["custom_id"] for record in found] == ["c2", "c0", "c7", "c1", "c8", None]
    assert [text_of(found[place]) for place in (0, 1, 3)] == [alone(tiny, number) for number in (2, 0, 1)]
    assert all(found[place]["error"]["message"] for place in (2, 4, 5)) and "line 2" in found[5]["error"]["message"]
    assert (report.answered, report.failed, report.known) == (3, 3, 0)
    assert report.saved_tokens > 0.3 * report.prompt_tokens
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_two_lines_of_one_name_and_a_file_that_is_there_are_refused(tiny: LocalModel, tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", line(1), line(2), line(1))
    with pytest.raises(UsageError, match="lines 1 and 3"):
        run_file(tiny, source, tmp_path / "out.jsonl", Silent())
    written(tmp_path / "out.jsonl", "kept")
    with pytest.raises(UsageError, match="there already"):
        run_file(tiny, written(tmp_path / "in.jsonl", line(1)), tmp_path / "out.jsonl", Silent())
    assert (tmp_path / "out.jsonl").read_text() == "kept\n"


def test_an_empty_file_has_an_empty_answer(tiny: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"")
    assert run_file(tiny, tmp_path / "in.jsonl", tmp_path / "out.jsonl", Silent()).answered == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


class StopsAfter(Silent):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        self.left -= done
        if self.left <= 0:
            self.cancel()


@pytest.mark.parametrize("cut", [0, 1, 9])
def test_a_stopped_run_goes_on_and_loses_and_doubles_nothing(tiny: LocalModel, tmp_path: Path, cut: int) -> None:
    source = written(tmp_path / "in.jsonl", *(line(number) for number in range(8)))
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with pytest.raises(Cancelled):
        run_file(tiny, source, out, StopsAfter(3))
    raw = partial.read_bytes()
    # Without its line end an answer is still whole, and its checksum says so.
    kept = raw.count(b"\n") - (cut > 1)
    partial.write_bytes(raw[: len(raw) - cut])
    report = run_file(tiny, source, out, Silent(), resume=True)
    assert report.known == kept and report.answered == 8 - kept
    assert [record["custom_id"] for record in records(out)] == [f"c{number}" for number in range(8)]
    assert [text_of(record) for record in records(out)] == [alone(tiny, number) for number in range(8)]


def test_an_answer_that_was_altered_is_made_again(tiny: LocalModel, tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.jsonl", line(0), line(1)), tmp_path / "out.jsonl"
    run_file(tiny, source, out, Silent())
    whole = records(out)
    forged = [*whole]
    forged[1] = json.loads(json.dumps(whole[1]).replace('"finish_reason": "length"', '"finish_reason": "stop"'))
    written(out, *(json.dumps(record) for record in forged))
    report = run_file(tiny, source, out, Silent(), resume=True)
    assert (report.known, report.answered) == (1, 1)
    assert text_of(records(out)[1]) == alone(tiny, 1)
