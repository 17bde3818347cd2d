"""How much of a model is left after something was done to it: perplexity, divergence from the original, agreement."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ModelError, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.models.block_formats import Floats
from windlass.models.decoder import Tokens

_ROWS = 64
"""Rows of logits turned into float64 at a time."""


class Scorer(Protocol):
    """What is evaluated: `Decoder`, `CpuEngine`, `TorchModel`, or `Remembered`."""

    @property
    def nbytes(self) -> int: ...

    def logits(self, tokens: Tokens) -> Floats: ...


@dataclass(frozen=True)
class QualityReport:
    """A model beside its reference on the same text.

    Attributes:
        ppl: Perplexity, exp of the mean negative log-likelihood a token.
        ppl_ratio: `ppl` over the reference's.
        kl: Mean divergence of the model's next-token distribution from the reference's, nats a token.
        top1: Share of positions where both find the same token likeliest.
        bytes_ratio: Bytes of weights over the reference's.
        tokens_per_s_ratio: Speed over the reference's on this text; None when the reference did not run again.
        tokens: How many tokens were predicted.
    """

    ppl: float
    ppl_ratio: float
    kl: float
    top1: float
    bytes_ratio: float
    tokens_per_s_ratio: float | None
    tokens: int


class Remembered:
    """A reference whose logits are computed once and kept, for comparing many models with it.

    Holds four bytes for each token and each entry of the vocabulary.
    """

    def __init__(self, model: Scorer) -> None:
        self._model = model
        self._logits: dict[bytes, Floats] = {}

    @property
    def nbytes(self) -> int:
        return self._model.nbytes

    def logits(self, tokens: Tokens) -> Floats:
        key = np.asarray(tokens, np.int64).tobytes()
        if key not in self._logits:
            self._logits[key] = self._model.logits(tokens)
        return self._logits[key]


def windows(tokens: Tokens, window: int, stride: int) -> Iterator[tuple[Tokens, Tokens]]:
    """Cut `tokens` into overlapping inputs of at most `window`, and the targets that each is scored on.

    Targets belong to the last positions of their input; every token but the first is a target exactly once.

    Raises:
        UsageError: fewer than two tokens, or a stride that skips some.

    Example:
        >>> [(a.tolist(), b.tolist()) for a, b in windows(np.arange(6), 3, 2)]
        [([0, 1, 2], [1, 2, 3]), ([2, 3, 4], [4, 5])]
    """
    ids = np.asarray(tokens, np.int64).reshape(-1)
    if len(ids) < 2:
        raise UsageError(f"{len(ids)} tokens cannot be scored: at least 2 are needed")
    if not 0 < stride <= window:
        raise UsageError(f"stride {stride} must be between 1 and the window of {window}")
    done = 1
    for start in range(0, len(ids) - 1, stride):
        end = min(start + window, len(ids) - 1)
        if end + 1 > done:
            yield ids[start:end], ids[done : end + 1]
            done = end + 1


def perplexity(
    model: Scorer, tokens: Tokens, *, window: int = 512, stride: int = 512, progress: Progress | None = None
) -> float:
    """Exp of the mean negative log-likelihood of every token after the first.

    Raises:
        UsageError: as `windows`.
        ModelError: the model's logits are not finite.
    """
    total, count = 0.0, 0
    for inputs, targets in _watched(tokens, window, stride, progress):
        for rows, wanted in _pieces(_finite(model.logits(inputs)[-len(targets) :]), targets):
            total -= float(np.take_along_axis(_log_softmax(rows), wanted[:, None], axis=-1).sum())
            count += len(wanted)
    return math.exp(total / count)


def evaluate(
    model: Scorer,
    reference: Scorer,
    tokens: Tokens,
    *,
    window: int = 512,
    stride: int = 512,
    progress: Progress | None = None,
) -> QualityReport:
    """Compare `model` with `reference` on `tokens`, int64 `[n]`, in windows of `window` tokens.

    Raises:
        UsageError: as `windows`, or the two have different vocabularies.
        ModelError: logits are not finite.
        Cancelled: `progress` was cancelled.

    Example:
        report = evaluate(Decoder.load(small), Remembered(Decoder.load(original)), tokens)
    """
    loss = theirs = kl = 0.0
    agreed = count = 0
    seconds = [0.0, 0.0]
    for inputs, targets in _watched(tokens, window, stride, progress):
        logits = []
        for side, each in enumerate((model, reference)):
            began = time.perf_counter()
            made = each.logits(inputs)
            seconds[side] += time.perf_counter() - began
            logits.append(_finite(made[-len(targets) :]))
        if logits[0].shape != logits[1].shape:
            raise UsageError(f"vocabularies of {logits[0].shape[1]} and {logits[1].shape[1]} cannot be compared")
        for (ours, wanted), (expected, _) in zip(*(_pieces(each, targets) for each in logits), strict=True):
            log_p, log_q = _log_softmax(expected), _log_softmax(ours)
            kl += float((np.exp(log_p) * (log_p - log_q)).sum())
            theirs -= float(np.take_along_axis(log_p, wanted[:, None], axis=-1).sum())
            loss -= float(np.take_along_axis(log_q, wanted[:, None], axis=-1).sum())
            agreed += int((ours.argmax(axis=-1) == expected.argmax(axis=-1)).sum())
            count += len(wanted)
    return QualityReport(
        ppl=math.exp(loss / count),
        ppl_ratio=math.exp((loss - theirs) / count),
        kl=kl / count,
        top1=agreed / count,
        bytes_ratio=model.nbytes / reference.nbytes,
        tokens_per_s_ratio=None if isinstance(reference, Remembered) else seconds[1] / seconds[0],
        tokens=count,
    )


def _watched(tokens: Tokens, window: int, stride: int, progress: Progress | None) -> Iterator[tuple[Tokens, Tokens]]:
    watched = progress if progress is not None else Silent()
    cut = list(windows(tokens, window, stride))
    watched.start("evaluate", len(cut), "windows")
    for inputs, targets in cut:
        check_cancelled(watched)
        yield inputs, targets
        watched.advance("evaluate")
    watched.finish("evaluate")


def _pieces(logits: Floats, targets: Tokens) -> Iterator[tuple[Floats, Tokens]]:
    for start in range(0, len(targets), _ROWS):
        yield logits[start : start + _ROWS], targets[start : start + _ROWS]


def _finite(logits: Floats) -> Floats:
    if not np.isfinite(logits.sum(dtype=np.float64)):
        raise ModelError("the model's logits hold NaN or infinite values", hint="its weights are damaged or overflow")
    return logits


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide
