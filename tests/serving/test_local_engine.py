"""The engine of a model file: the same text as the model alone, under every policy that can be named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.paged_models import tiny_llama
from windlass.app.commands.serve import _milliseconds
from windlass.core.errors import UsageError
from windlass.models.generate import LocalModel
from windlass.serving.local_engine import POLICIES, local_engine
from windlass.serving.request import Request, SamplingParams, tokens_of
from windlass.serving.scheduler import FairShare, StallFree


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    path = tiny_llama(tmp_path_factory.mktemp("local"), 5, hidden_size=64, head_dim=16)
    loaded = LocalModel.load(path, engine="compiled", threads=1)
    yield loaded
    loaded.decoder.close()  # type: ignore[attr-defined]


CHATS = [[{"role": "user", "content": text}] for text in ("ships", "a windlass lifts", "ropes and ropes and ropes")]


@pytest.mark.parametrize(("policy", "slo"), [*((name, None) for name in POLICIES), ("stall-free", 0.5)])
def test_texts_are_those_of_the_model_alone(policy: str, slo: float | None, model: LocalModel) -> None:
    engine = local_engine(model, memory_bytes=1, policy=policy, tbt_slo_s=slo)
    for number, chat in enumerate(CHATS):
        prompt = tokens_of(model.tokenizer.chat(chat))
        engine.submit(Request(f"r{number}", prompt, SamplingParams(max_tokens=12, stop=("zz",)), tenant=f"t{number}"))
    events = engine.run_until_idle(2_000)
    for number, chat in enumerate(CHATS):
        text = "".join(event.text for event in events if event.request_id == f"r{number}")
        assert text == "".join(model.chat(chat, max_tokens=12, stop=("zz",)))
    engine.kv.check()
    assert engine.kv.stats().used == 0


def test_a_promised_time_is_kept_with_measured_steps(model: LocalModel) -> None:
    scheduler = local_engine(model, tbt_slo_s=0.25).scheduler
    assert isinstance(scheduler, FairShare) and isinstance(scheduler.inner, StallFree)
    assert scheduler.inner.tbt_slo_s == 0.25 and scheduler.inner.step_time is not None


def test_what_cannot_be_is_refused(model: LocalModel) -> None:
    with pytest.raises(UsageError, match="no policy"):
        local_engine(model, policy="fastest")
    with pytest.raises(UsageError, match="cannot keep a time"):
        local_engine(model, policy="hybrid", tbt_slo_s=0.1)
    with pytest.raises(UsageError, match="does not run on the compiled engine"):
        local_engine(LocalModel(_NumpyDecoder(model), model.tokenizer, "x"))  # type: ignore[arg-type]


class _NumpyDecoder:
    def __init__(self, model: LocalModel) -> None:
        self.config = model.decoder.config


@pytest.mark.parametrize(("text", "expected"), [("100ms", 100), ("0.1s", 100), ("80", 80), (" 2S ", 2000)])
def test_times_on_the_command_line(text: str, expected: int) -> None:
    assert _milliseconds(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "ms", "1e999s", "nan"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        _milliseconds(text)
