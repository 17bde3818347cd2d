"""Search in two rounds over a folder: what the second round finds, how it says so, and what a plain search misses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from windlass.core.errors import ModelError
from windlass.retrieval.pipeline import Pipeline
from windlass.retrieval.terms import stems


class BagEncoder:
    """Sums of word vectors."""

    dim = 64
    fingerprint = "bag"

    def encode_passages(self, texts: Sequence[str], progress: object = None) -> NDArray[np.float32]:
        return np.stack([self._vector(text) for text in texts])

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.encode_passages(texts)

    def _vector(self, text: str) -> NDArray[np.float32]:
        total = np.full(self.dim, 1e-3)
        for word in sorted(stems(text)):
            seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
            total += np.random.default_rng(seed).standard_normal(self.dim)
        return (total / np.linalg.norm(total)).astype(np.float32)


@pytest.fixture
def pipeline(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    notes = "# The flood\n\nThe sluice in the north dock was closed during the flood by Okonjo.\n"
    people = "# Okonjo\n\nRigger since 1998, extension 254, lives beside the mill.\n"
    (tmp_path / "notes.md").write_text(notes)
    (tmp_path / "people.md").write_text(people)
    for number in range(9):
        (tmp_path / f"flood {number}.md").write_text(
            f"# Report {number}\n\nDock {number} was painted by the north crew.\n"
        )
    state = tmp_path_factory.mktemp("state")
    with Pipeline.open(tmp_path, state=state, encoder=BagEncoder(), model=None) as opened:  # type: ignore[arg-type]
        opened.index()
        yield opened


QUESTION = "Who closed the sluice in the north dock during the flood?"


def test_the_second_round_follows_a_name_and_says_so(pipeline: Pipeline) -> None:
    assert "people.md" not in {hit.passage.source for hit in pipeline.search(QUESTION, 4, mode="dense")}
    hits = pipeline.search(QUESTION, 4, mode="hops")
    assert hits[0].passage.source == "notes.md" and hits[0].via is None and hits[0].ranks == {"dense": 1}
    linked = next(hit for hit in hits if hit.passage.source == "people.md")
    assert linked.via is not None and set(linked.ranks) == {"hops"}
    assert (linked.via.name, linked.via.file, linked.via.origin) == ("Okonjo", "notes.md", hits[0].passage.id)
    assert len({hit.passage.id for hit in hits}) == len(hits) == 4
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert all((hit.via is None) == ("dense" in hit.ranks) for hit in hits)


def test_a_store_smaller_than_the_question_and_one_without_vectors(tmp_path: Path, pipeline: Pipeline) -> None:
    everything = pipeline.search(QUESTION, 50, mode="hops")
    assert len(everything) == pipeline.overview().passages
    with Pipeline.open(tmp_path / "..", state=tmp_path / "other", encoder=None, model=None) as bare:
        with pytest.raises(ModelError, match="hops search needs an encoder"):
            bare.search(QUESTION, mode="hops")
    (tmp_path / "empty").mkdir()
    with Pipeline.open(tmp_path / "empty", encoder=BagEncoder(), model=None) as bare:  # type: ignore[arg-type]
        bare.index()
        assert bare.search(QUESTION, mode="hops") == []
