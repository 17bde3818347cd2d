"""The torch executor under the exactness contract, against full forward passes of the NumPy decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.serving.paged_models import tiny_llama
from tests.serving.test_exactness import POLICIES, disturbed_run

pytest.importorskip("torch")

from windlass.models.decoder import Decoder
from windlass.models.torch_decoder import DecoderLM
from windlass.serving.torch_executor import TorchExecutor, TorchPool


@pytest.mark.parametrize("name", ["chunks of 7", "hybrid", "short ones pass"])
def test_greedy_tokens_are_those_of_a_full_forward_pass(name: str, tmp_path: Any) -> None:
    path = tiny_llama(tmp_path / "tiny", 3)
    decoder, module = Decoder.load(path), DecoderLM.load(path)
    pool = TorchPool(module, 12)
    sequences = disturbed_run(
        None, pool, 12, POLICIES[name](), 1, decoder.config.vocab_size, executor=TorchExecutor(module, pool)
    )
    steps, exempt = 0, 0
    for seq in (seq for seq in sequences if seq.made):
        logits = decoder.logits(np.array(seq.tokens[:-1]))[seq.prompt_length - 1 :]
        second, first = np.partition(logits, -2, axis=1)[:, -2:].T
        wrong = logits.argmax(axis=1) != seq.tokens[seq.prompt_length :]
        steps, exempt = steps + len(logits), exempt + int(wrong.sum())
        assert not (wrong & (first - second >= 1e-3)).any()
    assert steps > 50 and exempt < 0.005 * steps
