"""Runs batches on a torch model: on a GPU, or on a processor as the reference (extra `torch`).

The decoder is the ordinary one of `models.torch_decoder`; what is ours is a cache that stands in pages. Sequences of a
batch that compute equally many tokens go through the model together, so a step is one pass for all generations and one
for each prompt chunk of a length of its own.
"""

# mypy: warn-return-any=False

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from windlass.models.page_pool import PAGE_TOKENS
from windlass.models.token_batch import TokenBatch
from windlass.models.torch_decoder import DecoderLM
from windlass.serving.batch import Batch, ExecutorCaps, StepResult
from windlass.serving.kv import PageCounts
from windlass.serving.numba_executor import run_batch
from windlass.serving.sampling import Floats


class TorchPool(PageCounts):
    """Pages on the model's device, `[pages, layers, 2, key_heads, page_tokens, head_dim]`, in the model's data type.

    Args:
        model: Whose keys and values it holds.
        pages: How many; reserved at once.
    """

    def __init__(self, model: DecoderLM, pages: int, *, page_tokens: int = PAGE_TOKENS) -> None:
        super().__init__()
        config, weight = model.config, model.model.embed_tokens.weight
        shape = (pages, config.n_layers, 2, config.n_kv_heads, page_tokens, config.head_dim)
        self.page_tokens = page_tokens
        self.data = torch.zeros(shape, dtype=weight.dtype, device=weight.device)

    def copy(self, page: int) -> int:
        fresh = super().copy(page)
        self.data[fresh] = self.data[page]
        return fresh


class TorchExecutor:
    """The model on torch.

    Args:
        model: On its device, in its data type.
        pool: The memory it writes; the one that the engine's `KVManager` hands out.
        clock: Seconds, for the durations it reports.
        most_tokens: Largest batch.
    """

    def __init__(
        self,
        model: DecoderLM,
        pool: TorchPool,
        *,
        clock: Callable[[], float] = time.perf_counter,
        most_tokens: int = 8192,
    ) -> None:
        self._model, self._pool, self._clock = model.eval(), pool, clock
        self.caps = ExecutorCaps(pool.data.device.type, most_tokens, model.config.max_position)

    def run(self, batch: Batch) -> StepResult:
        return run_batch(batch, lambda tokens: forward_tokens(self._model, tokens, self._pool), self._clock)


def forward_tokens(model: DecoderLM, batch: TokenBatch, pool: TorchPool) -> Floats:
    """As `CpuEngine.forward_tokens`: float32 [len(batch.out_rows), vocab]."""
    with torch.inference_mode():
        return _logits(model, batch, pool)


def _logits(model: DecoderLM, batch: TokenBatch, pool: TorchPool) -> Floats:
    counts = np.bincount(batch.rows, minlength=len(batch.context_offsets) - 1)
    logits = np.empty((len(batch.out_rows), model.config.vocab_size), np.float32)
    for count in np.unique(counts[counts > 0]):
        rows = np.flatnonzero(counts == count)
        tokens = np.stack([np.flatnonzero(batch.rows == row) for row in rows])
        hidden = _hidden_states(model, batch, pool, rows, tokens)
        wanted = np.isin(tokens, batch.out_rows)
        if wanted.any():
            made = model.lm_head(model.model.norm(hidden[torch.from_numpy(wanted).to(hidden.device)])).float()
            places = {int(token): place for place, token in enumerate(batch.out_rows)}
            logits[[places[int(token)] for token in tokens[wanted]]] = made.cpu().numpy()
    return logits


def _hidden_states(
    model: DecoderLM, batch: TokenBatch, pool: TorchPool, rows: np.ndarray, tokens: np.ndarray
) -> Tensor:
    """Last hidden states [B, T, hidden] of `tokens` [B, T], which belong to `rows` [B]."""
    device = pool.data.device

    def on_device(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)

    cache = _PagedCache(pool, on_device(batch.slots[tokens]), on_device(_context_slots(batch, rows, pool.page_tokens)))
    positions, visible = on_device(batch.positions[tokens]), on_device(batch.visible[tokens])
    rotation = model._rotation(positions)
    index = torch.arange(cache.context.shape[1], device=device)
    x = model.model.embed_tokens(on_device(batch.ids[tokens]))
    for layer, block in enumerate(model.model.layers):
        window = model.config.window_of(layer)
        unseen = index >= visible[..., None]
        if window is not None:
            unseen = unseen | (index < visible[..., None] - window)
        x = block(x, rotation, unseen, cache)
    return x


def _context_slots(batch: TokenBatch, rows: np.ndarray, page_tokens: int) -> np.ndarray:
    """Slots of the contexts of `rows`, int64 [B, longest]; shorter ones are filled with a slot of their own."""
    lines = []
    for row in rows:
        low, high = batch.context_offsets[row : row + 2]
        first = batch.context_pages[low:high] * page_tokens + batch.context_starts[low:high]
        lengths = batch.context_lengths[low:high]
        before = np.cumsum(lengths) - lengths
        lines.append(np.repeat(first - before, lengths) + np.arange(lengths.sum()))
    longest = max(len(line) for line in lines)
    return np.stack([np.pad(line, (0, longest - len(line)), mode="edge") for line in lines])


class _PagedCache:
    """What `DecoderLM`'s attention takes for a cache: writes new keys and values to slots, returns whole contexts."""

    def __init__(self, pool: TorchPool, slots: Tensor, context: Tensor) -> None:
        self._data, size = pool.data, pool.page_tokens
        self._written = (slots // size, slots % size)
        self._read = (context // size, context % size)
        self.context = context

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        stored = self._data[:, layer]
        pages, places = self._written
        stored[pages, 0, :, places] = keys.transpose(1, 2)
        stored[pages, 1, :, places] = values.transpose(1, 2)
        pages, places = self._read
        return stored[pages, 0, :, places].transpose(1, 2), stored[pages, 1, :, places].transpose(1, 2)
