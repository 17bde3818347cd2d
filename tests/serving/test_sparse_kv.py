"""Sparse attention as an option of the engine: what it decides, that it is named, and that off means off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.models.adapters import write_adapter
from tests.models.tiny_models import hf_config, random_weights, write_folder
from windlass.core.errors import UsageError
from windlass.models.generate import LocalModel
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.local_engine import local_engine
from windlass.serving.request import Request, SamplingParams, tokens_of
from windlass.serving.sparse_policy import LEAST_PAGES, SparsePolicy

CONFIG = hf_config(hidden_size=64, head_dim=16, intermediate_size=96, max_position_embeddings=1024)


@given(ratio=st.floats(0.01, 1), local=st.floats(0.01, 1), stored=st.integers(0, 1000))
def test_budgets_are_shares_and_short_contexts_are_read_whole(ratio: float, local: float, stored: int) -> None:
    policy = SparsePolicy(ratio, local)
    budget, newest = policy.pages(stored)
    if budget:
        assert stored >= LEAST_PAGES and 2 <= newest < budget < stored
        assert ratio * stored <= budget < ratio * stored + 1
    assert policy.applies(16 * stored) == bool(budget)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_senseless_shares_are_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="ratio"):
        SparsePolicy(ratio)
    with pytest.raises(UsageError, match="local_share"):
        SparsePolicy(0.2, ratio)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    root = tmp_path_factory.mktemp("sparse")
    loaded = LocalModel.load(write_folder(root / "m", CONFIG, random_weights(CONFIG, 5)), engine="compiled", threads=2)
    yield loaded
    loaded.decoder.close()  # type: ignore[attr-defined]


def answers(engine: Engine, lengths: list[int], adapter: str | None = None) -> tuple[list[list[int]], list[set[str]]]:
    handles = [
        engine.submit(
            Request(
                str(number),
                tokens_of((np.arange(length) * 7 + number) % 250),
                SamplingParams(max_tokens=12),
                adapter=adapter,
            )
        )
        for number, length in enumerate(lengths)
    ]
    engine.run_until_idle()
    return [handle.sequences[0].tokens for handle in handles], [set(handle.approximations) for handle in handles]


def test_it_is_named_where_it_was_used_and_only_there(model: LocalModel) -> None:
    lengths = [40, 500, 100, 700]
    dense, nothing = answers(local_engine(model), lengths)
    whole, also_nothing = answers(local_engine(model, config=EngineConfig(kv_sparsity=0.0)), lengths)
    sparse, named = answers(local_engine(model, config=EngineConfig(kv_sparsity=0.8)), lengths)
    assert dense == whole and not any(nothing) and not any(also_nothing)
    assert named == [set(), {"kv_sparsity"}, set(), {"kv_sparsity"}]
    assert sparse[0] == dense[0] and sparse[2] == dense[2]
    assert sparse[1] != dense[1] or sparse[3] != dense[3]


def test_answers_do_not_depend_on_who_shares_the_batch(model: LocalModel) -> None:
    config = EngineConfig(kv_sparsity=0.8)
    together, _ = answers(local_engine(model, config=config), [600, 90, 700, 400])
    alone, _ = answers(local_engine(model, config=config), [600])
    assert alone[0] == together[0]


def test_with_an_adapter(model: LocalModel, tmp_path: Path) -> None:
    write_adapter(tmp_path / "a", CONFIG, 4, strength=2.0)
    engine = local_engine(model, config=EngineConfig(kv_sparsity=0.8))
    assert engine.adapters is not None
    key = engine.adapters.store.register("a", tmp_path / "a").key
    plain, _ = answers(engine, [500])
    adapted, named = answers(engine, [500], key)
    assert adapted != plain and named == [{"kv_sparsity"}]
