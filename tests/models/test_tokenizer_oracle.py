"""Tokenizers built from GGUF metadata against the libraries that define them, on models trained here.

`WINDLASS_TEST_SPM` may name a real SentencePiece model, Llama 2's for one, which is then held to the same lines.
"""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from tests.models.default_model import default_model
from windlass.models.gguf import GGUFSource
from windlass.models.tokenizer import tokenizer_from_gguf

pytestmark = pytest.mark.peers

PARTS = [
    "the", " the", "The", "harbour", " harbours", "ship", "Ship's", " it's", "I'LL", " we'd", "don't", "  ", "   ",
    " ", "\t", "\n", "\n\n", "\r\n", " \n ", "1", "12", " 1234", "2026", "3.14", "1,000,000", "x1y22z333",
    "\u0663\u0664", "\u2460", "\u65e5\u672c\u8a9e", "\u00e9t\u00e9", "e\u0301", "\u00df", "\u0130",
    "\u4f60\u597d\u3002",     "\U0001f600", "\U0001f469\u200d\U0001f680",
    "\u00a0", "\u200b", "\u3000", "...", "!?", "(", ")", "->", "==",
    "#include", "_snake_case", "CamelCase", "http://a.b/c?d=e", "\x00", "\x7f", "\U00010348", "\ufb01",
    "\u0e44\u0e17\u0e22", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u05e9\u05dc\u05d5\u05dd",
]  # fmt: skip


def lines(count: int, seed: int = 1) -> Iterator[str]:
    """Every assigned character up to U+0800 with a neighbour, then mixtures of the awkward parts.

    What an unassigned one counts as differs between versions of Unicode, so between libraries.
    """
    for code in range(1, 0x800):
        if unicodedata.category(chr(code)) != "Cn":
            yield f"a{chr(code)}b"
    chance = random.Random(seed)
    for _ in range(count):
        yield "".join(chance.choice(PARTS) for _ in range(chance.randrange(1, 16)))
    yield from ("", " ", "  ", " a", "a ", "  a  b  ")


def training_text() -> list[str]:
    chance = random.Random(0)
    words = "the harbour ship pilot tide berth crane anchor lift water north wind master vessel quay rope".split()
    return [" ".join(chance.choice(words) for _ in range(12)).capitalize() + ". " + line for line in lines(3000, 7)]


def sentencepiece_metadata(processor: Any) -> dict[str, Any]:
    def kind(token: int) -> int:
        if processor.is_unknown(token):
            return 2
        if processor.is_control(token):
            return 3
        return 6 if processor.is_byte(token) else 1

    count = range(processor.get_piece_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(token) for token in count],
        "tokenizer.ggml.scores": [processor.get_score(token) for token in count],
        "tokenizer.ggml.token_type": [kind(token) for token in count],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small model with the settings of Llama: BPE, bytes for the unknown, single digits, spaces kept."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spm")
    (folder / "text").write_text("\n".join(line.replace("\x00", "").replace("\n", " ") for line in training_text()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "m"), model_type="bpe", vocab_size=1200,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, character_coverage=0.99, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def assert_same(processor: Any, count: int) -> None:
    ours = tokenizer_from_gguf(sentencepiece_metadata(processor), "here")
    for line in lines(count):
        ids = processor.encode(line)
        assert ours.encode(line) == ids, line
        assert ours.prompt(line) == [1, *ids]
        if "\u2581" not in line:
            assert ours.decode(ids) == line


def test_sentencepiece_encodes_as_the_library(trained: Any) -> None:
    assert_same(trained, 8000)


def test_a_real_sentencepiece_model_encodes_as_the_library() -> None:
    path = os.environ.get("WINDLASS_TEST_SPM")
    if not path:
        pytest.skip("WINDLASS_TEST_SPM names no model")
    assert_same(pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=path), 10_000)


@pytest.fixture(scope="module")
def byte_level() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges of a byte-level model trained without any splitting rule but spaces, so that rules matter."""
    trainer = BpeTrainer(
        vocab_size=1500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, special_tokens=[]
    )
    fast = FastTokenizer(BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.train_from_iterator([part for line in training_text() for part in line.split("|")], trainer)
    import json

    model = json.loads(fast.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return pieces, [tuple(pair) for pair in model["merges"]]


def byte_level_metadata(byte_level: Any, rule: str) -> dict[str, Any]:
    pieces, merges = byte_level
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": [1] * len(pieces),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.eos_token_id": 0,
    }


def naive_bpe(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    parts = list(word)
    while len(parts) > 1:
        best = min(pairwise(parts), key=lambda pair: ranks.get(pair, 1 << 30))
        if best not in ranks:
            break
        at, merged = 0, []
        while at < len(parts):
            if tuple(parts[at : at + 2]) == best:
                merged.append(parts[at] + parts[at + 1])
                at += 2
            else:
                merged.append(parts[at])
                at += 1
        parts = merged
    return parts


# As their authors published them, run by another regular-expression engine than ours.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(("rule", "pattern", "whole_words"), [("llama-bpe", LLAMA3, True), ("gpt-2", GPT2, False)])
def test_byte_level_splits_as_published(byte_level: Any, rule: str, pattern: str, whole_words: bool) -> None:
    regex = pytest.importorskip("regex")
    from windlass.models.tokenizer import BYTE_OF_CHARACTER

    pieces, merges = byte_level
    ours = tokenizer_from_gguf(byte_level_metadata(byte_level, rule), "here")
    letters = {byte: letter for letter, byte in BYTE_OF_CHARACTER.items()}
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = {piece: token for token, piece in enumerate(pieces)}
    for line in lines(3000):
        expected: list[int] = []
        for word in regex.findall(pattern, line):
            spelled = "".join(letters[byte] for byte in word.encode())
            known = whole_words and spelled in ids
            expected += [ids[spelled]] if known else [ids[part] for part in naive_bpe(spelled, ranks)]
        assert ours.encode(line) == expected, line


def test_qwen2_encodes_as_transformers(byte_level: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pieces, merges = byte_level
    theirs = transformers.Qwen2Tokenizer(
        vocab={piece: token for token, piece in enumerate(pieces)}, merges=list(merges)
    )
    ours = tokenizer_from_gguf(byte_level_metadata(byte_level, "qwen2"), "here")
    for line in lines(5000):
        assert ours.encode(line) == theirs(line, add_special_tokens=False).input_ids, line


@pytest.mark.models
def test_the_default_model_encodes_as_llama_cpp() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    path = default_model()
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    source = GGUFSource(path)
    ours = tokenizer_from_gguf(source.metadata, str(path))
    for line in lines(10_000):
        assert ours.encode(line) == theirs.tokenize(line.encode(), add_bos=False, special=False), line
