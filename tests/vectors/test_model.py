"""Every kind of index against a dict, over random operations."""

from __future__ import annotations

import pytest

from tests.children import quick_folder
from tests.vectors.model import run_sequence
from windlass.vectors.indexes import kinds


@pytest.mark.parametrize("kind", kinds())
def test_a_collection_is_a_dict(kind):
    for seed in range(25):
        with quick_folder() as folder:
            run_sequence(folder / "c", kind, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", kinds())
def test_a_collection_is_a_dict_over_two_thousand_sequences(kind):
    for seed in range(100, 2100):
        with quick_folder() as folder:
            run_sequence(folder / "c", kind, seed)
