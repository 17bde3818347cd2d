"""llama.cpp's own batches, in a process of their own: one token of every sequence in each call of `llama_decode`.

Its threads wait for each other by spinning, and so do those of other numeric libraries; together in one process they
take each other's cores. Run as a module, this reads lines `[sequences, prompt, steps, threads]` and answers each with
tokens a second.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MOST_PROMPT = 32
MOST_SEQUENCES = 32


class BatchedLlamaCpp:
    """The child process that runs it.

    Args:
        path: The model's GGUF file.
        threads: Counts of threads to try; the fastest counts, for each number of sequences.
    """

    name = "llama.cpp"

    def __init__(self, path: Path, threads: tuple[int, ...]) -> None:
        command = [sys.executable, "-m", __name__, str(path)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._choices = threads
        self._best: dict[int, int] = {}

    def run(self, size: int, prompt: int, steps: int) -> float:
        """Tokens a second of `size` greedy generations behind prompts of `prompt` tokens, 32 at most."""
        if size not in self._best:
            self._best[size] = max(self._choices, key=lambda threads: self._ask(size, 1, 4, threads))
        return self._ask(size, prompt, steps, self._best[size])

    def close(self) -> None:
        """End the process."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(30)

    def _ask(self, size: int, prompt: int, steps: int, threads: int) -> float:
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.write(json.dumps([size, prompt, steps, threads]) + "\n")
        self._child.stdin.flush()
        return float(json.loads(self._child.stdout.readline()))


class _Library:
    """The model in llama.cpp, with room for 32 sequences of 128 tokens."""

    def __init__(self, path: str) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        # Kept as long as this object: the library calls it at any time.
        self._silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silence, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = 128 * MOST_SEQUENCES, MOST_SEQUENCES
        options.n_batch = options.n_ubatch = MOST_PROMPT * MOST_SEQUENCES
        self._context = llama_cpp.llama_init_from_model(self._model, options)
        self._batch = llama_cpp.llama_batch_init(MOST_PROMPT * MOST_SEQUENCES, 0, 1)

    def rate(self, size: int, prompt: int, steps: int, threads: int) -> float:
        import numpy as np

        lib = self._lib
        lib.llama_set_n_threads(self._context, threads, threads)
        vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        self._decode([(100 + seq + at, at, seq, at == prompt - 1) for seq in range(size) for at in range(prompt)])
        tokens = [1] * size
        started = time.perf_counter()
        for step in range(steps):
            self._decode([(token, prompt + step, seq, True) for seq, token in enumerate(tokens)])
            for seq in range(size):
                logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, seq), (vocabulary,))
                tokens[seq] = int(logits.argmax())
        return size * steps / (time.perf_counter() - started)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for place, (token, position, seq, wanted) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, seq
        status = self._lib.llama_decode(self._context, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")


def _answer_lines(path: str) -> None:
    library = _Library(path)
    for line in sys.stdin:
        print(library.rate(*json.loads(line)), flush=True)


if __name__ == "__main__":
    _answer_lines(sys.argv[1])
