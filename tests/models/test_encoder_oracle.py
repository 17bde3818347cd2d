"""The default encoder against sentence-transformers on the same folder, in float32."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from windlass.core.errors import ModelError
from windlass.models import store
from windlass.models.encoder import BertEncoder

pytestmark = [pytest.mark.models, pytest.mark.peers, pytest.mark.timeout(600)]

ODD = [
    "",
    "a",
    "  \n\t ",
    "x" * 5000,
    "word " * 3000,
    "héllo wörld, ñandú, İstanbul",
    "日本語のテキストと漢字",
    "مرحبا بالعالم",
    "emoji 😀🚢⚓👩‍👩‍👧",
    "\x00\x01 control \x7f characters\u200b",
    "[CLS] literal [SEP] specials [MASK]",
    "ﬁ ligature, ① circled, e\u0301 combined",
    "1,234.56 USD; 2026-11-22T20:00:00Z; v1.2.3-rc4",
    "SELECT * FROM berths WHERE depth > 12;",
    "a-b_c/d\\e|f" * 40,
]


def varied_texts() -> list[str]:
    draw = random.Random(0)
    words = "the vessel harbour Crane tariff of 42 tide's moorings uncharacteristically naïve berth; (east) a".split()
    sizes = [draw.choice((3, 8, 20, 50, 120, 190, 400)) for _ in range(100 - len(ODD))]
    return ODD + [" ".join(draw.choice(words) for _ in range(size)) for size in sizes]


@pytest.fixture(scope="module")
def oracle() -> tuple[BertEncoder, Any]:
    peer = pytest.importorskip("sentence_transformers")
    try:
        folder = store.locate("all-minilm-l6-v2")
    except ModelError as error:
        pytest.skip(str(error))
    return BertEncoder.load(folder), peer.SentenceTransformer(str(folder), device="cpu")


def test_vectors_equal_those_of_sentence_transformers(oracle: tuple[BertEncoder, Any]) -> None:
    ours, peer = oracle
    texts = varied_texts()
    expected = peer.encode(texts, normalize_embeddings=True)
    together = ours.encode_passages(texts)
    alone = np.concatenate([ours.encode_queries([text]) for text in texts[:30]])
    for vectors in (together, alone):
        wanted = expected[: len(vectors)].astype(np.float64)
        assert (vectors * wanted).sum(1).min() >= 0.99999
        np.testing.assert_allclose(vectors, wanted, atol=5e-6)


def test_token_vectors_equal_its_last_states(oracle: tuple[BertEncoder, Any]) -> None:
    ours, peer = oracle
    texts = varied_texts()[:30]
    states = peer.encode(texts, output_value="token_embeddings")
    vectors, offsets, attention = ours.encode_tokens(texts)
    for number, expected in enumerate(states):
        rows = slice(offsets[number], offsets[number + 1])
        inner = expected.numpy()[1:-1]
        assert len(vectors[rows]) == len(inner)
        if len(inner):
            unit = inner / np.linalg.norm(inner, axis=1, keepdims=True)
            np.testing.assert_allclose(vectors[rows], unit, atol=2e-5)
            assert attention[rows].sum() == pytest.approx(1, abs=1e-4)
