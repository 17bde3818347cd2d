"""What every way of making a model smaller or sparser has in common: plan first, then apply, one layer after the
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from windlass.models.calibration import Calibration
from windlass.models.weights import WeightSource

if TYPE_CHECKING:
    from windlass.models.torch_decoder import DecoderLM


@dataclass(frozen=True)
class TransformPlan:
    """What a transform decided, as plain JSON values: deterministic for a seed, stored with the model it made.

    Attributes:
        transform: Name of the transform, `quantize` for one.
        settings: What it was asked for.
        decisions: What it chose, by tensor name or layer.
    """

    transform: str
    settings: Mapping[str, Any]
    decisions: Mapping[str, Any]


class Transform(Protocol):
    """A compression method; several are applied one after the other."""

    def plan(self, source: WeightSource, calibration: Calibration | None) -> TransformPlan:
        """Decide everything without changing anything."""
        ...

    def apply(self, model: DecoderLM, plan: TransformPlan) -> DecoderLM:
        """Do what `plan` says, layer by layer: memory stays at the model and one layer."""
        ...
