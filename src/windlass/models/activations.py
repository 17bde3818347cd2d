"""The few nonlinear functions of a decoder, float32, without overflow."""

from __future__ import annotations

import numpy as np

from windlass.models.block_formats import Floats

_HALF = np.float32(0.5)


def sigmoid(x: Floats) -> Floats:
    """`1 / (1 + exp(-x))`."""
    found: Floats = _HALF * (1 + np.tanh(_HALF * x))
    return found


def silu(x: Floats) -> Floats:
    """`x * sigmoid(x)`."""
    return x * sigmoid(x)


def softmax(scores: Floats) -> Floats:
    """Softmax over the last axis; each row has at least one finite score."""
    weights: Floats = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    normed: Floats = x / np.sqrt(mean + np.float32(eps)) * weight
    return normed
