"""What passes through each linear of a model on some text: collected once, kept on disk, used by every compressor.

For each group of linears that share an input (queries, keys and values; gate and up): the largest magnitude of every
channel, and on demand the second moment `H = X^T X / rows`. For layers with experts: how often each was chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import ModelError, NotFound
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.models.block_formats import Floats
from windlass.models.decoder import Decoder, Tokens
from windlass.models.evaluate import windows
from windlass.models.safetensors_file import open_tensors, write_tensors

WINDOW = 512
_SAME_INPUT = {"attn_k": "attn_q", "attn_v": "attn_q", "ffn_up": "ffn_gate", "ffn_up_exps": "ffn_gate_exps"}


@dataclass(frozen=True)
class InputStatistics:
    """Of the inputs of one linear: `absmax [in]`, `second_moment [in, in]` when it was asked for, and the rows seen."""

    absmax: Floats
    second_moment: Floats | None
    rows: int


@dataclass(frozen=True)
class Calibration:
    """Statistics by tensor name; see `collect`.

    Attributes:
        inputs: By the name of the first linear that takes the input.
        expert_counts: Layer to int64 `[experts]`, how many of the tokens chose each.
    """

    inputs: Mapping[str, InputStatistics]
    expert_counts: Mapping[int, NDArray[np.int64]] = field(default_factory=dict)

    def of(self, name: str) -> InputStatistics:
        """Statistics of the input of linear `name` (`blk.3.attn_k.weight`).

        Raises:
            NotFound: no such linear was seen.
        """
        stem, _, suffix = name.rpartition(".")
        prefix, _, part = stem.rpartition(".")
        found = self.inputs.get(f"{prefix}.{_SAME_INPUT.get(part, part)}.{suffix}")
        if found is None:
            raise NotFound(f"the calibration has no linear {name}")
        return found

    def save(self, path: Path) -> None:
        """Write everything to one safetensors file.

        Raises:
            StorageError: it did not reach the disk.
        """
        tensors: dict[str, NDArray[np.generic]] = {}
        for name, found in self.inputs.items():
            tensors[f"{name}|absmax"] = found.absmax
            tensors[f"{name}|rows"] = np.array(found.rows, np.int64)
            if found.second_moment is not None:
                tensors[f"{name}|second_moment"] = found.second_moment
        tensors.update({f"{layer}|experts": counts for layer, counts in self.expert_counts.items()})
        write_tensors(path, tensors)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote; second moments stay mapped until they are used.

        Raises:
            ModelError: the file is damaged.
        """
        tensors = open_tensors(path)
        inputs, counts = {}, {}
        for key, tensor in tensors.items():
            name, _, kind = key.rpartition("|")
            if kind == "experts" and name.isdecimal():
                counts[int(name)] = tensor
            elif kind == "absmax":
                rows = tensors.get(f"{name}|rows")
                if rows is None:
                    raise ModelError(f"{path} is not a calibration: {name} has no rows", hint="delete it")
                inputs[name] = InputStatistics(tensor, tensors.get(f"{name}|second_moment"), int(rows))
        return cls(inputs, counts)


def collect(
    model: Decoder, tokens: Tokens, *, second_moments: bool = False, progress: Progress | None = None
) -> Calibration:
    """Run `tokens`, int64 `[n]`, through `model` in windows of 512 and note what its linears see.

    Raises:
        UsageError: fewer than two tokens.
        Cancelled: `progress` was cancelled.
    """
    watched = progress if progress is not None else Silent()
    sums: dict[str, tuple[Floats, Floats | None, int]] = {}
    counts: dict[int, NDArray[np.int64]] = {}

    def observe(name: str, rows: Floats) -> None:
        absmax = np.abs(rows).max(axis=0)
        moment = rows.T @ rows if second_moments else None
        seen = 0
        if name in sums:
            before, total, seen = sums[name]
            absmax = np.maximum(absmax, before)
            moment = moment + total if moment is not None and total is not None else None
        sums[name] = (absmax, moment, seen + len(rows))
        if "_exps." in name:
            layer, experts = int(name.split(".")[1]), model.config.moe
            assert experts is not None
            chosen = np.bincount(model.choices(layer, rows).reshape(-1), minlength=experts.n_experts)
            counts[layer] = counts.get(layer, np.zeros(experts.n_experts, np.int64)) + chosen

    cut = [inputs for inputs, _ in windows(tokens, WINDOW, WINDOW)]
    watched.start("calibrate", len(cut), "windows")
    with model.observed(observe):
        for inputs in cut:
            check_cancelled(watched)
            model.prefill(inputs, model.cache())
            watched.advance("calibrate")
    watched.finish("calibrate")
    return Calibration(
        {
            name: InputStatistics(absmax, None if moment is None else moment / np.float32(rows), rows)
            for name, (absmax, moment, rows) in sums.items()
        },
        counts,
    )


def cached(
    model: Decoder,
    fingerprint: str,
    tokens: Tokens,
    *,
    second_moments: bool = False,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """`collect`, or what an earlier call with the same model and the same tokens left on disk.

    Args:
        fingerprint: That of the model's weights.
        folder: Where to keep it; None takes `calibration` in the user's cache folder.

    Raises:
        StorageError: it could not be kept.
    """
    ids = np.asarray(tokens, np.int64)
    digest = hashlib.sha256(ids.tobytes()).hexdigest()
    key = hashlib.sha256(f"1 {fingerprint} {digest} {len(ids)} {WINDOW} {second_moments}".encode()).hexdigest()[:32]
    folder = folder or Path(platformdirs.user_cache_dir("windlass", appauthor=False)) / "calibration"
    path = folder / f"{key}.safetensors"
    if path.exists():
        try:
            return Calibration.load(path)
        except ModelError:
            pass  # a damaged file is made again
    made = collect(model, tokens, second_moments=second_moments, progress=progress)
    storage.make_folder(folder)
    made.save(path)
    return made
