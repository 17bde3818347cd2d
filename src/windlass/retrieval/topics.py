"""What a folder is about: its files grouped by meaning, each group shown by the file in its middle.

A file stands for the mean of its passages' vectors. The groups are k-medoids under the cosine distance, and k is
the one whose medoids separate the files best (the medoid silhouette).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from windlass.core.progress import Progress
from windlass.core.workspace import Workspace

_FEWEST, _MOST = 6, 2_000
_MOST_TOPICS = 12
_LISTED = 5


@dataclass(frozen=True, slots=True)
class Topic:
    """One group: the file in its middle, that file's title, how many files it has, and the nearest few of them."""

    medoid: str
    title: str
    files: int
    nearest: list[str]


@dataclass(frozen=True, slots=True)
class Topics:
    """The groups of a folder, largest first.

    Attributes:
        topics: The groups.
        silhouette: How well their medoids separate the files: 1 is perfectly, 0 not at all.
        tried: The numbers of groups tried, and the silhouette of each.
        of: How many files were looked at.
    """

    topics: list[Topic]
    silhouette: float
    tried: dict[int, float]
    of: int


def find_topics(workspace: Workspace, fingerprint: str, progress: Progress | None = None) -> Topics | None:
    """Group the files that have vectors of an encoder; None when there are fewer than six.

    Of more than 2,000 files, evenly spaced ones in path order are looked at.

    Raises:
        Cancelled: `progress` was cancelled.
    """
    from windlass.patterns.choose_k import choose_k
    from windlass.patterns.dissimilarity import source_of

    with workspace.reading() as connection:
        files = connection.execute(
            "SELECT min(path), documents.id, coalesce(title, '') FROM files"
            " JOIN documents ON documents.id = document_id"
            " WHERE EXISTS (SELECT 1 FROM chunks JOIN embeddings ON embeddings.encoder = ?"
            " AND embeddings.text_hash = chunks.text_hash WHERE chunks.document_id = documents.id)"
            " GROUP BY documents.id ORDER BY min(path)",
            (fingerprint,),
        ).fetchall()
        step = -(-len(files) // _MOST)
        files = files[:: max(1, step)]
        vectors = []
        for _, document, _ in files:
            packed = connection.execute(
                "SELECT embeddings.vector FROM chunks JOIN embeddings ON embeddings.encoder = ?"
                " AND embeddings.text_hash = chunks.text_hash WHERE chunks.document_id = ?",
                (fingerprint, document),
            ).fetchall()
            passages = np.frombuffer(b"".join(row[0] for row in packed), np.float16).reshape(len(packed), -1)
            vectors.append(passages.astype(np.float64).mean(axis=0))
    if len(files) < _FEWEST:
        return None
    source = source_of(np.array(vectors), "cosine", "matrix")
    chosen = choose_k(source, 2, min(_MOST_TOPICS, len(files) // 2), progress=progress)
    topics = []
    for slot, medoid in enumerate(chosen.medoids):
        inside = np.flatnonzero(chosen.labels == slot)
        nearest = inside[np.argsort(source.row(int(medoid))[inside], kind="stable")]
        path, _, title = files[medoid]
        others = [files[at][0] for at in nearest if at != medoid]
        topics.append(Topic(path, title or path.rsplit("/", 1)[-1], len(inside), others[:_LISTED]))
    topics.sort(key=lambda topic: (-topic.files, topic.medoid))
    return Topics(topics, chosen.scores[chosen.k], chosen.scores, len(files))
