"""How likely a candidate for a join is: a logistic model, whose few weights lie beside this file and can be read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ModelError

FEATURES = (
    "inclusion",
    "coverage",
    "child_repeats",
    "larger_child",
    "same_name",
    "words_shared",
    "letters_shared",
    "names_parent",
    "abbreviates",
    "head_matches",
    "parent_covered",
    "key_word",
    "parent_key_word",
    "parent_first",
    "child_first",
    "dense_parent",
    "dense_both",
    "range_covered",
    "rivals",
    "unrelated_names",
    "measure",
    "child_key",
    "several",
    "sparse_key",
    "itself",
    "above",
    "derived",
)


@dataclass(frozen=True)
class JoinModel:
    """A logistic model over `FEATURES`.

    Attributes:
        weights: float64[features], of the features as they are.
        intercept: What is added.
    """

    weights: NDArray[np.float64]
    intercept: float

    @classmethod
    @cache
    def load(cls) -> JoinModel:
        """The weights that come with Windlass.

        Raises:
            ModelError: Their file is damaged or of other features.
        """
        try:
            document = tomllib.loads((files("windlass.lake") / "join_model.toml").read_text("utf-8"))
            weights = document["weights"]
            return cls(np.array([weights[name] for name in FEATURES], np.float64), float(document["intercept"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"the join model is damaged: {error}", hint="install windlass again") from error

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[n] probabilities of float64[n, features]."""
        return 1 / (1 + np.exp(-np.clip(features @ self.weights + self.intercept, -30, 30)))

    def reasons(self, features: NDArray[np.float64]) -> list[tuple[str, float]]:
        """What each feature adds to the log odds, strongest first."""
        parts = features * self.weights
        return [(FEATURES[place], float(parts[place])) for place in np.argsort(-np.abs(parts), kind="stable")]


def weights_toml(weights: Mapping[str, float], intercept: float, about: str) -> str:
    """The model as the file that `JoinModel.load` reads."""
    lines = [f"# {line}" for line in about.splitlines()]
    lines += [f"intercept = {intercept:.4f}", "", "[weights]"]
    return "\n".join([*lines, *(f"{name} = {value:.4f}" for name, value in weights.items())]) + "\n"
