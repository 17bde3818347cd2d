"""Models: read a decoder or an encoder, run it, measure it, make it smaller.

In the order weights pass: `gguf`, `safetensors_file`, `saved_model` and `weights` read files; `config` and `name_maps`
say what is in them; `decoder` (NumPy), `cpu_engine` (compiled) and `torch_decoder` run it; `tokenizer`,
`chat_template` and `generate` make text; `evaluate`, `calibration`, `block_quantize` and `transforms` are for those
who change it.

Example:
    model = windlass.models.load("SmolLM2-135M-Instruct.Q4_1.gguf")
    print("".join(model.complete("Berth four is", max_tokens=20)))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windlass.models.generate import LocalModel

__all__ = ["load"]


def load(path: Any, **options: Any) -> LocalModel:
    """Load a model file or folder; see `windlass.models.generate.LocalModel.load` for the options."""
    from windlass.models.generate import LocalModel

    return LocalModel.load(path, **options)
