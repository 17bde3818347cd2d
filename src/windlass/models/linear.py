"""What a decoder calls to multiply by a weight matrix, whoever does it: dense, packed, low-rank, with an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from windlass.core.program import ITEM_BYTES, OpCost
from windlass.models.block_formats import Floats


class LinearOp(Protocol):
    """`y = x W^T + b` over the last axis: `(..., in_features) -> (..., out_features)`.

    Arrays are NumPy on the CPU path and torch tensors in the torch engine.
    """

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes of weights that one product reads."""
        ...

    def __call__(self, x: Any) -> Any: ...

    def cost(self, tokens: int) -> OpCost:
        """What the product asks of a device for `tokens` rows."""
        ...


def product_cost(linear: LinearOp, tokens: int, dtype: str) -> OpCost:
    """Weights read once, rows read and written once, a multiply-add for each weight and row."""
    m, n, k = tokens, linear.out_features, linear.in_features
    rows = m * (n + k) * ITEM_BYTES[dtype]
    return OpCost(2.0 * m * n * k, linear.nbytes + rows, dtype, "gemm", (m, n, k))


@dataclass(frozen=True)
class DenseLinear:
    """A float32 matrix `[out, in]` and its bias; `name` is that of the tensor, or of the first of several that share
    their input.
    """

    name: str
    weight: Floats
    bias: Floats | None = None

    @property
    def in_features(self) -> int:
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        return int(self.weight.shape[0])

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Floats) -> Floats:
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias

    def cost(self, tokens: int) -> OpCost:
        return product_cost(self, tokens, "fp32")
