"""Batches over arbitrary runs of pages: against NumPy with the same rounding, and bit for bit against themselves."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.test_cpu_engine import CASES, RoundedDecoder, Unpacked, relative, write
from windlass.core.errors import UsageError
from windlass.kernels.context_chunks import CHUNK
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import rms_norm, rotate, silu, softmax
from windlass.models.page_pool import PagePool
from windlass.models.token_batch import TokenBatch


class PagedReference(RoundedDecoder):
    """The NumPy decoder over the slots of a pool; shares its layers with the other and nothing with the engine."""

    def forward_tokens(self, batch: TokenBatch, pool: PagePool) -> np.ndarray:
        config, eps, view = self.config, self.config.norm_eps, pool.view()
        heads, kv_heads, size = config.n_heads, config.n_kv_heads, config.head_dim
        angles = batch.positions[:, None] * self._frequencies
        rotation = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        pages, offsets = batch.slots // pool.page_tokens, batch.slots % pool.page_tokens
        x = self._embedding[batch.ids]
        for index, layer in enumerate(self._layers):
            qkv = layer.qkv(rms_norm(x, layer.attn_norm, eps)).reshape(len(x), -1, size)
            q, k, v = qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = rms_norm(q, layer.q_norm, eps), rms_norm(k, layer.k_norm, eps)
            q, k = rotate(q, rotation, config.rope_style), rotate(k, rotation, config.rope_style)
            view[pages, index, 0, :, offsets] = k.astype(np.float16).view(np.uint16)
            view[pages, index, 1, :, offsets] = v.astype(np.float16).view(np.uint16)
            mixed = []
            for token, queries in enumerate(q):
                stored = np.concatenate([view[slot[0], index, :, :, slot[1]][None] for slot in seen(batch, token)])
                stored = stored[-layer.window if layer.window else 0 :].view(np.float16).astype(np.float32)
                keys, values = (np.repeat(stored[:, part], heads // kv_heads, axis=1) for part in (0, 1))
                weights = softmax(np.einsum("hd,shd->hs", queries, keys) / np.float32(math.sqrt(size)))
                mixed.append(np.einsum("hs,shd->hd", weights, values).reshape(-1))
            x = x + layer.output(np.stack(mixed))
            gate, up = np.split(layer.ffn.gate_up(rms_norm(x, layer.ffn_norm, eps)), 2, axis=-1)
            x = x + layer.ffn.down(silu(gate) * up)
        return self._to_logits(x[batch.out_rows])


def seen(batch: TokenBatch, token: int) -> list[tuple[int, int]]:
    """(page, offset) of every slot a token attends to, one by one."""
    low, high = batch.context_offsets[batch.rows[token] :][:2]
    runs = zip(
        batch.context_pages[low:high], batch.context_starts[low:high], batch.context_lengths[low:high], strict=True
    )
    slots = [(int(page), int(start) + i) for page, start, length in runs for i in range(length)]
    return slots[: batch.visible[token]]


def runs_of(slots: list[int], page_tokens: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Neighbouring slots of a page as (page, start, length), sometimes cut where they need not be."""
    runs: list[tuple[int, int, int]] = []
    for slot in slots:
        page, offset = divmod(slot, page_tokens)
        if runs and runs[-1][0] == page and sum(runs[-1][1:]) == offset and rng.random() < 0.9:
            runs[-1] = (page, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((page, offset, 1))
    return runs


def made(
    contexts: list[list[int]], tokens: list[tuple[int, int, int, int, int]], page_tokens: int, rng: np.random.Generator
) -> TokenBatch:
    """A batch from the slots of each context and (id, position, row, slot, visible) of each token."""
    runs = [runs_of(context, page_tokens, rng) for context in contexts]
    columns = [np.array(column, np.int64) for column in zip(*tokens, strict=True)]
    pages, starts, lengths = (np.array(c, np.int64) for c in zip(*(run for part in runs for run in part), strict=True))
    offsets = np.cumsum([0] + [len(part) for part in runs]).astype(np.int64)
    return TokenBatch(*columns, pages, starts, lengths, offsets, np.arange(len(tokens), dtype=np.int64))


def random_work(
    seed: int, pages: int, page_tokens: int, longest: int
) -> tuple[list[list[int]], list[tuple[int, int, int, int, int]]]:
    """Contexts over random stretches of a pool that is full of numbers, some shared, and new tokens at their ends."""
    rng = np.random.default_rng(seed)
    free = list(range(pages * page_tokens // 2, pages * page_tokens))  # the upper half is written to
    contexts, tokens = [], []
    for row in range(rng.integers(1, 4)):
        context: list[int] = []
        while len(context) < rng.integers(0, longest):
            page, start = rng.integers(0, pages // 2), rng.integers(0, page_tokens)
            context += range(page * page_tokens + start, page * page_tokens + rng.integers(start, page_tokens) + 1)
        position = len(context) + int(rng.integers(0, 20))
        at = int(rng.integers(0, len(free) - 60))
        for number in range(rng.integers(1, 5)):
            context.append(free.pop(at))
            tokens.append((int(rng.integers(0, 250)), position + number, row, context[-1], len(context)))
        contexts.append(context)
    return contexts, tokens


def part_of(batch: TokenBatch, tokens: list[int]) -> TokenBatch:
    """Some tokens of a batch with all contexts."""
    picked = {name: getattr(batch, name)[tokens] for name in ("ids", "positions", "rows", "slots", "visible")}
    return replace(batch, **picked, out_rows=np.arange(len(tokens), dtype=np.int64))


@pytest.fixture(scope="module", params=["three heads a key", "window", "qwen3 norm"])
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[CpuEngine, PagedReference]:
    config, metadata = CASES[request.param]
    source = write(tmp_path_factory.mktemp("batch"), config, **metadata)
    engine = CpuEngine(source, threads=2)
    return engine, PagedReference(Unpacked(source, engine))


def filled(engine: CpuEngine, pages: int, page_tokens: int, seed: int) -> PagePool:
    pool = engine.new_pool(pages=pages, page_tokens=page_tokens)
    numbers = np.random.default_rng(seed).standard_normal(pool.data.shape).astype(np.float16)
    pool.data[:] = numbers.view(np.uint16)
    return pool


def test_any_runs_equal_numpy(both: tuple[CpuEngine, PagedReference]) -> None:
    """Most tokens to float32 rounding; where a value lay between two codes, the sequence goes on a little different."""
    engine, reference = both
    errors = []
    for seed in range(9):
        page_tokens, longest = (1, 5, 16)[seed % 3], 40 if seed < 6 else CHUNK + 80
        pages = 480 // page_tokens
        batch = made(*random_work(seed, pages, page_tokens, longest), page_tokens, np.random.default_rng(seed))
        pool, expected_pool = filled(engine, pages, page_tokens, seed), filled(engine, pages, page_tokens, seed)
        logits, expected = engine.forward_tokens(batch, pool), reference.forward_tokens(batch, expected_pool)
        errors += [relative(ours, theirs) for ours, theirs in zip(logits, expected, strict=True)]
        written = pool.data.view(np.float16).astype(np.float32), expected_pool.data.view(np.float16).astype(np.float32)
        assert relative(*written) <= 0.01
    assert len(errors) > 20 and np.median(errors) <= 1e-5 and max(errors) <= 0.05


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 5, 16]), st.sampled_from([40, CHUNK + 80]))
def test_no_bit_depends_on_the_batch(
    both: tuple[CpuEngine, PagedReference], seed: int, page_tokens: int, longest: int
) -> None:
    engine, _ = both
    rng, pages = np.random.default_rng(seed), 480 // page_tokens
    contexts, tokens = random_work(seed, pages, page_tokens, longest)
    batch, pool = made(contexts, tokens, page_tokens, rng), filled(engine, pages, page_tokens, seed)
    logits = engine.forward_tokens(batch, pool)
    pieces, order = filled(engine, pages, page_tokens, seed), list(range(len(tokens)))
    found = np.empty_like(logits)
    while order:
        take = order[: int(rng.integers(1, 4))]
        order = order[len(take) :]
        shuffled = [take[i] for i in rng.permutation(len(take))]
        other_cut = made(contexts, tokens, page_tokens, rng)
        found[shuffled] = engine.forward_tokens(part_of(other_cut, shuffled), pieces)
    assert np.array_equal(found, logits) and np.array_equal(pieces.data, pool.data)


def test_a_context_moved_to_other_pages_gives_the_same_bits(both: tuple[CpuEngine, PagedReference]) -> None:
    engine, _ = both
    tokens = np.random.default_rng(3).integers(0, 250, 300)
    expected = engine.logits(tokens)
    rng, pool = np.random.default_rng(5), engine.new_pool(pages=80, page_tokens=7)
    slots = [int(slot) for slot in rng.permutation(80 * 7)[:300]]
    slots[20:60] = sorted(slots[20:60])
    work = [(int(token), at, 0, slots[at], at + 1) for at, token in enumerate(tokens)]
    parts = [
        made([slots[: end + 1]], work[start : end + 1], 7, rng)
        for start, end in [(0, 6), (7, 260), (261, 261), (262, 299)]
    ]
    assert np.array_equal(np.concatenate([engine.forward_tokens(part, pool) for part in parts]), expected)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=4), st.sampled_from([1, 16]))
