"""Those who decode one token after the other: ours and the peers behind the same three calls."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from windlass.bench.harness import peer_module
from windlass.models.cpu_engine import CpuEngine

CONTEXT = 4096


class Decoding(Protocol):
    """One sequence of one model."""

    def reset(self) -> None:
        """Forget the sequence."""

    def prefill(self, tokens: Sequence[int]) -> None:
        """Append a prompt; logits after its last token are computed."""

    def step(self, token: int) -> None:
        """Append one token; logits after it are computed."""


class Ours:
    """The compiled engine: all logits, or only the likeliest token."""

    def __init__(self, engine: CpuEngine, *, greedy: bool = False) -> None:
        self.engine, self.greedy, self.cache = engine, greedy, engine.cache()

    def reset(self) -> None:
        self.cache = self.engine.cache()

    def prefill(self, tokens: Sequence[int]) -> None:
        self.engine.prefill(np.array(tokens, np.int64), self.cache)

    def step(self, token: int) -> None:
        if self.greedy:
            self.engine.likeliest(np.array([token]), self.cache)
        else:
            self.engine.step(token, self.cache)


class LlamaCpp:
    """llama.cpp through its Python binding, everything else as it comes."""

    def __init__(self, path: Path, threads: int) -> None:
        llama: Any = peer_module("llama_cpp")
        self.model = llama.Llama(
            str(path), n_threads=threads, n_threads_batch=threads, n_ctx=CONTEXT, verbose=False, logits_all=False
        )

    def reset(self) -> None:
        self.model.reset()

    def prefill(self, tokens: Sequence[int]) -> None:
        self.model.eval(list(tokens))

    def step(self, token: int) -> None:
        self.model.eval([token])


class Transformers:
    """transformers with torch, weights expanded from the same file."""

    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        torch: Any = peer_module("torch")
        transformers: Any = peer_module("transformers")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=getattr(torch, dtype)
        ).eval()
        self.past: Any = None

    def reset(self) -> None:
        self.past = None

    def prefill(self, tokens: Sequence[int]) -> None:
        with self.torch.inference_mode():
            ids = self.torch.tensor([list(tokens)])
            found = self.model(ids, past_key_values=self.past, use_cache=True, logits_to_keep=1)
        self.past = found.past_key_values

    def step(self, token: int) -> None:
        self.prefill([token])


def requantize(source: Path, target: Path) -> None:
    """Write llama.cpp's own Q4_0 of a GGUF file, the 4-bit format it repacks for speed."""
    llama: Any = peer_module("llama_cpp")
    options = llama.llama_model_quantize_default_params()
    options.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    options.allow_requantize = True
    options.nthread = 2
    failed = llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if failed:
        raise RuntimeError(f"llama.cpp could not requantize {source}: status {failed}")
