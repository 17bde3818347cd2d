"""Prices of steps: composed of operators, monotone, and fitted ones found again."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.core.program import ITEM_BYTES, OpCost
from windlass.serving.batch import BatchShape
from windlass.serving.cost import (
    DecoderShape,
    IterationCost,
    MeasuredStep,
    StepFit,
    fit_host,
    fit_steps,
    tensor_parallel,
)
from windlass.sim.cost import CostModel
from windlass.sim.hardware import hardware

MISTRAL = DecoderShape(32, 4096, 32, 8, 128, 14336, 32000)
A100 = hardware("A100")
PRICE = IterationCost(CostModel(), A100, MISTRAL)


def test_sizes_are_those_of_the_model():
    assert MISTRAL.weight_bytes / ITEM_BYTES["bf16"] == pytest.approx(7.24e9 - 32000 * 4096, rel=0.01)
    assert MISTRAL.kv_bytes_per_token == 131_072
    assert PRICE.kv_pages(16) == int((0.9 * 80 * 2**30 - MISTRAL.weight_bytes) / (16 * 131_072))
    with pytest.raises(UsageError, match="leave no room"):
        IterationCost(CostModel(), hardware("RTX4070"), MISTRAL).kv_pages(16)


def test_a_step_is_the_sum_of_its_operators():
    tokens, samples, pairs, context = 300, 3, 40_000.0, 5_000
    model, e = CostModel(), A100.efficiency
    products = sum(model.op(OpCost.gemm(tokens, n, k, "bf16"), A100).seconds for n, k in MISTRAL.products())
    logits = model.op(OpCost.gemm(samples, 32000, 4096, "bf16"), A100).seconds
    prompts = 4 * 32 * 4096 * pairs / (312e12 * e.attention_compute)
    decodes = context * 131_072 / (A100.mem_bw * e.attention_memory)
    found = PRICE.iteration(BatchShape(tokens, samples, pairs, context))
    assert found.compute_s == pytest.approx(32 * products + logits + prompts)
    assert found.memory_s > decodes
    assert found.overhead_s == PRICE.host_s
    total = found.compute_s + found.memory_s + found.network_s + found.overhead_s
    assert found.total_s == pytest.approx(total)
    assert PRICE.seconds(BatchShape(tokens, samples, pairs, context)) == pytest.approx(total)
    assert A100.idle_w < found.power_w < A100.tdp_w


def test_nothing_costs_nothing():
    assert PRICE.seconds(BatchShape(0, 0, 0.0, 0)) == 0.0


shapes = st.builds(BatchShape, st.integers(1, 4000), st.integers(0, 128), st.floats(0, 1e7), st.integers(0, 500_000))


@given(shapes, st.integers(0, 1000), st.integers(0, 20), st.floats(0, 1e6), st.integers(0, 10_000))
def test_more_work_never_takes_less(shape, tokens, samples, pairs, context):
    more = BatchShape(
        shape.tokens + tokens, shape.samples + samples, shape.prefill_pairs + pairs, shape.decode_context + context
    )
    # Full tiles are cheaper a row than cut ones, so a little more may round to the same waves, never below 0.9.
    assert PRICE.seconds(more) >= 0.9 * PRICE.seconds(shape)


def test_splitting_costs_messages_and_saves_time():
    prompt = BatchShape(4096, 1, 4096 * 2048.0, 0)
    one, four = PRICE.iteration(prompt), tensor_parallel(A100, 4, MISTRAL).iteration(prompt)
    assert one.network_s == 0 < four.network_s
    assert four.total_s < one.total_s < 4 * four.total_s
    with pytest.raises(UsageError, match="32 heads split over 3"):
        tensor_parallel(A100, 3, MISTRAL)


def test_a_price_says_how_far_off_it_is():
    assert 0.06 < PRICE.error < 0.2
    assert IterationCost(CostModel(), hardware("RTX4090"), MISTRAL).error > PRICE.error


def test_a_fast_device_waits_for_its_host():
    slow_host = IterationCost(CostModel(), A100, MISTRAL, host_s=0.002, launch_s=0.05)
    one, many = BatchShape(1, 1, 0.0, 100), BatchShape(8000, 1, 8000 * 4000.0, 0)
    assert slow_host.seconds(one) == pytest.approx(0.052)
    assert slow_host.iteration(one).overhead_s == pytest.approx(0.052 - slow_host.device_seconds(one))
    assert slow_host.seconds(many) == pytest.approx(slow_host.device_seconds(many) + 0.002)


def test_the_host_is_fitted_again():
    device = np.geomspace(0.005, 0.5, 40)
    launch, host = fit_host(device, np.maximum(device, 0.04) + 0.003)
    assert (launch, host) == pytest.approx((0.04, 0.003), rel=0.05)
    with pytest.raises(UsageError, match="too few"):
        fit_host([1.0], [1.0])


def test_steps_are_fitted_again():
    truth = StepFit(0.004, 0.01, 0.0008, 2e-7, 1e-6, 0.0005, 0.0)
    generator = np.random.default_rng(0)
    steps = []
    for tokens in (1, 4, 16, 64, 256):
        for context in (0, 512, 2048):
            for decodes in (0, 8):
                pairs = tokens * (context + tokens / 2) if tokens > 1 else 0.0
                shape = BatchShape(tokens + decodes, 1 + decodes, pairs, context * (decodes + (tokens == 1)))
                steps.append(MeasuredStep(shape, truth.seconds(shape) * float(generator.normal(1, 0.02))))
    found = fit_steps(steps)
    assert found.error < 0.03
    unseen = BatchShape(100, 5, 100 * 1000.0, 8000)
    assert found.seconds(unseen) == pytest.approx(truth.seconds(unseen), rel=0.05)
    assert StepFit(**found.to_json()) == found


def test_too_little_to_fit_is_refused():
    shape = BatchShape(1, 1, 0.0, 10)
    for steps in ([MeasuredStep(shape, 1.0)] * 3, [MeasuredStep(shape, math.nan)] * 20):
        with pytest.raises(UsageError, match="too few to fit"):
            fit_steps(steps)
