"""Topics: files of three subjects come out as three groups, each shown by one of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from windlass.retrieval.pipeline import Pipeline
from windlass.retrieval.topics import find_topics

SUBJECTS = {"tide": 0, "crane": 1, "invoice": 2}


class SubjectEncoder:
    """A vector that says which subject a text is about, and a little of its own."""

    name = "subjects"
    fingerprint = "subjects-1"
    dim = 6
    max_tokens = 256

    def encode_passages(self, texts: list[str]) -> np.ndarray:
        made = np.zeros((len(texts), self.dim), np.float32)
        for row, text in enumerate(texts):
            for word, place in SUBJECTS.items():
                made[row, place] = text.count(word)
            made[row, 3 + len(text) % 3] = 0.3
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    encode_queries = encode_passages

    def count_tokens(self, text: str) -> int:
        return len(text.split())


def written(folder: Path, each: int) -> None:
    for subject in SUBJECTS:
        for number in range(each):
            (folder / f"{subject}_{number}.md").write_text(
                f"# About {subject} {number}\n\n" + f"The {subject} of the harbour. " * (3 + number)
            )


def test_subjects_become_topics(tmp_path):
    written(tmp_path, 5)
    with Pipeline.open(tmp_path, encoder=SubjectEncoder(), model=None) as pipeline:
        pipeline.index()
        assert pipeline.overview().topics is None
        pipeline.survey()
        topics = pipeline.overview().topics
    assert topics is not None and topics.of == 15 and sorted(topics.tried) == list(range(2, 8))
    assert [topic.files for topic in topics.topics] == [5, 5, 5]
    for topic in topics.topics:
        subject = topic.medoid.split("_")[0]
        assert topic.title.startswith(f"About {subject}")
        assert len(topic.nearest) == 4 and all(path.startswith(subject) for path in topic.nearest)
    assert 0.5 < topics.silhouette == max(topics.tried.values()) <= 1


def test_few_files_have_no_topics(tmp_path):
    written(tmp_path, 1)
    with Pipeline.open(tmp_path, encoder=SubjectEncoder(), model=None) as pipeline:
        pipeline.index()
        assert find_topics(pipeline.workspace, SubjectEncoder.fingerprint) is None
        assert find_topics(pipeline.workspace, "another") is None
