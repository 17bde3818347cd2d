"""Bits and tables against NumPy."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels import bitcodes, lookup


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 30), dim=st.integers(1, 400), seed=st.integers(0, 10**6))
def test_hamming_counts_differing_signs(count, dim, seed):
    rng = np.random.default_rng(seed)
    x, query = rng.standard_normal((count, dim)).astype(np.float32), rng.standard_normal((1, dim)).astype(np.float32)
    codes, asked = bitcodes.pack_signs(x), bitcodes.pack_signs(query)[0]
    expected = ((x > 0) != (query > 0)).sum(1)
    out = np.empty(count, np.int32)
    bitcodes.hamming(codes, asked, out)
    assert out.tolist() == expected.tolist()
    chosen = rng.permutation(count).astype(np.int64)[: count // 2]
    some = np.empty(len(chosen), np.int32)
    bitcodes.hamming_of(codes, asked, chosen, some)
    assert some.tolist() == expected[chosen].tolist()


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 200), seed=st.integers(0, 10**6))
def test_bitmaps_come_back_and_are_counted(count, seed):
    rng = np.random.default_rng(seed)
    left, right = rng.random(count) < 0.4, rng.random(count) < 0.6
    packed, other = bitcodes.pack_mask(left), bitcodes.pack_mask(right)
    assert bitcodes.unpack_mask(packed, count).tolist() == left.tolist()
    assert bitcodes.count_bits(packed) == left.sum()
    assert bitcodes.count_common(packed, other) == (left & right).sum()


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 1200), columns=st.integers(1, 13), seed=st.integers(0, 10**6))
def test_table_sums_equal_a_lookup(count, columns, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (columns, count)).astype(np.uint8)
    tables = rng.standard_normal((columns, 256)).astype(np.float32)
    expected = sum(tables[j][codes[j]].astype(np.float64) for j in range(columns))
    out = np.empty(count, np.float32)
    lookup.table_sums(codes, tables, out)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    chosen = rng.permutation(count).astype(np.int64)[:20]
    some = np.empty(len(chosen), np.float32)
    lookup.table_sums_of(np.ascontiguousarray(codes.T), tables, chosen, some)
    np.testing.assert_allclose(some, expected[chosen], atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(widths=st.lists(st.integers(0, 8), min_size=1, max_size=12), count=st.integers(0, 20), seed=st.integers(0, 999))
def test_packed_fields_come_back_for_every_width(widths, count, seed):
    rng = np.random.default_rng(seed)
    sizes = np.array(widths)
    codes = (rng.integers(0, 256, (count, len(widths))) % (1 << sizes)).astype(np.uint8)
    packed = lookup.pack_codes(codes, sizes)
    assert packed.shape == ((sum(widths) + 7) // 8, count)
    for column in range(len(widths)):
        assert lookup.unpack_code(packed, sizes, column).tolist() == codes[:, column].tolist()
