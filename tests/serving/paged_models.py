"""Tiny models over paged memory: one in float32 throughout, whose memory loses nothing, and the compiled engine."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tests.models.tiny_models import hf_config, random_weights, write_folder
from windlass.models.decoder import Decoder, rms_norm, rotate, softmax
from windlass.models.page_pool import PagePool
from windlass.models.token_batch import TokenBatch


def tiny_llama(folder: Path, seed: int, **changes: object) -> Path:
    """A random model with a context of 256 tokens."""
    config = hf_config("llama", max_position_embeddings=256, **changes)
    return write_folder(folder, config, random_weights(config, seed))


class FloatPool(PagePool):
    """A pool whose pages have float32 twins in `exact`, which are copied along."""

    def __init__(self, decoder: Decoder, pages: int) -> None:
        config = decoder.config
        super().__init__(config.n_layers, config.n_kv_heads, config.head_dim, pages=pages)
        shape = (pages, self.page_tokens, config.n_layers, 2, config.n_kv_heads, config.head_dim)
        self.exact = np.full(shape, np.nan, np.float32)

    def copy(self, page: int) -> int:
        fresh = super().copy(page)
        self.exact[fresh] = self.exact[page]
        return fresh


class FloatModel:
    """The NumPy decoder, token batches in place of sequences. What was never written is NaN, so reading it shows."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.config = decoder, decoder.config

    def forward_tokens(self, batch: TokenBatch, pool: FloatPool) -> np.ndarray:
        d, config, eps = self.decoder, self.config, self.config.norm_eps
        heads, kv_heads, size = config.n_heads, config.n_kv_heads, config.head_dim
        angles = batch.positions[:, None] * d._frequencies
        rotation = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        pages, offsets = batch.slots // pool.page_tokens, batch.slots % pool.page_tokens
        x = d._embedding[batch.ids]
        for index, layer in enumerate(d._layers):
            qkv = layer.qkv(rms_norm(x, layer.attn_norm, eps)).reshape(len(x), -1, size)
            q = rotate(qkv[:, :heads], rotation, config.rope_style)
            pool.exact[pages, offsets, index, 0] = rotate(qkv[:, heads : heads + kv_heads], rotation, config.rope_style)
            pool.exact[pages, offsets, index, 1] = qkv[:, heads + kv_heads :]
            mixed = np.empty((len(x), heads, size), np.float32)
            for row in range(len(batch.context_offsets) - 1):
                mine = np.flatnonzero(batch.rows == row)
                stored = pool.exact[*context_slots(batch, row), index]
                keys, values = (np.repeat(stored[:, part], heads // kv_heads, axis=1) for part in (0, 1))
                scores = np.einsum("thd,shd->hts", q[mine], keys) / np.float32(math.sqrt(size))
                hidden = np.arange(len(stored))[None, :] >= batch.visible[mine][:, None]
                weights = softmax(np.where(hidden, np.float32(-np.inf), scores))
                mixed[mine] = np.einsum("hts,shd->thd", weights, values)
            x = x + layer.output(mixed.reshape(len(x), -1))
            x = x + d._feed_forward(rms_norm(x, layer.ffn_norm, eps), layer.ffn, index)
        logits: np.ndarray = d._to_logits(x[batch.out_rows])
        return logits


def context_slots(batch: TokenBatch, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Page and offset of every slot of a row's context, in order."""
    low, high = batch.context_offsets[row : row + 2]
    starts, lengths = batch.context_starts[low:high], batch.context_lengths[low:high]
    offsets = [start + np.arange(length) for start, length in zip(starts, lengths, strict=True)]
    return np.repeat(batch.context_pages[low:high], lengths), np.concatenate(offsets)
