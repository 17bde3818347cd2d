"""Groups whose number is found, and the objects that stand for them: the picture of docs/patterns.md.

    python examples/patterns_groups.py docs/images/patterns_groups.svg

Two panels of the same points: `ProbabilisticPartition` (each group a colour, points that it is not sure of pale), and
`KMedoids` with as many medoids (each marked, and joined to its members).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from windlass.patterns import KMedoids, ProbabilisticPartition

SIZE, MARGIN = 300, 12
COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6d597a", "#00798c", "#8d5b4c", "#5f0f40")


def points() -> np.ndarray:
    """float64 `[420, 2]`: six groups of different sizes and shapes."""
    rng = np.random.default_rng(3)
    groups = [
        ((0, 0), (1.0, 0.4), 90), ((5, 1), (0.5, 1.1), 80), ((2, 5), (0.9, 0.7), 70), ((8, 6), (1.2, 0.5), 80),
        ((9, 1), (0.5, 0.5), 60), ((5.5, 9), (0.5, 0.6), 40),
    ]  # fmt: skip
    return np.vstack([np.array(at) + rng.standard_normal((count, 2)) * spread for at, spread, count in groups])


def panel(
    at: np.ndarray, labels: np.ndarray, sure: np.ndarray, medoids: np.ndarray, title: str, offset: int
) -> list[str]:
    """One panel as lines of SVG; `at` are positions in it."""
    lines = [f'<g transform="translate({offset},0)"><text x="{MARGIN}" y="18">{title}</text>']
    for medoid in medoids:
        lines += [
            f'<line x1="{at[medoid, 0]:.1f}" y1="{at[medoid, 1]:.1f}" x2="{x:.1f}" y2="{y:.1f}" stroke="#bbb"/>'
            for x, y in at[labels == labels[medoid]]
        ]
    for (x, y), label, is_sure in zip(at, labels, sure, strict=True):
        colour = COLOURS[label % len(COLOURS)]
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}" opacity="{0.9 if is_sure else 0.3}"/>')
    lines += [
        f'<rect x="{at[medoid, 0] - 5:.1f}" y="{at[medoid, 1] - 5:.1f}" width="10" height="10" fill="none" '
        'stroke="black" stroke-width="2"/>'
        for medoid in medoids
    ]
    return [*lines, "</g>"]


def picture() -> str:
    """The whole SVG."""
    data = points()
    groups = ProbabilisticPartition().fit(data)
    medoids = KMedoids(groups.n_clusters_, n_init=5, random_state=0).fit(data)
    low, high = data.min(axis=0), data.max(axis=0)
    at = (data - low) / (high - low) * (SIZE - 4 * MARGIN) + 2 * MARGIN
    at[:, 1] = SIZE + MARGIN - at[:, 1]
    everyone, nobody = np.ones(len(data), bool), np.zeros(0, np.int64)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * SIZE} {SIZE + MARGIN}" font-family="sans-serif" '
        'font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        *panel(at, groups.labels_, groups.separable_mask_, nobody, f"{groups.n_clusters_} groups, found", 0),
        *panel(at, medoids.labels_, everyone, medoids.medoid_indices_, "as many medoids", SIZE),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture(), encoding="utf-8")
