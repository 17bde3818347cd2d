"""What a collection holds: vectors of one length and kind, typed fields, tenants or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core.filters import FIELD_TYPES, FieldType
from windlass.kernels.distances import DOT, L2, NO_SCALES, check_rows
from windlass.vectors.errors import BadInput, DimensionMismatch, NonFiniteVector, ZeroVector

Metric = Literal["cosine", "ip", "l2"]
Dtype = Literal["f32", "f16", "i8"]
IdType = Literal["int", "str"]

MAX_DIM = 65_536
_STORED: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.uint16),
    "i8": np.dtype(np.int8),
}
_LARGEST_SQUARE = 1e36


@dataclass(frozen=True, slots=True)
class Field:
    """The type of a field, and whether rows may lack it."""

    type: FieldType
    nullable: bool = True

    def __post_init__(self) -> None:
        if self.type not in FIELD_TYPES:
            raise BadInput(f"no field type {self.type!r}", hint=f"choose one of {', '.join(FIELD_TYPES)}")


@dataclass(frozen=True, slots=True)
class Schema:
    """The shape of a collection; fixed when it is made.

    Attributes:
        dim: Numbers in a vector.
        metric: `cosine` (vectors are stored at length one), `ip` (dot product), or `l2`. Scores are higher for better
            rows: under `l2` they are the squared distance with its sign turned.
        dtype: How numbers are stored: `f32`, `f16` (half the bytes, relative error 0.0005), or `i8` (a quarter, with a
            scale for each row).
        fields: Typed fields by name.
        tenants: Whether rows belong to tenants and every question must say for whom it is asked.
        ids: Whether rows are called by whole numbers or by texts.

    Example:
        >>> Schema(dim=3, fields={"year": Field("int")}).metric
        'cosine'
    """

    dim: int
    metric: Metric = "cosine"
    dtype: Dtype = "f32"
    fields: Mapping[str, Field] = field(default_factory=dict)
    tenants: bool = False
    ids: IdType = "int"

    def __post_init__(self) -> None:
        if not isinstance(self.dim, int) or not 1 <= self.dim <= MAX_DIM:
            raise BadInput(f"dim is {self.dim!r}", hint=f"give 1 to {MAX_DIM}")
        for name, value, known in (
            ("metric", self.metric, ("cosine", "ip", "l2")),
            ("dtype", self.dtype, tuple(_STORED)),
            ("ids", self.ids, ("int", "str")),
        ):
            if value not in known:
                raise BadInput(f"{name} is {value!r}", hint=f"choose one of {', '.join(known)}")
        for name in self.fields:
            if not name or name == "id" or not isinstance(name, str):
                raise BadInput(f"a field cannot be called {name!r}", hint="choose another name")

    @property
    def types(self) -> dict[str, FieldType]:
        """The types that filters are checked against: the fields, and `id`."""
        return {"id": self.ids, **{name: item.type for name, item in self.fields.items()}}

    @property
    def kernel_metric(self) -> int:
        return L2 if self.metric == "l2" else DOT

    @property
    def stored(self) -> np.dtype[Any]:
        """What vectors are stored as; half precision as the bits that the kernels read."""
        return _STORED[self.dtype]

    def checked(self, vectors: Any) -> NDArray[np.float32]:
        """float32 `[n, dim]`, C-contiguous, at length one under `cosine`.

        Raises:
            DimensionMismatch, NonFiniteVector, ZeroVector: nothing is stored.
        """
        try:
            array = np.asarray(vectors, np.float32)
        except (TypeError, ValueError) as error:
            raise BadInput(f"the vectors are not numbers ({error})", hint="give a float array [n, dim]") from error
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise DimensionMismatch(
                f"vectors of shape {array.shape}, the collection has dim {self.dim}", hint=f"give [n, {self.dim}]"
            )
        checked = np.empty(array.shape, np.float32)
        bad, zero = check_rows(np.ascontiguousarray(array), self.metric == "cosine", _LARGEST_SQUARE, checked)
        if bad >= 0:
            raise NonFiniteVector(int(bad))
        if zero >= 0:
            raise ZeroVector(int(zero))
        return checked

    def encode(self, vectors: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Checked vectors as they are stored, and the scale of each row (empty but for `i8`)."""
        if self.dtype == "f32":
            return vectors, NO_SCALES
        if self.dtype == "f16":
            with np.errstate(over="ignore"):
                half = vectors.astype(np.float16)
            bad = np.flatnonzero(~np.isfinite(half).all(axis=1))
            if len(bad):
                raise BadInput(f"vector {bad[0]} has numbers beyond 65,504, the largest of f16", hint="use dtype 'f32'")
            return half.view(np.uint16), NO_SCALES
        largest = np.abs(vectors).max(axis=1) if len(vectors) else np.zeros(0, np.float32)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        return np.rint(vectors / scales[:, None]).astype(np.int8), scales

    def decode(self, stored: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 of stored rows."""
        if self.dtype == "f32":
            return np.array(stored, np.float32)
        if self.dtype == "f16":
            return np.ascontiguousarray(stored).view(np.float16).astype(np.float32)
        return stored.astype(np.float32) * scales[:, None]

    def to_json(self) -> dict[str, Any]:
        return {
            "dim": self.dim,
            "metric": self.metric,
            "dtype": self.dtype,
            "fields": {name: [item.type, item.nullable] for name, item in self.fields.items()},
            "tenants": self.tenants,
            "ids": self.ids,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Schema:
        fields = {name: Field(kind, nullable) for name, (kind, nullable) in content["fields"].items()}
        return Schema(**{**content, "fields": fields})
