"""Hashes against their plain Python bodies, and the laws that the finders rely on."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels.compiled import compiled
from windlass.kernels.hashing import (
    hash_bytes,
    hash_bytes_reference,
    hash_strings,
    mix64,
    mix64_reference,
    row_hashes,
)


@compiled
def _mixed(values: np.ndarray, out: np.ndarray) -> None:
    for index in range(values.size):
        out[index] = mix64(values[index])


def buffer(data: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(data), np.uint8)


@settings(deadline=None)
@given(st.binary(max_size=70), st.binary(max_size=9))
def test_bytes_hash_as_in_plain_python_wherever_they_stand(data: bytes, before: bytes) -> None:
    at = len(before)
    assert int(hash_bytes(buffer(before + data + b"\xff"), at, at + len(data))) == hash_bytes_reference(data)


def test_every_length_has_hashes_of_its_own() -> None:
    zeros = bytes(200)
    found = {hash_bytes_reference(zeros[:length]) for length in range(200)}
    assert len(found) == 200


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_mixing_is_as_in_plain_python(values: list[int]) -> None:
    out = np.empty(len(values), np.uint64)
    _mixed(np.array(values, np.uint64), out)
    assert out.tolist() == [mix64_reference(value) for value in values]


def test_one_changed_bit_of_the_input_changes_half_of_the_output() -> None:
    rng = np.random.default_rng(5)
    words = [rng.bytes(24) for _ in range(200)]
    shares = []
    for word in words:
        place = int(rng.integers(24 * 8))
        other = bytearray(word)
        other[place // 8] ^= 1 << (place % 8)
        shares.append((hash_bytes_reference(word) ^ hash_bytes_reference(bytes(other))).bit_count() / 64)
    assert abs(np.mean(shares) - 0.5) < 0.02


def test_strings_hash_one_by_one() -> None:
    words = [b"", b"a", b"berth", b"a much longer string of words"]
    ends = np.cumsum([len(word) for word in words])
    starts = ends - [len(word) for word in words]
    found = hash_strings(buffer(b"".join(words)), starts, ends)
    assert found.tolist() == [hash_bytes_reference(word) for word in words]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 30), st.randoms(use_true_random=False))
def test_a_projection_is_hashed_as_the_table_of_those_columns(columns: int, rows: int, random: object) -> None:
    rng = np.random.default_rng(columns * 31 + rows)
    values = rng.integers(0, 4, (columns, rows)).astype(np.uint64)
    seeds = rng.integers(0, 2**63, columns).astype(np.uint64)
    chosen = rng.permutation(columns)[: max(1, columns // 2)]
    alone = row_hashes(np.ascontiguousarray(values[chosen]), seeds[chosen], np.arange(len(chosen)))
    assert np.array_equal(row_hashes(values, seeds, chosen), alone)
    assert np.array_equal(row_hashes(values, seeds, chosen[::-1].copy()), alone)


def test_rows_hash_equal_exactly_when_they_are_equal() -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 3, (4, 500)).astype(np.uint64)
    hashes = row_hashes(values, rng.integers(0, 2**64, 4, np.uint64), np.arange(4))
    by_hash = {int(h): tuple(values[:, row]) for row, h in enumerate(hashes)}
    assert all(by_hash[int(h)] == tuple(values[:, row]) for row, h in enumerate(hashes))
    assert len(by_hash) == len({tuple(values[:, row]) for row in range(500)})
