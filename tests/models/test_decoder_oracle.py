"""Ours against `transformers`: tiny random checkpoints of each architecture, and the default model on 20 prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.models.default_model import default_model  # noqa: E402
from windlass.models.decoder import Decoder  # noqa: E402
from windlass.models.generate import LocalModel  # noqa: E402
from windlass.models.torch_decoder import DecoderLM, TorchModel  # noqa: E402

pytestmark = pytest.mark.peers


SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 120, "max_position_embeddings": 128, "attn_implementation": "eager",
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 1e4,
}  # fmt: skip
QWEN_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3 rotary": ("Llama", {"rope_parameters": LLAMA3}),
    "yarn rotary": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen2 window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 8}),
    "olmoe": ("Olmoe", {"num_experts": 12, "num_experts_per_tok": 4}),
    "olmoe renormalised": ("Olmoe", {"num_experts": 12, "num_experts_per_tok": 4, "norm_topk_prob": True}),
    "qwen2 experts": ("Qwen2Moe", QWEN_EXPERTS | {"shared_expert_intermediate_size": 80}),
    "qwen3 experts": ("Qwen3Moe", QWEN_EXPERTS | {"head_dim": 32, "norm_topk_prob": True, "mlp_only_layers": [1]}),
}


def tiny_checkpoint(name: str, dtype: str, folder: Path) -> Any:
    """A random model of the named architecture, saved in `folder`."""
    family, changes = CHECKPOINTS[name]
    torch.manual_seed(3)
    config = getattr(transformers, family + "Config")(**SHAPE, **changes)
    model = getattr(transformers, family + "ForCausalLM")(config).eval().to(getattr(torch, dtype))
    for parameter in model.parameters():
        # Fresh weights are too small to tell a wrong mask or rotation from a right one.
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiny_checkpoints_give_the_logits_of_transformers(name: str, dtype: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(name, dtype, tmp_path)
    tokens = torch.randint(0, 120, (1, 40))
    with torch.no_grad():
        loaded = type(model).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
        expected = loaded(tokens).logits[0].numpy()
    for ours in (Decoder.load(tmp_path), TorchModel(DecoderLM.load(tmp_path))):
        made = ours.logits(tokens[0].numpy())
        assert np.abs(made - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
        assert np.abs(_stepped(ours, tokens[0].numpy()) - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def _stepped(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of a prompt of 30 tokens and single steps after it; those of the prompt's last token stand for all."""
    cache = model.cache()
    rows = [model.prefill(tokens[:30], cache)] + [model.step(int(token), cache) for token in tokens[30:]]
    fork = cache.fork()
    fork.truncate(31)
    again = model.step(int(tokens[31]), fork)
    assert np.abs(again - rows[2]).max() <= 1e-4 * max(1.0, np.abs(again).max())
    return np.concatenate((model.logits(tokens)[:29], np.stack(rows)))


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen2 experts"])
def test_gradients_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    model = tiny_checkpoint(name, "float32", tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    ours, tokens = DecoderLM.load(tmp_path), torch.randint(0, 120, (2, 20))
    for each in (loaded, ours):
        logits = each(tokens).logits if each is loaded else each(tokens)
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    theirs = {parameter_name: parameter.grad for parameter_name, parameter in loaded.named_parameters()}
    for parameter_name, parameter in ours.named_parameters():
        expected = theirs[parameter_name]
        assert (parameter.grad - expected).abs().max() <= 1e-4 * max(1e-3, float(expected.abs().max()))


PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "1, 2, 3, 5, 8, 13,",
    "The quick brown fox jumps over the lazy dog. The dog",
    "Q: What is 12 + 30?\nA:",
    "Water boils at",
    "SELECT name, count(*) FROM",
    "Liebe G\u00e4ste, wir m\u00f6chten",
    "Le chat est assis sur",
    "\u65e5\u672c\u306e\u9996\u90fd\u306f",
    "\U0001f600 emoji test: \U0001f680",
    "import numpy as np\nx = np.",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of thermodynamics are:\n1.",
    '{"name": "Ada", "born":',
    "In 1969, Neil Armstrong",
    "    indented text\t\twith tabs\r\n",
    "Berth 14 is closed from 06:00 to 18:00 because",
    "Roses are red,\nviolets are blue,\n",
]


@pytest.mark.models
def test_default_model_writes_what_transformers_writes() -> None:
    path = default_model()
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = LocalModel(Decoder.load(path), LocalModel.load(path).tokenizer, "oracle")
    for prompt in PROMPTS:
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        assert ours.tokenizer.encode(prompt) == ids
        batch = torch.tensor([ids])
        with torch.no_grad():
            expected = model(batch).logits[0].numpy()
            written = model.generate(batch, max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert np.abs(ours.decoder.logits(np.array(ids)) - expected).max() <= 1e-3
        cache, made = ours.decoder.cache(), []
        logits = ours.decoder.prefill(np.array(ids), cache)
        for _ in range(32):
            made.append(int(logits.argmax()))
            logits = ours.decoder.step(made[-1], cache)
        assert made == written[0, len(ids) :].tolist()
