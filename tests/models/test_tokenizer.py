"""Tokenizer from both formats, the incremental detokenizer, and chat templates that do not trust their input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.tiny_models import CHAT, CONTROLS, bpe_vocabulary, hf_config, random_weights, write_folder
from windlass.core.errors import ModelError, UsageError
from windlass.models.chat_template import ChatTemplate
from windlass.models.tokenizer import Tokenizer, tokenizer_from_folder, tokenizer_from_gguf

PIECES, MERGES = bpe_vocabulary()


def metadata(**changes: Any) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.token_type": [3] * len(CONTROLS) + [1] * (len(PIECES) - len(CONTROLS)),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHAT,
        **changes,
    }


def sentencepiece(**changes: Any) -> dict[str, Any]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abehst", "th", "the", "\u2581the"]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) - 259)]
    scores = [0.0] * 259 + [-10.0] * 7 + [-1.0, -2.0, -3.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **changes,
    }


TOKENIZERS = {
    "smollm": tokenizer_from_gguf(metadata(), "here"),
    "gpt-2": tokenizer_from_gguf(metadata(**{"tokenizer.ggml.pre": "gpt-2"}), "here"),
    "llama-bpe": tokenizer_from_gguf(metadata(**{"tokenizer.ggml.pre": "llama-bpe"}), "here"),
    "sentencepiece": tokenizer_from_gguf(sentencepiece(), "here"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_text_survives_encoding_and_streams_without_broken_characters(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    if name == "sentencepiece":  # the format writes a space as U+2581 and cannot tell the two apart
        text = text.replace("\u2581", " ")
    assert tokenizer.decode(ids) == text
    stream = tokenizer.detokenizer()
    pieces = [stream.add(token) for token in ids] + [stream.finish()]
    assert not any("\ufffd" in piece for piece in pieces if "\ufffd" not in text)
    assert "".join(pieces).removeprefix(" " if name == "sentencepiece" else "") == text


def test_half_of_a_surrogate_pair_is_no_error() -> None:
    tokenizer = TOKENIZERS["smollm"]
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


def test_a_character_is_held_until_it_is_whole() -> None:
    tokenizer = TOKENIZERS["smollm"]
    stream = tokenizer.detokenizer()
    ids = tokenizer.encode("\N{ROCKET}")
    assert [stream.add(token) for token in ids] == ["", "", "", "\N{ROCKET}"]
    stream.add(ids[0])
    assert stream.finish() == "\ufffd"


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in tokenizer.encode(text)]


def test_merges_digits_and_spaces_follow_the_family() -> None:
    assert spelled(TOKENIZERS["smollm"], "the ship 42") == ["the", " ship", " ", "4", "2"]
    assert TOKENIZERS["smollm"].encode("the ship") == [PIECES.index("the"), PIECES.index("Ġship")]
    assert TOKENIZERS["sentencepiece"].vocabulary.pieces[TOKENIZERS["sentencepiece"].encode("the")[0]] == "\u2581the"
    assert TOKENIZERS["sentencepiece"].prompt("the")[0] == 1 and TOKENIZERS["smollm"].prompt("the")[0] != 0


def test_folder_and_gguf_agree(tmp_path: Path) -> None:
    config = hf_config()
    folder = tokenizer_from_folder(write_folder(tmp_path, config, random_weights(config)))
    same = TOKENIZERS["gpt-2"]
    messages = [{"role": "user", "content": "the harbour, 12 ships \N{ROCKET}"}]
    assert folder.encode("the sea is b\u00e9\n\n  deep") == same.encode("the sea is b\u00e9\n\n  deep")
    assert folder.chat(messages) == same.chat(messages)
    assert (folder.bos_id, folder.end_ids, folder.size) == (same.bos_id, same.end_ids, same.size)


def test_chat_renders_the_template_with_control_tokens() -> None:
    tokenizer = TOKENIZERS["smollm"]
    ids = tokenizer.chat([{"role": "user", "content": "the sea"}])
    expected = [1, *tokenizer.encode("user\nthe sea"), 2, *tokenizer.encode("\n"), 1, *tokenizer.encode("assistant\n")]
    assert ids == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*CONTROLS, "the", "\n", "\U000f1e00", "7", "\U000f1e01", "<|im_"]), max_size=8))
def test_a_document_cannot_forge_control_tokens(parts: list[str]) -> None:
    tokenizer, content = TOKENIZERS["smollm"], "".join(parts)
    ids = tokenizer.chat([{"role": "user", "content": content}])
    assert [token for token in ids if token < 3] == [1, 2, 1]
    assert content in tokenizer.decode(ids)


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": 1, "content": "a"}], [{"content": "a"}]])
def test_malformed_conversations_are_refused(messages: list[Any]) -> None:
    with pytest.raises(UsageError):
        TOKENIZERS["smollm"].chat(messages)


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.model": "rwkv"}, {"tokenizer.ggml.tokens": None}, {"tokenizer.ggml.merges": ["one two three"]},
        {"tokenizer.ggml.pre": "unheard-of"}, {"tokenizer.ggml.token_type": [1]}, {"tokenizer.ggml.merges": ["zz yy"]},
        {"tokenizer.chat_template": "{% for %}"},
    ],
)  # fmt: skip
def test_unusable_tokenizer_metadata_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        tokenizer_from_gguf(metadata(**change), "here")


MALICE = {
    "dunder": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute filter": "{{ 'a'|attr('__class__') }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "globals": "{{ raise_exception.__globals__['os'] }}",
    "include": "{% include '/etc/passwd' %}",
    "silent loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loud loop": "{% for a in range(99999) %}{% for b in range(999) %}{{ 'a' * 999 }}{% endfor %}{% endfor %}",
    "repeat": "{{ 'a' * 1000000000 }}",
    "repeat list": "{{ [0] * 1000000000 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "padding": "{{ 'a'.ljust(1000000000) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "mutation": "{{ messages.append(1) }}",
    "range": "{{ range(10000000)|list }}",
}  # fmt: skip


@pytest.mark.parametrize("name", MALICE)
def test_hostile_templates_are_stopped(name: str) -> None:
    with pytest.raises(ModelError):
        ChatTemplate(MALICE[name]).render([{"role": "user", "content": "hi"}], {})


def test_a_template_that_is_too_long_or_deep_is_refused() -> None:
    with pytest.raises(ModelError):
        ChatTemplate("a" * 70_000)
    with pytest.raises(ModelError):
        ChatTemplate("{{ " + "(" * 5000 + ")" * 5000 + " }}")


def test_what_templates_commonly_use_works() -> None:
    source = (
        "{%- set system = messages[0] if messages[0].role == 'system' else none -%}"
        "{%- if system and messages|length < 2 -%}{{ raise_exception('no user message') }}{%- endif -%}"
        "{%- for m in messages if m.role != 'system' -%}{%- if not loop.first -%}{{ eos_token }}{%- endif -%}"
        "{{ m.content.strip().split('|')[-1] | trim }}{{ {'role': m.role} | tojson }}{%- endfor -%}"
    )
    template = ChatTemplate(source)
    messages = [{"role": "user", "content": " x| a "}, {"role": "assistant", "content": "b"}]
    assert template.render(messages, {"eos_token": "</s>"}) == 'a{"role": "user"}</s>b{"role": "assistant"}'
    with pytest.raises(UsageError, match="no user message"):
        template.render([{"role": "system", "content": "s"}], {})


def test_a_model_without_template_still_chats() -> None:
    tokenizer = tokenizer_from_gguf(metadata(**{"tokenizer.chat_template": None}), "here")
    assert tokenizer.decode(tokenizer.chat([{"role": "user", "content": "the sea"}])) == "User: the sea\n\nAssistant:"


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(max_size=12), max_size=4), between=st.lists(st.text(max_size=6), min_size=5, max_size=5))
def test_texts_that_are_cut_out_have_the_same_tokens_everywhere(texts: list[str], between: list[str]) -> None:
    tokenizer = TOKENIZERS["smollm"]
    content = between[0] + "".join(text + after for text, after in zip(texts, between[1:], strict=False))
    pieces = tokenizer.chat_pieces([{"role": "user", "content": content}], texts)
    for tokens, number in pieces:
        if number is not None:
            assert tokens == tokenizer.encode(texts[number])
    whole = [token for tokens, _ in pieces for token in tokens]
    plain = tokenizer.chat([{"role": "user", "content": content}])
    assert tokenizer.decode(whole) == tokenizer.decode(plain)
    # No text, whatever it spells, makes a control token, or breaks one of the template's.
    assert [token for token in whole if token in tokenizer.vocabulary.control] == [
        token for token in plain if token in tokenizer.vocabulary.control
    ]


def test_a_text_may_spell_a_control_token_or_a_word_of_the_template() -> None:
    tokenizer = TOKENIZERS["smollm"]
    messages = [{"role": "user", "content": f"see {CONTROLS[1]} and user"}]
    cut = tokenizer.chat_pieces(messages, ["user", CONTROLS[1], f"{CONTROLS[1]} and"])
    assert [number for _, number in cut if number is not None] == [2, 0]
    controls = [token for tokens, _ in cut for token in tokens if token in tokenizer.vocabulary.control]
    assert controls == [token for token in tokenizer.chat(messages) if token in tokenizer.vocabulary.control]
