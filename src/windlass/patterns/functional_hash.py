"""What a candidate computes, as one number: equal functions get equal keys, whatever their code looks like.

Gillard, Jonschkowski, Bewley, Ghahramani, Le and others, "Unified Functional Hashing in Automatic Machine Learning"
(2023): run the candidate on a few fixed inputs under fixed seeds, and hash what comes out with its low bits dropped, so
that the order of a sum does not matter. What differs: signs, NaN and infinities are told apart; each number is hashed
twice, the second time shifted by half a step of what is kept, so that two nearly equal numbers on either side of an
edge still agree in one of the keys.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from windlass.core.errors import Cancelled, UsageError

C = TypeVar("C")
C_contra = TypeVar("C_contra", contravariant=True)
_MANTISSA = 52
_SIXTY_THREE = (1 << 63) - 1
_NAN, _PLUS, _MINUS, _ZERO = -1, -2, -3, -4


class Probe(Protocol[C_contra]):
    """Runs a candidate in a small way."""

    def run(self, candidate: C_contra, seed: int) -> Iterable[float]:
        """Numbers in a fixed order that tell what it computes; the same for the same candidate and seed."""
        ...


class FunctionKey(NamedTuple):
    """What two candidates are compared by: equal when either number is.

    `primary` and `shifted` are below 2**63; `seconds` is what the hash took.
    """

    primary: int
    shifted: int
    seconds: float


class FunctionalHasher(Generic[C]):
    """Hashes candidates by what they compute.

    Args:
        probe: See `Probe`.
        mantissa_bits: How many of the 52 bits after the point are kept.
        seed: Given to the probe.
        task_version: Goes into every key: change it when the evaluation changes.

    Example:
        >>> hasher = FunctionalHasher(CallableProbe([(1.0, 2.0), (3.0, 5.0)]))
        >>> first, second = hasher.hash(lambda a, b: a * (a + b)), hasher.hash(lambda a, b: a * b + a * a)
        >>> first.primary == second.primary
        True
    """

    def __init__(self, probe: Probe[C], *, mantissa_bits: int = 24, seed: int = 0, task_version: str = "") -> None:
        if not 1 <= mantissa_bits <= _MANTISSA:
            raise UsageError(f"mantissa_bits is {mantissa_bits}", hint="1 to 52")
        self.probe, self.mantissa_bits, self.seed, self.task_version = probe, mantissa_bits, seed, task_version

    def hash(self, candidate: C) -> FunctionKey:
        """The key of a candidate; one that raises is keyed by what it raises."""
        began = time.perf_counter()
        start = mix_text(0, self.task_version)
        try:
            numbers = [float(number) for number in self.probe.run(candidate, self.seed)]
        except Cancelled:
            raise
        except Exception as error:  # whatever a candidate does wrong is what it does
            failed = mix_text(start, f"raised {type(error).__name__}: {error}")
            return FunctionKey(failed, failed, time.perf_counter() - began)
        primary, shifted = start, mix_text(start, "shifted")
        for number in numbers:
            primary = mix(primary, number, self.mantissa_bits)
            shifted = mix(shifted, number, self.mantissa_bits, half_a_step=True)
        return FunctionKey(primary, shifted, time.perf_counter() - began)


def mix(state: int, number: float, mantissa_bits: int, *, half_a_step: bool = False) -> int:
    """The state after one more number: its sign and exponent go in, then the bits of its mantissa that are kept."""
    if number != number:
        return mix_text(state, str(_NAN))
    if math.isinf(number):
        return mix_text(state, str(_PLUS if number > 0 else _MINUS))
    if number == 0:
        return mix_text(state, str(_ZERO))
    fraction, exponent = math.frexp(abs(number))  # 0.5 <= fraction < 1
    kept = (fraction * 2 - 1) * 2**mantissa_bits + (0.5 if half_a_step else 0.0)
    whole = int(kept)
    if whole == 1 << mantissa_bits:
        exponent, whole = exponent + 1, 0
    state = mix_text(state, str(exponent if number > 0 else -exponent - (1 << 20)))
    return mix_text(state, str(whole))


def mix_text(state: int, text: str) -> int:
    """63 bits of the SHA-256 of a state and a text."""
    return int.from_bytes(sha256(f"{state} {text}".encode()).digest()[:8], "little") & _SIXTY_THREE


class CallableProbe:
    """Calls a Python function with canonical arguments; arrays, numbers and nests of them are its numbers.

    Args:
        arguments: One tuple a call. Each call gets copies of arrays; a function that changes them is keyed by that too.
    """

    def __init__(self, arguments: Sequence[tuple[Any, ...]]) -> None:
        self.arguments = arguments

    def run(self, candidate: Callable[..., Any], seed: int) -> Iterable[float]:
        for given in self.arguments:
            copies = [np.array(each) if isinstance(each, np.ndarray) else each for each in given]
            yield from _numbers(candidate(*copies))
            for copy, original in zip(copies, given, strict=True):
                if isinstance(original, np.ndarray) and not np.array_equal(copy, original, equal_nan=True):
                    yield from _numbers(copy)


class EstimatorProbe:
    """Fits a scikit-learn estimator on a few rows and predicts a few others.

    Args:
        X, y: Canonical data; the first half of the rows is fitted, the second predicted.
    """

    def __init__(self, X: Any, y: Any) -> None:
        self.X, self.y = np.asarray(X, np.float64), np.asarray(y)

    def run(self, candidate: Any, seed: int) -> Iterable[float]:
        half = len(self.X) // 2
        fresh = type(candidate)(**candidate.get_params(deep=False))
        if "random_state" in fresh.get_params():
            fresh.set_params(random_state=seed)
        fresh.fit(self.X[:half].copy(), self.y[:half].copy())
        yield from _numbers(fresh.predict(self.X.copy()))


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _numbers(value[key])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, str):
        yield float(mix_text(0, value) & ((1 << 52) - 1))
    elif value is None:
        yield math.nan
    else:
        flat = np.asarray(value)
        yield float(flat.ndim)
        yield from (float(size) for size in flat.shape)
        yield from (float(number) for number in flat.ravel())
