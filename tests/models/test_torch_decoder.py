"""The torch decoder against the NumPy one and a float64 reference; batches, caches and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.models.test_decoder import CASES, TOKENS  # noqa: E402
from tests.models.tiny_models import (  # noqa: E402
    hf_config,
    moe_config,
    random_weights,
    reference_logits,
    write_folder,
    write_gguf,
)
from windlass.core.errors import ContextLengthError, ModelError, UsageError  # noqa: E402
from windlass.models.decoder import Decoder  # noqa: E402
from windlass.models.experts import Router  # noqa: E402
from windlass.models.generate import LocalModel  # noqa: E402
from windlass.models.saved_model import save_model  # noqa: E402
from windlass.models.torch_decoder import DecoderLM, TorchModel  # noqa: E402
from windlass.models.torch_experts import MoELayer, choose  # noqa: E402
from windlass.models.weights import open_weights  # noqa: E402


def close(ours: np.ndarray, expected: np.ndarray) -> bool:
    return float(np.abs(ours - expected).max()) <= 1e-4 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["folder", "gguf"])
def test_logits_equal_the_numpy_decoder(name: str, form: str, tmp_path: Path) -> None:
    config = CASES[name]
    weights = random_weights(config)
    if form == "folder":
        path = write_folder(tmp_path, config, weights)
    elif name in ("qwen3 experts", "olmoe renormalised"):
        pytest.skip("GGUF has no such variant")
    else:
        path = write_gguf(tmp_path / "m.gguf", config, weights)
    tokens = np.array(TOKENS)
    assert close(TorchModel(DecoderLM.load(path)).logits(tokens), Decoder.load(path).logits(tokens))


def test_logits_equal_the_float64_reference(tmp_path: Path) -> None:
    config = moe_config("qwen2_moe")
    weights = random_weights(config)
    model = TorchModel(DecoderLM.load(write_folder(tmp_path, config, weights)))
    assert close(model.logits(np.array(TOKENS)), reference_logits(config, weights, TOKENS))


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_rotary_scalings_equal_the_numpy_decoder(scaling: dict[str, Any], tmp_path: Path) -> None:
    config = hf_config(rope_scaling=scaling)
    path = write_folder(tmp_path, config, random_weights(config))
    ours = TorchModel(DecoderLM.load(path)).logits(np.array(TOKENS))
    assert close(ours, Decoder.load(path).logits(np.array(TOKENS)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecoderLM:
    config = moe_config("mixtral", sliding_window=6)
    return DecoderLM.load(write_folder(tmp_path_factory.mktemp("mixtral"), config, random_weights(config))).eval()


def test_steps_forks_and_cuts_agree_with_one_pass(model: DecoderLM) -> None:
    tokens = torch.tensor([TOKENS, TOKENS[::-1]])
    with torch.no_grad():
        whole = model(tokens)
        cache = model.new_cache()
        assert torch.allclose(model(tokens[:, :7], cache), whole[:, :7], atol=1e-4)
        other = cache.fork()
        model(torch.tensor([[1, 2], [3, 4]]), other)
        for position in range(7, tokens.shape[1]):
            step = model(tokens[:, position : position + 1], cache)
            assert torch.allclose(step[:, 0], whole[:, position], atol=1e-4)
        cache.truncate(9)
        assert torch.allclose(model(tokens[:, 9:12], cache), whole[:, 9:12], atol=1e-4)
    assert (other.length, cache.length) == (9, 12)
    assert cache.nbytes == 2 * 2 * 2 * 2 * 12 * 8 * 4
    with pytest.raises(UsageError, match="cannot cut"):
        cache.truncate(13)


def test_left_padding_changes_nothing(model: DecoderLM) -> None:
    """Sequences of three lengths in one batch, then one more token each, with the cache."""
    texts = [TOKENS[:5], TOKENS[3:15], TOKENS[:1]]
    longest = max(map(len, texts))
    padding = torch.tensor([longest - len(text) for text in texts])
    batch = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    with torch.no_grad():
        cache = model.new_cache()
        together = model(batch, cache, padding=padding)
        stepped = model(torch.tensor([[9], [9], [9]]), cache, padding=padding)
        for row, text in enumerate(texts):
            alone = model(torch.tensor([[*text, 9]]))[0]
            assert torch.allclose(together[row, longest - len(text) :], alone[:-1], atol=1e-4)
            assert torch.allclose(stepped[row, 0], alone[-1], atol=1e-4)


def test_it_can_be_trained(tmp_path: Path) -> None:
    """Twenty steps of Adam learn eight tokens by heart, and every parameter takes part."""
    config = moe_config("qwen2_moe")
    model = DecoderLM.load(write_folder(tmp_path, config, random_weights(config)))
    tokens = torch.tensor([TOKENS])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        logits = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_half_precision_keeps_its_rotary_frequencies(tmp_path: Path) -> None:
    config = hf_config()
    path = write_folder(tmp_path, config, random_weights(config))
    model = DecoderLM.load(path, dtype=torch.bfloat16)
    assert model.model.norm.weight.dtype == torch.bfloat16 and model.frequencies.dtype == torch.float64
    assert model.to(torch.float16).frequencies.dtype == torch.float64
    exact = torch.from_numpy(Decoder.load(path).logits(np.array(TOKENS)))
    shares = torch.softmax(model.to(torch.bfloat16)(torch.tensor([TOKENS]))[0].detach(), -1)
    assert float((shares - torch.softmax(exact, -1)).abs().max()) < 0.1


def test_the_torch_engine_writes_the_same_text(tmp_path: Path) -> None:
    config = moe_config("olmoe")
    folder = write_folder(tmp_path, config, random_weights(config))
    texts = {
        engine: "".join(LocalModel.load(folder, engine=engine).complete("the harbour", max_tokens=24))
        for engine in ("torch", "numpy")
    }
    assert texts["torch"] == texts["numpy"] != ""
    for options, said in (({"dtype": "int3"}, "int3"), ({"device": "nowhere"}, "nowhere")):
        with pytest.raises(UsageError, match=said):
            LocalModel.load(folder, engine="torch", **options)


@pytest.mark.parametrize("name", ["qwen2 bias", "mixtral", "qwen2 experts", "qwen3 experts"])
def test_a_module_saved_in_our_form_comes_back(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    source = open_weights(write_folder(tmp_path / "source", config, random_weights(config)))
    model = DecoderLM.from_source(source)
    tensors = model.tensors()
    assert sorted(tensors) == sorted(source.names())
    assert all(np.array_equal(values.ravel(), source.tensor(key).ravel()) for key, values in tensors.items())
    save_model(tmp_path / "saved", model.config, tensors)
    again = DecoderLM.load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(torch.tensor([TOKENS])), model(torch.tensor([TOKENS])))


def test_every_linear_tells_its_weight_and_cost(model: DecoderLM) -> None:
    found = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(found) == 2 * 5 + 1
    for linear in found:
        out_features, in_features = linear.weight.shape
        cost = linear.cost(3)
        assert linear.nbytes == 4 * out_features * in_features
        assert (cost.flops, cost.shape) == (6 * out_features * in_features, (3, out_features, in_features))
        assert (cost.dtype, cost.bytes) == ("fp32", linear.nbytes + 12 * (out_features + in_features))


def test_tied_embeddings_are_one_parameter(tmp_path: Path) -> None:
    config = hf_config(tie_word_embeddings=True)
    model = DecoderLM.load(write_folder(tmp_path, config, random_weights(config)))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_damage_and_wrong_input_are_typed_errors(model: DecoderLM, tmp_path: Path) -> None:
    config = hf_config()
    weights = random_weights(config)
    name = "model.layers.1.mlp.up_proj.weight"
    missing = {key: value for key, value in weights.items() if key != name}
    for label, broken in {
        "missing": missing,
        "NaN": {**weights, name: weights[name] * np.float32(np.nan)},
        "shape": {**weights, name: weights[name][:-1]},
    }.items():
        with pytest.raises(ModelError, match=rf"blk.1.ffn_up.weight.*{label}"):
            DecoderLM.load(write_folder(tmp_path / label, config, broken))
    for tokens, said in ([[]], "at least one"), ([[99999]], "99999"), ([[-1]], "-1"):
        with pytest.raises(UsageError, match=said):
            model(torch.tensor(tokens, dtype=torch.long))
    with pytest.raises(ContextLengthError, match="64"):
        model(torch.zeros(1, 65, dtype=torch.long))


ROUTERS = [
    Router(2),
    Router(3, normalise=True),
    Router(2, "topk_softmax"),
    Router(2, "sigmoid_bias", normalise=True, scale=2.5),
    Router(3, "sigmoid_bias", groups=4, top_groups=2),
]


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_routers_choose_as_the_numpy_ones(router: Router) -> None:
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((64, 8)).astype(np.float32)
    scores[:8, 4:] = scores[:8, :4]  # ties
    bias = rng.standard_normal(8).astype(np.float32) if router.kind == "sigmoid_bias" else None
    chosen, weights = choose(router, torch.from_numpy(scores), None if bias is None else torch.from_numpy(bias))
    expected, shares = router.choose(scores, bias)
    assert np.array_equal(chosen.numpy(), expected) and np.allclose(weights.numpy(), shares, rtol=1e-5)


def test_layer_gradients_equal_numerical_ones() -> None:
    torch.manual_seed(0)
    layer = MoELayer(6, 5, experts=4, router=Router(2, normalise=True), shared=3).double()
    x = torch.randn(7, 6, dtype=torch.double, requires_grad=True)
    routing = layer.route(x.detach())
    assert torch.autograd.gradcheck(lambda rows: layer.mix(rows, routing), (x,))
    scores = torch.randn(5, 8, dtype=torch.double, requires_grad=True)
    for router in ROUTERS:
        assert torch.autograd.gradcheck(lambda values, router=router: choose(router, values)[1], (scores,))


def test_layer_reports_its_load_and_does_not_mind_empty_input() -> None:
    layer = MoELayer(8, 4, experts=5, router=Router(2))
    rows = torch.randn(11, 8)
    routing = layer.route(rows)
    assert routing.load(5).tolist() == np.bincount(routing.chosen.flatten().numpy(), minlength=5).tolist()
    assert layer(torch.zeros(0, 8)).shape == (0, 8)
    with pytest.raises(UsageError, match="cannot choose"):
        MoELayer(8, 4, experts=3, router=Router(4))
