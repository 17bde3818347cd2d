"""Train the join model: `python -m windlass.bench.lake.train_join_model`, writes `lake/join_model.toml`.

Generated databases, and every other schema of the Spider collection; the rest of that collection and the real databases
are for the benchmark (Chinook, which the collection has too, is left out). Logistic regression with a ridge, by
Newton's method; every fifth database is held out for the figures that go into the file's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import windlass.lake
from windlass.bench.lake.join_databases import Database, generate, in_order
from windlass.bench.lake.join_schemas import spider_databases
from windlass.lake.join_candidates import find_candidates
from windlass.lake.join_model import FEATURES, JoinModel, weights_toml

_DATABASES = 120
_FIRST_SEED = 10_000
_SPIDER_SEED = 1_000
_RIDGE = 2.0
_NEWTON_STEPS = 30


def main() -> None:
    databases = [generate(_FIRST_SEED + number, 5 + number % 26) for number in range(_DATABASES)]
    databases += [database for database in spider_databases(_SPIDER_SEED)[::2] if database.name != "chinook_1"]
    labelled = [label(database) for database in databases]
    model = fit([part for number, part in enumerate(labelled) if number % 5])
    held = [part for number, part in enumerate(labelled) if number % 5 == 0]
    features, right = np.concatenate([part[0] for part in held]), np.concatenate([part[1] for part in held])
    chances = model.predict(features)
    error = calibration_error(chances, right)
    recall = float((chances[right] >= 0.5).mean())
    precision = float(right[chances >= 0.5].mean())
    about = (
        f"Logistic weights of lake.join_candidates, trained on {_DATABASES} generated databases and half of Spider's\n"
        f"schemas."
        f" On held-out ones: precision {precision:.3f}, recall {recall:.3f}, calibration error {error:.3f}."
    )
    text = weights_toml(dict(zip(FEATURES, model.weights.tolist(), strict=True)), model.intercept, about)
    Path(windlass.lake.__file__).with_name("join_model.toml").write_text(text, "utf-8")
    print(text)


def label(database: Database) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Features of all candidates and whether they are right.

    Two references to one key are joinable with each other through it, so a pair of them is never a wrong example.
    """
    truth = set(map(in_order, database.truth))
    refers: dict[tuple[str, tuple[str, ...]], set[tuple[str, tuple[str, ...]]]] = {}
    for child, columns, parent, keys in database.truth:
        refers.setdefault((child, columns), {(child, columns)}).add((parent, keys))
        refers.setdefault((parent, keys), {(parent, keys)})
    kept, right = [], []
    for c in find_candidates(database.tables):
        is_right = in_order(c[:4]) in truth
        shared = refers.get((c.child, c.columns), set()) & refers.get((c.parent, c.keys), set())
        if is_right or not shared:
            kept.append(c.features)
            right.append(is_right)
    return np.array(kept).reshape(-1, len(FEATURES)), np.array(right, np.bool_)


def fit(parts: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]]) -> JoinModel:
    features = np.concatenate([part[0] for part in parts])
    right = np.concatenate([part[1] for part in parts]).astype(np.float64)
    design = np.column_stack([features, np.ones(len(features))])
    weights = np.zeros(design.shape[1])
    ridge = np.full(design.shape[1], _RIDGE)
    ridge[-1] = 1e-6
    for _ in range(_NEWTON_STEPS):
        chances = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (right - chances) - ridge * weights
        curvature = (design * (chances * (1 - chances))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        weights += step
        if np.abs(step).max() < 1e-8:
            break
    return JoinModel(weights[:-1], float(weights[-1]))


def calibration_error(chances: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Mean distance between probability and frequency over ten bins, weighted by their size."""
    bins = np.minimum((chances * 10).astype(int), 9)
    total = 0.0
    for number in range(10):
        chosen = bins == number
        if chosen.any():
            total += float(chosen.mean()) * abs(float(chances[chosen].mean()) - float(right[chosen].mean()))
    return total


if __name__ == "__main__":
    main()
