"""Named arrays and small values in one run of bytes, read back without copying.

    8 bytes magic | u32 length of the header | header (JSON) | arrays, each at a multiple of 64 bytes

Nothing in it is ever executed or guessed: an array is its dtype, its shape and its bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"WLPACK01"
_ALIGNED = 64
_KINDS = frozenset("biuf")


def pack(values: Mapping[str, Any]) -> bytes:
    """The bytes of a mapping from names to arrays (of numbers or bools) and JSON values.

    Example:
        >>> unpack(pack({"b": {"c": 1}, "a": np.arange(3)}))
        {'b': {'c': 1}, 'a': array([0, 1, 2])}
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    header: dict[str, Any] = {"values": {name: value for name, value in values.items() if name not in arrays}}
    header["arrays"], at = {}, 0
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS:
            raise TypeError(f"array {name!r} of {array.dtype} cannot be packed")
        header["arrays"][name] = [array.dtype.str, list(array.shape), at]
        at += -(-array.nbytes // _ALIGNED) * _ALIGNED
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(_MAGIC) + 4 + len(text)) % _ALIGNED)
    parts = [_MAGIC, struct.pack("<I", len(text)), text]
    for array in arrays.values():
        parts += [array.tobytes(), bytes(-array.nbytes % _ALIGNED)]
    return b"".join(parts)


def unpack(data: Any) -> dict[str, Any]:
    """What `pack` packed; arrays are views into `data`.

    Raises:
        ValueError: The bytes are not such a pack.
    """
    view = memoryview(data).cast("B")
    if bytes(view[:8]) != _MAGIC or len(view) < 12:
        raise ValueError("it does not begin as a pack does")
    (length,) = struct.unpack("<I", view[8:12])
    try:
        header = json.loads(bytes(view[12 : 12 + length]))
        found: dict[str, Any] = dict(header["values"])
        for name, (dtype, shape, at) in header["arrays"].items():
            found[name] = _array(view, 12 + length + at, np.dtype(dtype), shape)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"its header makes no sense ({error})") from error
    return found


def _array(view: memoryview, at: int, dtype: np.dtype[Any], shape: list[int]) -> NDArray[Any]:
    count = int(np.prod(shape, dtype=np.int64))
    if at + count * dtype.itemsize > len(view):
        raise ValueError("it ends too early")
    if not count:
        return np.empty(shape, dtype)
    return np.frombuffer(view, dtype, count, at).reshape(shape)