def test_the_ordinary_case_is_what_it_says(sequences: list[tuple[int, int]], page_tokens: int) -> None:
    rng = np.random.default_rng(0)
    pages = [rng.permutation(200)[: -(-sum(pair) // page_tokens) + 2].tolist() for pair in sequences]
    tokens = [rng.integers(0, 9, new) for _, new in sequences]
    stored = [length for length, _ in sequences]
    batch = TokenBatch.contiguous(tokens, pages, stored, page_tokens)
    at = 0
    for row, (length, new) in enumerate(sequences):
        for number in range(new):
            position = length + number
            slots = [divmod(i, page_tokens) for i in range(position + 1)]
            assert seen(batch, at) == [(pages[row][page], offset) for page, offset in slots]
            assert batch.slots[at] == pages[row][position // page_tokens] * page_tokens + position % page_tokens
            assert (batch.ids[at], batch.positions[at], batch.rows[at]) == (tokens[row][number], position, row)
            at += 1
        assert batch.out_rows[row] == at - 1
    every = TokenBatch.contiguous(tokens, pages, stored, page_tokens, wanted="every")
    assert every.out_rows.tolist() == list(range(at))
    assert all(getattr(batch, field.name).dtype == np.int64 for field in fields(batch))
    assert len(TokenBatch.contiguous(tokens, pages, stored, page_tokens, wanted="none").out_rows) == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ids", [9999, 0], "ids holds 9999"),
        ("positions", [0, 700], "positions holds 700"),
        ("rows", [0, 1], "rows holds 1"),
        ("slots", [0, 64], "slots holds 64"),
        ("slots", [3, 3], "the same slot"),
        ("visible", [0, 1], "token 0 sees 0 slots of a context of 6"),
        ("visible", [1, 7], "token 1 sees 7 slots of a context of 6"),
        ("context_pages", [0, 4], "context_pages holds 4"),
        ("context_starts", [0, -1], "context_starts holds -1"),
        ("context_lengths", [0, 6], "context_lengths holds 0"),
        ("context_starts", [0, 15], "runs end holds 17"),
        ("context_offsets", [0, 1], "context_offsets do not divide 2 runs"),
        ("out_rows", [2], "out_rows holds 2"),
        ("out_rows", [0, 1, 1], "asks for logits 3 times"),
        ("rows", [0], "rows is int64"),
    ],
)
def test_every_index_is_checked(both: tuple[CpuEngine, PagedReference], name: str, value: list[int], said: str) -> None:
    engine, _ = both
    good = TokenBatch(*(np.array(part, np.int64) for part in (
        [1, 2], [0, 1], [0, 0], [0, 1], [1, 6], [0, 1], [0, 0], [4, 2], [0, 2], [1],
    )))  # fmt: skip
    pool = engine.new_pool(pages=4)
    assert engine.forward_tokens(good, pool).shape == (1, engine.config.vocab_size)
    with pytest.raises(UsageError, match=said):
        engine.forward_tokens(replace(good, **{name: np.array(value, np.int64)}), pool)


def test_a_pool_of_another_model_and_an_empty_batch_are_refused(both: tuple[CpuEngine, PagedReference]) -> None:
    engine, _ = both
    none = np.zeros(0, np.int64)
    with pytest.raises(UsageError, match="the batch is empty"):
        empty = TokenBatch(none, none, none, none, none, none, none, none, np.zeros(2, np.int64), none)
        engine.forward_tokens(empty, engine.new_pool())
    with pytest.raises(UsageError, match="pages have shape"):
        batch = TokenBatch.contiguous([np.array([1])], [[0]], [0], 16)
        engine.forward_tokens(batch, PagePool(1, 1, 16, pages=1))
    with pytest.raises(UsageError, match="2 pages are needed"):
        TokenBatch.contiguous([np.arange(20)], [[0]], [0], 16)
