"""What a tensor is called: the names of GGUF are used throughout, those of Hugging Face are read and written.

Experts are one three-dimensional tensor `[expert, out, in]` under a GGUF name. Hugging Face folders hold them one by
one, or fused; `canonical` says which piece of which tensor a stored name is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.gate": "ffn_gate_inp",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
EXPERT = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")
_EXPERT_NAME = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d{1,5})\.(\w+)\.weight")
_FUSED_NAME = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(gate_up_proj|down_proj)(?:\.weight)?")
_TO_HF_LAYER = {ours: theirs for theirs, ours in LAYER.items()}
_TO_HF_OUTER = {ours: theirs for theirs, ours in OUTER.items()}


@dataclass(frozen=True)
class Place:
    """Where a stored tensor belongs: all of `name`, its expert number `expert`, or (`half`) one half of the rows of
    every expert in it.
    """

    name: str
    expert: int | None = None
    half: Literal[0, 1] | None = None


def canonical(name: str) -> list[Place]:
    """The place, or the two places, of a tensor under its Hugging Face name; an unknown name stands for itself.

    Example:
        >>> canonical("model.layers.3.mlp.experts.7.up_proj.weight")
        [Place(name='blk.3.ffn_up_exps.weight', expert=7, half=None)]
    """
    stem, _, suffix = name.rpartition(".")
    if stem in OUTER:
        return [Place(f"{OUTER[stem]}.{suffix}")]
    layer = _LAYER_NAME.fullmatch(name)
    if layer is None:
        return [Place(name)]
    prefix, rest = f"blk.{layer[1]}.", layer[2]
    expert = _EXPERT_NAME.fullmatch(rest)
    if expert is not None and expert[2] in EXPERT:
        return [Place(f"{prefix}{EXPERT[expert[2]]}.weight", expert=int(expert[1]))]
    fused = _FUSED_NAME.fullmatch(rest)
    if fused is not None and fused[1] == "down_proj":
        return [Place(f"{prefix}ffn_down_exps.weight")]
    if fused is not None:
        return [Place(f"{prefix}ffn_gate_exps.weight", half=0), Place(f"{prefix}ffn_up_exps.weight", half=1)]
    stem, _, suffix = rest.rpartition(".")
    stem = stem.replace("block_sparse_moe.", "mlp.", 1)
    return [Place(f"{prefix}{LAYER.get(stem, stem)}.{suffix}")]


def hugging_face(name: str, *, arch: str, expert: int | None = None) -> str:
    """The Hugging Face name of a tensor under its GGUF name; of one of its experts, when it holds several.

    Raises:
        KeyError: no such tensor is known.

    Example:
        >>> hugging_face("blk.3.ffn_up_exps.weight", arch="mixtral", expert=7)
        'model.layers.3.block_sparse_moe.experts.7.w3.weight'
    """
    stem, _, suffix = name.rpartition(".")
    if stem in _TO_HF_OUTER:
        return f"{_TO_HF_OUTER[stem]}.{suffix}"
    block, layer, part = stem.split(".")
    if block != "blk":
        raise KeyError(name)
    at = f"model.layers.{layer}."
    if expert is not None:
        mixtral = arch == "mixtral"
        theirs = next(key for key, ours in EXPERT.items() if ours == part and key.startswith("w") == mixtral)
        return f"{at}{'block_sparse_moe' if mixtral else 'mlp'}.experts.{expert}.{theirs}.{suffix}"
    if arch == "mixtral" and part == "ffn_gate_inp":
        return f"{at}block_sparse_moe.gate.{suffix}"
    return f"{at}{_TO_HF_LAYER[part]}.{suffix}"
