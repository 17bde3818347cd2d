"""What rounding costs on the default model: the compiled engine against the float32 decoder on English prose."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models.default_model import default_model
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import Decoder
from windlass.models.gguf import GGUFSource
from windlass.models.token_batch import TokenBatch
from windlass.models.tokenizer import tokenizer_from_gguf

PROSE = """
The harbour of the old town lies behind two stone moles that were built in the winter of 1782, after
a storm had sunk eleven fishing boats in one night. For more than a century the pilots met every
ship at the outer buoy, because the channel bends twice and the sand moves with each gale. When
steam came, the channel was dredged to a depth of seven metres, a railway was laid along the eastern
quay, and the first crane was set up in front of the customs house. The number of calls grew from
about three hundred a year to more than two thousand. Most of the cargo was timber and coal; later
grain from the inland farms, and after the second war also cars, machines and chemicals. The
authority that runs the port today employs two hundred and forty people. It keeps the depth of the
channel, the lights and the buoys, it gives each ship a berth, and it collects dues according to a
tariff which is printed every spring. Since the tide rises by more than three metres, large vessels
may enter only in the two hours before high water, and the harbour master decides in which order
they come. In the year 2004 a new terminal for containers was opened on the western side.
"""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.models
def test_the_default_model_keeps_its_predictions() -> None:
    source = GGUFSource(default_model())
    tokens = np.array(tokenizer_from_gguf(source.metadata, str(source.path)).encode(PROSE.strip()))
    engine, reference = log_softmax(CpuEngine(source).logits(tokens)), log_softmax(Decoder(source).logits(tokens))
    divergence = (np.exp(reference) * (reference - engine)).sum(axis=1).mean()
    agreement = (reference.argmax(axis=1) == engine.argmax(axis=1)).mean()
    following = np.arange(len(tokens) - 1), tokens[1:]
    loss, reference_loss = -engine[following].mean(), -reference[following].mean()
    assert divergence <= 0.006
    assert agreement >= 0.94
    assert loss - reference_loss <= 0.01


@pytest.mark.models
def test_a_guessed_head_finds_the_same_tokens() -> None:
    source = GGUFSource(default_model())
    tokens = np.array(tokenizer_from_gguf(source.metadata, str(source.path)).encode(PROSE.strip()))
    engine = CpuEngine(source)
    pool, pages = engine.new_pool(), -(-len(tokens) // 16)
    batch = TokenBatch.contiguous([tokens], [pool.take_many(pages)], [0], 16, wanted="every")
    assert np.array_equal(engine.forward_greedy(batch, pool), engine.forward_tokens(batch, pool).argmax(axis=1))
    cache, stepped = engine.cache(), engine.cache()
    chosen = engine.likeliest(tokens[:50], cache)
    logits = engine.prefill(tokens[:50], stepped)
    for _ in range(40):
        assert chosen == logits.argmax()
        chosen, logits = engine.likeliest(np.array([chosen]), cache), engine.step(chosen, stepped)
