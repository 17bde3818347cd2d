"""What other engines do with many requests at once: transformers' continuous batching, llama.cpp's batches.

Both run the very file that our engine runs, on the same number of threads, token for token the same work.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from windlass.bench.harness import peer_module
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
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


class BatchedLlamaCpp:
    """llama.cpp's own batches: one token of every sequence in each call of `llama_decode`."""

    name = "llama.cpp"

    def __init__(self, library: Any, path: Path, sequences: int) -> None:
        self._lib = library
        # Kept as long as this object: the library calls it at any time.
        self._silence = library.llama_log_callback(lambda *_: None)
        library.llama_log_set(self._silence, None)
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        options = library.llama_context_default_params()
        options.n_ctx, options.n_seq_max = 128 * sequences, sequences
        options.n_batch = options.n_ubatch = 32 * sequences
        options.n_threads = options.n_threads_batch = cpu_threads()
        self._context = library.llama_init_from_model(self._model, options)
        self._batch = library.llama_batch_init(32 * sequences, 0, 1)

    @classmethod
    def load(cls) -> BatchedLlamaCpp | None:
        """The model in llama.cpp; None when it is not installed."""
        library = peer_module("llama_cpp")
        return None if library is None else cls(library, model_file(), 32)

    def run(self, size: int, steps: int) -> float:
        """Tokens a second of `size` greedy generations behind prompts of 32 tokens."""
        import time

        import numpy as np

        lib, vocabulary = self._lib, self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._decode([(100 + seq + at, at, seq, at == 31) for seq in range(size) for at in range(32)])
        tokens = [1] * size
        started = time.perf_counter()
        for step in range(steps):
            self._decode([(token, 32 + step, seq, True) for seq, token in enumerate(tokens)])
            for seq in range(size):
                logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, seq), (vocabulary,))
                tokens[seq] = int(logits.argmax())
        return size * steps / (time.perf_counter() - started)

    def close(self) -> None:
        """Give its memory back."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, seq, wanted) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, seq
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
