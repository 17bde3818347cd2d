"""Counter-based random numbers: every draw is a pure function of (seed, key...).

No state, so a result cannot depend on threads, order or how work was cut into blocks, and one number of a long stream
is had without the others. The stream is splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", 2014) taken as a hash of the key, not as a sequence. A kernel that needs it in a loop writes the same three
lines in its own language:

    mix64(x):   x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27; x *= 0x94D049BB133111EB; x ^= x >> 31
    state:      h = mix64(seed + GAMMA); for each part of the key: h = mix64(h ^ mix64(part + PART))
    uniform:    (h >> 11) * 2**-53

all in unsigned 64-bit arithmetic that wraps around. GAMMA and PART are the constants
below. The values are part of the stored formats: they never change.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from windlass.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
PART = 0xD1B54A32D192ED03  # not GAMMA: a seed and a part that are the same number would cancel out
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF

Key = int | str


def bits(seed: int, *key: Key) -> int:
    """64 random bits for `key`, as an int in [0, 2**64).

    Args:
        seed: Any int, taken modulo 2**64.
        key: What the number is for, e.g. `("walk", node, step)`. Ints are taken modulo 2**64; a text stands for the
            first eight bytes of its BLAKE2b hash.

    Example:
        >>> bits(7, "walk", 3) == bits(7, "walk", 3) != bits(7, "walk", 4)
        True
    """
    state = _mix((seed + GAMMA) & _MASK)
    for part in key:
        number = part if isinstance(part, int) else _of_text(part)
        state = _mix(state ^ _mix((number + PART) & _MASK))
    return state


def rand(seed: int, *key: Key) -> float:
    """A uniform float in [0, 1) for `key`, with 53 random bits.

    Example:
        >>> 0.0 <= rand(7, "sample", 12) < 1.0
        True
    """
    return (bits(seed, *key) >> 11) * 2.0**-53


def bits_array(seed: int, *key: Key, size: int) -> NDArray[np.uint64]:
    """uint64 [size]: element i is `bits(seed, *key, i)`."""
    import numpy as np

    if size < 0:
        raise UsageError(f"cannot draw {size} random numbers", hint="size counts from 0")
    state = np.uint64(bits(seed, *key))
    parts = np.arange(size, dtype=np.uint64) + np.uint64(PART)
    return _mix_array(state ^ _mix_array(parts))


def uniform(seed: int, *key: Key, size: int | tuple[int, ...]) -> NDArray[np.float64]:
    """float64 [size]: the element at flat position i (C order) is `rand(seed, *key, i)`.

    Example:
        >>> bool(uniform(7, "x", size=5)[3] == rand(7, "x", 3))
        True
    """
    import numpy as np

    shape = (size,) if isinstance(size, int) else size
    drawn = bits_array(seed, *key, size=math.prod(shape))
    return ((drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def integers(seed: int, *key: Key, size: int, high: int) -> NDArray[np.int64]:
    """int64 [size] in [0, high): element i is `floor(rand(seed, *key, i) * high)`; `high` is 1 to 2**53.

    Example:
        >>> bool((integers(7, "dice", size=100, high=6) < 6).all())
        True
    """
    import numpy as np

    if not 1 <= high <= 2**53:
        raise UsageError(f"cannot draw integers below {high}", hint="give 1 to 2**53")
    return np.floor(uniform(seed, *key, size=size) * high).astype(np.int64)


def permutation(seed: int, *key: Key, size: int) -> NDArray[np.int64]:
    """int64 [size]: a random order of 0 .. size-1, sorted by `bits(seed, *key, i)`."""
    import numpy as np

    return np.argsort(bits_array(seed, *key, size=size), kind="stable").astype(np.int64, copy=False)


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _FIRST) & _MASK
    x = ((x ^ (x >> 27)) * _SECOND) & _MASK
    return x ^ (x >> 31)


def _mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    import numpy as np

    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))


def _of_text(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")
