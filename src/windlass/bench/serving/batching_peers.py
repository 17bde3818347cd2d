"""What other engines do with many requests at once: transformers' continuous batching, llama.cpp's batches (a child).

Both run the very file that our engine runs, on the same number of threads, token for token the same work.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from windlass.bench.harness import peer_module
from windlass.bench.serving.llama_batches import BatchedLlamaCpp
from windlass.core import settings
from windlass.models.hugging_face import save_hugging_face
from windlass.models.store import locate
from windlass.models.weights import open_weights
from windlass.serving.request import Request


def model_file() -> Path:
    """The default model's GGUF file."""
    found = locate(settings.load().models.decoder)
    return found if found.is_file() else next(found.glob("*.gguf"))


def cpu_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def batched_llama_cpp() -> BatchedLlamaCpp | None:
    """llama.cpp in a process of its own; None when it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    return BatchedLlamaCpp(model_file(), tuple(range(1, cpu_threads() + 1)))


class ContinuousTransformers:
    """`generate_batch`: paged attention, continuous batching and chunked prompts, in float32 (its fastest on a CPU)."""

    name = "transformers generate_batch"
    note = "peer computes in float32"

    def __init__(self, model: Any, transformers: Any) -> None:
        self._model, self._transformers = model, transformers

    @classmethod
    def load(cls, folder: Path) -> ContinuousTransformers | None:
        """The model in transformers, by way of `folder`; None when it is not installed.

        Not from the GGUF file itself, whose packed weights transformers computes with several times slower.
        """
        transformers, torch = peer_module("transformers"), peer_module("torch")
        if transformers is None or torch is None:
            return None
        torch.set_num_threads(cpu_threads())
        source = open_weights(model_file())
        save_hugging_face(folder, source.config, {name: source.tensor(name) for name in source.names()})
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        return cls(loaded.eval(), transformers)

    def run(self, requests: Sequence[Request]) -> tuple[float, float]:
        """Tokens a second, and the longest time between two tokens of a request; all make the same number."""
        import time

        (made,) = {request.params.max_tokens for request in requests}
        options = self._transformers.GenerationConfig(
            max_new_tokens=made, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        started = time.perf_counter()
        answers = self._model.generate_batch(
            inputs=[request.prompt.tolist() for request in requests], generation_config=options, progress_bar=False,
            record_timestamps=True, warmup=False,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        stamps = [answer.timestamps for answer in answers.values()]
        gaps = [later - earlier for line in stamps for earlier, later in itertools.pairwise(line)]
        return sum(len(answer.generated_tokens) for answer in answers.values()) / seconds, max(gaps)
