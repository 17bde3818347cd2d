"""The linear of the torch engine: an ordinary `nn.Linear` that also says what it weighs and costs."""

# mypy: disallow-subclassing-any=False, warn-return-any=False

from __future__ import annotations

import torch
from torch import nn

from windlass.core.program import OpCost
from windlass.models.linear import product_cost

_NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class TorchLinear(nn.Linear):
    """A `LinearOp`; whatever looks for `nn.Linear` (adapters, hooks) finds one."""

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def cost(self, tokens: int) -> OpCost:
        return product_cost(self, tokens, _NAMES[self.weight.dtype])
