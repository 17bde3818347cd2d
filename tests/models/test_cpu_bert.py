"""The encoder with 8-bit layers: near the float64 reference, the same in any company, as good at finding."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models import test_encoder as tiny
from windlass.core.errors import ModelError
from windlass.models import encoder, store
from windlass.models.encoder import BertEncoder

TEXTS = [" ".join(tiny.WORDS[(i * 7 + j * (i + 3)) % 14] for j in range(4 + 5 * i)) for i in range(9)]


@pytest.fixture(scope="module")
def sizes() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HIDDEN", 64), ("HEADS", 2), ("INNER", 128), ("POSITIONS", 60)):
            patch.setattr(tiny, name, value)
        yield


@pytest.fixture(scope="module")
def folder(sizes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bytes")
    tiny.make_folder(made, scale=0.1)
    return made


@pytest.fixture(scope="module")
def weights(sizes: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return tiny.make_folder(tmp_path_factory.mktemp("weights"), scale=0.1)


def test_states_are_near_the_reference(folder: Path, weights: dict[str, np.ndarray]) -> None:
    made = BertEncoder.load(folder, precision="int8")
    vectors = made.encode_passages(TEXTS)
    wanted = tiny.expected(weights, TEXTS, 60)
    assert (vectors * wanted).sum(1).min() >= 0.9995
    assert np.abs(vectors - wanted).max() > 1e-6  # it was not the float32 model that ran
    tokens, offsets, attention = made.encode_tokens(TEXTS)
    exact, same_offsets, received = BertEncoder.load(folder).encode_tokens(TEXTS)
    np.testing.assert_array_equal(offsets, same_offsets)
    assert (tokens * exact).sum(1).min() >= 0.998
    np.testing.assert_allclose(attention, received, rtol=0.1)


def test_questions_and_short_passages_stay_exact(folder: Path) -> None:
    rounded, exact = BertEncoder.load(folder, precision="int8"), BertEncoder.load(folder)
    np.testing.assert_array_equal(rounded.encode_queries(TEXTS), exact.encode_queries(TEXTS))
    short = ["", "ship", "the ship berths"]
    np.testing.assert_array_equal(rounded.encode_passages(short), exact.encode_passages(short))


@settings(max_examples=25, deadline=None)
@given(
    chosen=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=12),
    batch=st.integers(60, 300),
    threads=st.integers(1, 3),
)
def test_a_text_has_the_same_bits_in_any_company(folder: Path, chosen: list[str], batch: int, threads: int) -> None:
    made = BertEncoder.load(folder, threads=threads, precision="int8")
    alone = {text: made.encode_passages([text])[0] for text in set(chosen)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "_BYTE_BATCH_TOKENS", batch)
        together = BertEncoder.load(folder, threads=threads, precision="int8").encode_passages(chosen)
    for text, vector in zip(chosen, together, strict=True):
        if len(text.split()) > encoder._SHORT_TOKENS:  # BLAS may sum the others in another order
            np.testing.assert_array_equal(vector, alone[text])


def test_the_fingerprint_tells_precisions_apart(folder: Path, tmp_path: Path) -> None:
    assert BertEncoder.load(folder).fingerprint != BertEncoder.load(folder, precision="int8").fingerprint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "HIDDEN", 24)
        patch.setattr(tiny, "HEADS", 3)
        tiny.make_folder(tmp_path / "narrow")
    narrow = BertEncoder.load(tmp_path / "narrow", precision="int8")
    assert narrow.fingerprint == BertEncoder.load(tmp_path / "narrow").fingerprint
    assert np.isfinite(narrow.encode_passages(TEXTS)).all()


def test_weights_that_are_not_numbers_are_named(sizes: None, tmp_path: Path) -> None:
    tiny.make_folder(tmp_path / "m")
    tensors = safetensors.numpy.load_file(tmp_path / "m" / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = np.inf
    safetensors.numpy.save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors.*not numbers"):
        BertEncoder.load(tmp_path / "m", precision="int8").encode_passages(TEXTS)


@pytest.mark.models
@pytest.mark.timeout(300)
def test_the_default_model_keeps_its_vectors() -> None:
    """The length and kind of text varies; the words are drawn by hand, so there is no model that was tuned on them."""
    from tests.models.test_encoder_oracle import varied_texts

    folder = store.locate("all-minilm-l6-v2")
    exact, rounded = BertEncoder.load(folder), BertEncoder.load(folder, precision="int8")
    texts = varied_texts()
    assert (exact.encode_passages(texts) * rounded.encode_passages(texts)).sum(1).min() >= 0.995


@pytest.mark.models
@pytest.mark.shared
@pytest.mark.timeout(900)
def test_ranking_on_cranfield_is_as_good() -> None:
    from windlass.retrieval.metrics import ndcg_at

    data = Path(os.environ["WINDLASS_SHARED_DATA"]) / "retrieval_graphs"

    def lines(name: str) -> list[str]:
        with gzip.open(data / name, "rt", encoding="utf-8") as file:
            return file.read().splitlines()

    passages = [json.loads(line) for line in lines("cranfield_corpus.jsonl.gz")]
    questions = [json.loads(line) for line in lines("cranfield_queries.jsonl.gz")]
    grades: dict[str, dict[str, int]] = {}
    for line in lines("cranfield_qrels.tsv.gz"):
        question, passage, grade = line.split("\t")
        grades.setdefault(question, {})[passage] = int(grade)
    folder = store.locate("all-minilm-l6-v2")
    found = {}
    for precision in ("float32", "int8"):
        made = BertEncoder.load(folder, precision=precision)
        vectors = made.encode_passages([f"{row['title']}\n{row['text']}" for row in passages])
        scores = made.encode_queries([row["text"] for row in questions]) @ vectors.T
        ranks = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        found[precision] = np.mean(
            [
                ndcg_at([str(passages[i]["id"]) for i in row], grades.get(str(question["id"]), {}), 10)
                for row, question in zip(ranks, questions, strict=True)
            ]
        )
    assert abs(found["int8"] - found["float32"]) <= 0.002, found
