"""The two indexes and their fusion, against brute force over the same passages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from windlass.core.progress import Silent
from windlass.core.workspace import Workspace
from windlass.retrieval.coverage import Coverage
from windlass.retrieval.dense import DenseIndex
from windlass.retrieval.hybrid import HybridRetriever
from windlass.retrieval.lexical import LexicalIndex, merge_words
from windlass.retrieval.match import match_expression
from windlass.retrieval.passage_store import load_passages
from windlass.retrieval.pipeline import Pipeline
from windlass.retrieval.types import Passage

DIM = 16


class HashEncoder:
    """Deterministic unit vectors: equal words, near vectors. Enough to test the index, not the meaning."""

    dim = DIM
    fingerprint = "hash-encoder"

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.stack([self._vector(text) for text in texts]).astype(np.float32)

    encode_queries = encode_passages

    def encode_tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64], None]:
        raise AssertionError("not used here")

    def _vector(self, text: str) -> NDArray[np.float64]:
        total = np.full(DIM, 1e-3)
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
            total += np.random.default_rng(seed).standard_normal(DIM)
        return total / np.linalg.norm(total)


def _fill(workspace: Workspace, texts: Sequence[str], *, rows: Sequence[str] = ()) -> None:
    encoder = HashEncoder()
    with workspace.acquire(), workspace.transaction() as connection:
        connection.execute(
            "INSERT INTO documents VALUES (1, 'h', 'text', 1, '', '', NULL, 0, 1, NULL, '[]', x'789c030000000001')"
        )
        for text in texts:
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            connection.execute(
                "INSERT INTO chunks (document_id, kind, start, end, heading, text, text_hash)"
                " VALUES (1, 'prose', 0, 1, '', ?, ?)",
                (text, digest),
            )
            vector = encoder.encode_passages([text])[0].astype(np.float16).tobytes()
            connection.execute(
                "INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)", (encoder.fingerprint, digest, vector)
            )
        for text in rows:
            connection.execute(
                "INSERT INTO chunks (document_id, kind, start, end, heading, text) VALUES (1, 'rows', 0, 1, '', ?)",
                (text,),
            )
        connection.execute("UPDATE counters SET value = value + 1")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path) as opened:
        yield opened


def test_dense_search_equals_brute_force_with_ties_by_id(workspace: Workspace) -> None:
    texts = [f"berth {n % 7} crane {n % 3}" for n in range(200)]  # many equal texts: many ties
    _fill(workspace, texts)
    encoder = HashEncoder()
    hits = DenseIndex(workspace, encoder).search(["berth 3 crane 1", "tide"], 25)
    stored = encoder.encode_passages(texts).astype(np.float16).astype(np.float32)
    for row, query in enumerate(["berth 3 crane 1", "tide"]):
        scores = stored @ encoder.encode_queries([query])[0]
        for passage, score in zip(hits.ids[row], hits.scores[row], strict=True):
            assert abs(scores[passage - 1] - score) < 1e-6
        assert sorted(hits.scores[row], reverse=True) == list(hits.scores[row])
        pairs = list(zip(-hits.scores[row], hits.ids[row], strict=True))
        assert pairs == sorted(pairs)
        assert hits.scores[row][-1] >= np.sort(scores)[-25] - 1e-6


def test_lexical_search_finds_stems_and_ranks_rare_words_first(workspace: Workspace) -> None:
    _fill(workspace, ["the crane was inspected", "inspections of cranes", "the berth", "a crane and a berth"])
    hits = LexicalIndex(workspace).search(["inspecting a crane"], 4)
    assert set(hits.ids[0][:2]) == {1, 2}
    assert hits.ids[0][2] == 4 and hits.ids[0][3] == -1
    idf = LexicalIndex(workspace).idf(["crane", "inspect", "unknown"])
    assert idf["unknown"] > idf["inspect"] > idf["crane"]


@given(st.text(max_size=200))
@settings(max_examples=300)
def test_no_question_is_a_syntax_error(text: str) -> None:
    expression = match_expression(text)
    assert expression == "" or expression.startswith('"')
    assert expression.count('"') % 2 == 0


@pytest.mark.parametrize("query", ['"', "a OR", "NEAR(", "col:x", "*", "'; DROP TABLE chunks; --", "🚢", "", "\0"])
def test_operators_and_symbols_are_only_text(workspace: Workspace, query: str) -> None:
    _fill(workspace, ["drop the table at the berth"])
    hits = LexicalIndex(workspace).search([query], 3)
    assert hits.ids.shape == (1, 3)


def test_the_score_is_the_sum_of_its_three_parts(workspace: Workspace) -> None:
    texts = [f"crane number {n}" for n in range(30)]
    _fill(workspace, texts, rows=["vessel: Maren Kirstine; crane: 7"])
    encoder = HashEncoder()
    lexical, dense = LexicalIndex(workspace), DenseIndex(workspace, encoder)
    query = "which crane did the Maren Kirstine use"
    hits = HybridRetriever(workspace, lexical, dense).search([query], 31, trace=True)
    assert hits.trace is not None
    fused = {
        passage: sum(1 / (5 + rank) for rank in ranks.values()) * (2 if passage == 31 else 1)
        for passage, ranks in hits.trace[0].items()
    }
    passages = load_passages(workspace, list(fused))
    coverage = Coverage(query, lexical.idf)
    question = encoder.encode_queries([query])[0]
    for passage, score in zip(hits.ids[0], hits.scores[0], strict=True):
        passage = int(passage)
        near = encoder.encode_passages([texts[passage - 1]])[0] @ question if passage != 31 else 0.4
        expected = fused[passage] / max(fused.values()) + float(near) + coverage.of(passages[passage])
        assert abs(score - expected) < 2e-3  # vectors are stored as float16
    assert hits.ids[0][0] == 31  # a row that holds the name is not punished for having no vector


def _passage(text: str, kind: str = "prose", title: str = "", source: str = "a.txt") -> Passage:
    return Passage(1, 1, source, 0, len(text), title, text, kind)


def test_coverage_is_the_weighted_share_of_the_question() -> None:
    idf = {"crane": 3.0, "inspected": 1.0}
    coverage = Coverage("When was the crane inspected?", lambda words: {word: idf.get(word, 0.0) for word in words})
    assert coverage.of(_passage("Cranes are inspected.")) == 1.0
    assert coverage.of(_passage("the crane")) == pytest.approx(3 / 4)
    assert coverage.of(_passage("they were inspected", title="Cranes")) == 1.0
    assert coverage.of(_passage("they were inspected", source="log/crane_4.txt")) == 1.0
    assert coverage.of(_passage("nothing")) == 0.0
    assert Coverage("the of and?", lambda words: dict.fromkeys(words, 1.0)).of(_passage("the of and")) == 0.0


def test_rows_are_judged_by_their_best_row() -> None:
    coverage = Coverage("Maren Kirstine draught", lambda words: dict.fromkeys(words, 1.0))
    spread = "name: Maren; draught: 7\nname: Kirstine; draught: 8"
    together = "name: Sea Lark; draught: 7\nname: Maren Kirstine; draught: 8"
    assert coverage.of(_passage(spread, "rows")) == pytest.approx(2 / 3)
    assert coverage.of(_passage(together, "rows")) == 1.0


@pytest.mark.parametrize("written", ["2024-12-24", "24 December 2024", "December 24, 2024", "24.12.2024"])
def test_a_date_counts_however_it_is_written(written: str) -> None:
    coverage = Coverage("How high was the water on Christmas Eve 2024?", lambda words: dict.fromkeys(words, 1.0))
    right = coverage.of(_passage(f"date: {written}; height: 5.32", "rows"))
    assert right > coverage.of(_passage("date: 2024-12-25; height: 5.32", "rows"))
    assert right > coverage.of(_passage("date: 2023-12-24; height: 5.32", "rows"))


@pytest.mark.parametrize(
    ("query", "phrase"),
    [
        ("Who sent INV-2024-00603?", '"inv 2024 00603"'),
        ("What is the IMO number of the Maren Kirstine?", '"maren kirstine"'),
        ("the draught at South Quay 2", '"south quay 2"'),
        ("restart radar 2", '"radar 2"'),
        ("tide on 3 May 2024", '"2024 05 03"'),
        ("tide on Boxing Day 2023", '"2023 12 26"'),
    ],
)
def test_things_that_belong_together_are_phrases(query: str, phrase: str) -> None:
    assert phrase in match_expression(query).split(" OR ")


def test_without_an_encoder_search_is_lexical(workspace: Workspace) -> None:
    _fill(workspace, ["crane", "berth"])
    lexical = LexicalIndex(workspace)
    fused = HybridRetriever(workspace, lexical, None).search(["berth"], 2)
    assert list(fused.ids[0]) == list(lexical.search(["berth"], 2).ids[0])


def test_an_empty_index_finds_nothing(workspace: Workspace) -> None:
    hits = HybridRetriever(workspace, LexicalIndex(workspace), DenseIndex(workspace, HashEncoder())).search(["x"], 5)
    assert list(hits.ids[0]) == [-1] * 5


def test_words_follow_passages_within_a_transaction(workspace: Workspace) -> None:
    _fill(workspace, ["crane one", "crane two"])
    insert = "INSERT INTO chunks (document_id, kind, start, end, heading, text) VALUES (1, 'rows', 0, 1, '', ?)"
    with workspace.acquire():
        with workspace.transaction() as connection:
            connection.executemany(insert, [("crane three",), ("crane four",)])
            connection.execute(
                "DELETE FROM chunks WHERE text IN ('crane two', 'crane four')"
            )  # the last had no words yet
            connection.execute("UPDATE counters SET value = value + 1")
        assert workspace.check_integrity() == []
        with workspace.transaction() as connection:
            connection.execute("DELETE FROM chunks WHERE text = 'crane three'")  # its number is given to the next
            connection.execute(insert, ("crane five",))
            connection.execute("UPDATE counters SET value = value + 1")
    assert workspace.check_integrity() == []
    found = LexicalIndex(workspace).search(["crane"], 9).ids[0]
    with workspace.reading() as connection:
        texts = {row[0] for row in connection.execute("SELECT text FROM chunks")}
        assert texts == {"crane one", "crane five"}
        assert {row[0] for row in connection.execute("SELECT id FROM chunks")} == {
            int(hit) for hit in found if hit >= 0
        }


def test_merging_frees_what_was_deleted_and_changes_nothing_that_is_found(workspace: Workspace) -> None:
    texts = [f"crane {n} of berth {n % 7} lifts {n * 37} tons" for n in range(600)]
    for first in range(0, 600, 60):
        _fill_more(workspace, texts[first : first + 60])
    with workspace.acquire(), workspace.transaction() as connection:
        connection.execute("DELETE FROM chunks WHERE id > 150")
    lexical, before = LexicalIndex(workspace), _words_size(workspace)
    found = lexical.search(["crane berth 3", "lifts 111"], 40)
    with workspace.acquire():
        assert merge_words(workspace, Silent()) > 0
        assert merge_words(workspace, Silent()) == 0
    again = lexical.search(["crane berth 3", "lifts 111"], 40)
    assert np.array_equal(found.ids, again.ids) and np.array_equal(found.scores, again.scores)
    assert _words_size(workspace) < before / 3


def test_a_large_deletion_clears_the_word_index(tmp_path: Path) -> None:
    for n in range(10):
        (tmp_path / f"{n}.txt").write_text(f"The hall {n} is painted.\n")
    with Pipeline.open(tmp_path, encoder=None, model=None) as pipeline:
        pipeline.index(embed=False)
        for n in range(8):
            (tmp_path / f"{n}.txt").unlink()
        pipeline.index(embed=False)
        assert {hit.passage.source for hit in pipeline.search("hall painted", 5)} == {"8.txt", "9.txt"}
        with pipeline.workspace.reading() as connection:
            assert connection.execute("SELECT count(DISTINCT segid) FROM lexical_idx").fetchone()[0] == 1


def _fill_more(workspace: Workspace, texts: Sequence[str]) -> None:
    with workspace.acquire(), workspace.transaction() as connection:
        connection.execute(
            "INSERT OR IGNORE INTO documents"
            " VALUES (1, 'h', 'text', 1, '', '', NULL, 0, 1, NULL, '[]', x'789c030000000001')"
        )
        connection.executemany(
            "INSERT INTO chunks (document_id, kind, start, end, heading, text) VALUES (1, 'rows', 0, 1, '', ?)",
            [(text,) for text in texts],
        )
        connection.execute("UPDATE counters SET value = value + 1")


def _words_size(workspace: Workspace) -> int:
    with workspace.reading() as connection:
        return int(connection.execute("SELECT sum(length(block)) FROM lexical_data").fetchone()[0])


def test_an_index_of_another_encoder_is_said_aloud(tmp_path: Path) -> None:
    class OtherEncoder(HashEncoder):
        fingerprint = "another-encoder"

    (tmp_path / "a.txt").write_text("The harbour master signs.")
    with Pipeline.open(tmp_path, encoder=HashEncoder(), model=None) as pipeline:
        pipeline.index()
        assert pipeline.notices == ()
    with Pipeline.open(tmp_path, encoder=OtherEncoder(), model=None) as pipeline:
        assert [hit.passage.source for hit in pipeline.search("harbour master", 3)] == ["a.txt"]
        [notice] = pipeline.notices
        assert "another model" in notice and "`windlass up`" in notice
        pipeline.index()
        assert pipeline.notices == ()
