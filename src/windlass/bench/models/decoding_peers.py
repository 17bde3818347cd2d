"""Those who decode one token after the other: ours, and the peers behind the same three calls, each in a child process.

A peer may crash, hang, or start threads that slow down whoever shares its process; in a child it costs its own rows.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
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


class PeerLost(Exception):
    """A peer's process ended, or took too long; the message says which."""


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


class InChild:
    """A peer in a process of its own, where its seconds are taken.

    Args:
        kind: A class of this module.
        arguments: What it is made of: strings and numbers.
        limit: Seconds after which a call is given up.

    Attributes:
        loading: Wall seconds it took to make.
    """

    def __init__(self, kind: str, *arguments: str | int, limit: float = 60.0) -> None:
        command = [sys.executable, "-m", __name__, kind, json.dumps(arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._limit = limit
        self.loading, _ = self._answer()

    def timed(self, method: str, *arguments: Any) -> tuple[float, float]:
        """Wall and CPU seconds of a method.

        Raises:
            PeerLost: there will be no answer.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended; `_answer` says how
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> tuple[float, float]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self._limit)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            self.close()
            ended = f"ended with status {self._process.returncode}" if ready else f"took more than {self._limit:.0f} s"
            raise PeerLost(f"the peer {ended}")
        wall, cpu = json.loads(line)
        return wall, cpu


class Ours:
    """The compiled engine: all logits, or only the likeliest token."""

    def __init__(self, engine: CpuEngine, *, greedy: bool = False) -> None:
        self.engine, self.greedy, self.cache = engine, greedy, engine.cache()

    def timed(self, method: str, *arguments: Any) -> tuple[float, float]:
        """As of `InChild`, here."""
        return seconds(lambda: getattr(self, method)(*arguments))

    def close(self) -> None:
        """The engine belongs to others."""

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

    def __init__(self, path: str, threads: int) -> None:
        llama: Any = peer_module("llama_cpp")
        self.model = llama.Llama(
            path, n_threads=threads, n_threads_batch=threads, n_ctx=CONTEXT, verbose=False, logits_all=False
        )

    def reset(self) -> None:
        self.model.reset()

    def prefill(self, tokens: Sequence[int]) -> None:
        self.model.eval(list(tokens))

    def step(self, token: int) -> None:
        self.model.eval([token])


class Transformers:
    """transformers with torch, weights expanded from the same file."""

    def __init__(self, path: str, dtype: str, threads: int) -> None:
        torch: Any = peer_module("torch")
        transformers: Any = peer_module("transformers")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.torch = torch
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            Path(path).parent, gguf_file=Path(path).name, dtype=getattr(torch, dtype)
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


def _serve(kind: str, arguments: Sequence[Any]) -> None:
    """Answer each line of standard input with the seconds that it took."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the peer prints
    sides: list[Any] = []

    def tell(work: Callable[[], object]) -> None:
        answers.write(json.dumps(seconds(work)) + "\n")

    tell(lambda: sides.append({"LlamaCpp": LlamaCpp, "Transformers": Transformers}[kind](*arguments)))
    for line in sys.stdin:
        method, *values = json.loads(line)
        tell(lambda method=method, values=values: getattr(sides[0], method)(*values))  # type: ignore[misc]


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
