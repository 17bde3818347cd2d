"""The engine as a chat model: what the model says alone, for many at once, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.paged_models import tiny_llama
from windlass.core.errors import Busy, Cancelled, ContextLengthError, UsageError
from windlass.core.settings import ServerSettings
from windlass.models.generate import LocalModel
from windlass.serving.engine_chat import EngineChat

CHATS = [[{"role": "user", "content": text}] for text in ("ships", "a windlass lifts", "ropes and ropes and ropes")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    path = tiny_llama(tmp_path_factory.mktemp("chat"), 7, hidden_size=64, head_dim=16)
    loaded = LocalModel.load(path, engine="compiled", threads=1)
    yield loaded
    loaded.decoder.close()  # type: ignore[attr-defined]


@pytest.fixture
def chat(model: LocalModel) -> Iterator[EngineChat]:
    chat = EngineChat.start(model, ServerSettings())
    yield chat
    assert chat.engine.drain(10)
    chat.engine.engine.kv.check()
    assert chat.engine.snapshot().pages.used == 0
    chat.close()


def test_many_at_once_say_what_the_model_says_alone(chat: EngineChat, model: LocalModel) -> None:
    said: dict[int, str] = {}

    def ask(number: int) -> None:
        said[number] = "".join(chat.chat(CHATS[number % 3], max_tokens=20, stop=("zz",)))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: "".join(model.chat(CHATS[number % 3], max_tokens=20, stop=("zz",))) for number in range(9)}
    assert chat.count_chat(CHATS[0]) == model.count_chat(CHATS[0])


def test_a_seed_repeats(chat: EngineChat) -> None:
    texts = ["".join(chat.chat(CHATS[0], max_tokens=20, temperature=1.5, seed=seed)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_who_stops_listening_ends_the_work(chat: EngineChat) -> None:
    for piece in chat.chat(CHATS[0], max_tokens=200, temperature=1.5):
        assert piece
        break
    with pytest.raises(Cancelled):
        list(chat.chat(CHATS[0], max_tokens=200, temperature=1.5, cancel=lambda: True))


def test_what_cannot_be_is_refused(chat: EngineChat) -> None:
    with pytest.raises(ContextLengthError, match="context holds 256"):
        chat.chat([{"role": "user", "content": "word " * 400}])
    with pytest.raises(UsageError, match="temperature"):
        chat.chat(CHATS[0], temperature=-1)
    with pytest.raises(UsageError, match="weight"):
        chat.serve_tenants({"a": 0.0}, 4)


def test_a_closed_engine_says_so(model: LocalModel) -> None:
    chat = EngineChat.start(model, ServerSettings())
    chat.close()
    with pytest.raises(Busy):
        list(chat.chat(CHATS[0]))


def test_a_second_question_over_the_same_passages_takes_them(model: LocalModel, tmp_path: Path) -> None:
    passages = ["the first passage speaks of ships and ropes", "the second one of anchors and chains and of the sea"]

    def messages(question: str, *order: int) -> list[dict[str, str]]:
        body = "\n".join(passages[number] for number in order)
        return [{"role": "system", "content": "answer"}, {"role": "user", "content": f"{body}\n{question}"}]

    def ask(chat: EngineChat, question: str, *order: int) -> dict[str, float] | None:
        reply = chat.chat_over(messages(question, *order), passages, max_tokens=4)
        assert "".join(reply)
        return dict(reply.approximations.get("chunks", {})) or None

    first = EngineChat.start(model, ServerSettings(), tmp_path)
    assert ask(first, "which?", 0, 1) is None
    named = ask(first, "who?", 1, 0)
    first.close()
    assert named is not None and named["reused_tokens"] > 0
    later = EngineChat.start(model, ServerSettings(), tmp_path)
    assert ask(later, "where?", 1, 0) == named
    assert "".join(later.chat(messages("who?", 0, 1), max_tokens=4)) == "".join(
        model.chat(messages("who?", 0, 1), max_tokens=4)
    )
    later.close()
