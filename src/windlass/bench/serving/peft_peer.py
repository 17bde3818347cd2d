"""What peft does with many adapters on one model: switch between them, or name one for each row of a batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from windlass.bench.harness import peer_module
from windlass.bench.serving.batching_peers import cpu_threads, model_file
from windlass.models.hugging_face import save_hugging_face
from windlass.models.weights import open_weights


class PeftModel:
    """The default model in float32 with adapters that peft loaded."""

    def __init__(self, model: Any, torch: Any, name: str) -> None:
        self._model, self._torch, self.name = model, torch, name

    @classmethod
    def load(cls, folder: Path, adapters: Sequence[tuple[str, Path]]) -> PeftModel | None:
        """None when peft is not installed."""
        peft, transformers, torch = peer_module("peft"), peer_module("transformers"), peer_module("torch")
        if peft is None or transformers is None or torch is None:
            return None
        source = open_weights(model_file())
        save_hugging_face(folder, source.config, {name: source.tensor(name) for name in source.names()})
        base = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        (first, path), *others = adapters
        model = peft.PeftModel.from_pretrained(base, path, adapter_name=first)
        for name, other in others:
            model.load_adapter(other, adapter_name=name)
        loaded = cls(model.eval(), torch, f"peft {peft.__version__}")
        loaded._take_the_faster_number_of_threads()
        return loaded

    def swap(self, prompts: Sequence[Any], names: Sequence[str], made: int) -> list[list[int]]:
        """One request after the other, each after `set_adapter`."""
        answers = []
        for prompt, name in zip(prompts, names, strict=True):
            self._model.set_adapter(name)
            answers += self._generate([prompt], made)
        return answers

    def mixed(self, prompts: Sequence[Any], names: Sequence[str], made: int) -> list[list[int]]:
        """All in one batch, `adapter_names` saying whose row is whose."""
        return self._generate(prompts, made, adapter_names=list(names))

    def _take_the_faster_number_of_threads(self) -> None:
        """On cores that others use as well, threads of torch wait for each other and one is several times faster."""
        prompt, seconds = [np.arange(100, 132)], {}
        for threads in {1, cpu_threads()}:
            self._torch.set_num_threads(threads)
            self._generate(prompt, 1)
            started = time.perf_counter()
            self._generate(prompt, 4)
            seconds[threads] = time.perf_counter() - started
        best = min(seconds, key=seconds.__getitem__)
        self._torch.set_num_threads(best)
        self.note = f"peft computes in float32 on {best} threads, the faster of {sorted(seconds)}"

    def _generate(self, prompts: Sequence[Any], made: int, **options: Any) -> list[list[int]]:
        torch = self._torch
        ids = torch.from_numpy(np.stack(prompts).astype(np.int64))
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=made, do_sample=False,
                eos_token_id=None, pad_token_id=0, **options,
            )  # fmt: skip
        answers: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return answers
