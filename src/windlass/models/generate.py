"""Text out of a decoder: sampling that a seed repeats, stop strings, and `LocalModel`, both together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import psutil
from numpy.typing import NDArray

from windlass.core.errors import Cancelled, ContextLengthError, ModelError, UsageError
from windlass.models.block_formats import Floats
from windlass.models.config import packing_obstacle
from windlass.models.decoder import Decoder, TokenModel
from windlass.models.mapped import give_back
from windlass.models.tokenizer import Tokenizer, tokenizer_of
from windlass.models.weights import WeightSource, open_weights

Engine = Literal["auto", "compiled", "numpy", "torch"]


@runtime_checkable
class GreedyModel(Protocol):
    """A model that finds the likeliest token without computing all logits."""

    def likeliest(self, tokens: NDArray[np.int64], cache: Any) -> int:
        """Append `tokens` to the sequence in `cache`; the id of the highest logit after the last."""
        ...


@dataclass(frozen=True)
class Token:
    """One generated token.

    `text` is what became readable with it: empty while a character is incomplete or a stop string may be
    beginning. `logprob` is None when nobody asked for it. `finish` is set on the last token only: `stop` (the model
    ended or a stop string was met) or `length`.
    """

    id: int
    text: str
    logprob: float | None
    finish: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 takes the most likely one.

    Raises:
        UsageError: a value is out of range; the message names it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature is {self.temperature}, expected 0 to 100")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if self.top_k < 0:
            raise UsageError(f"top_k is {self.top_k}, expected 0 (all) or more")
        if not -(1 << 63) <= self.seed < 1 << 64:
            raise UsageError(f"seed {self.seed} does not fit 64 bits")

    def pick(self, logits: Floats, position: int) -> tuple[int, float]:
        """The token and its log-probability before truncation.

        The random number is a function of (seed, position) alone, so a restart in the middle draws the same
        tokens.
        """
        if self.temperature == 0:
            best = int(np.argmax(logits))
            return best, float(logits[best] - _log_sum_exp(logits))
        scaled = logits.astype(np.float64) / self.temperature
        logprobs = scaled - _log_sum_exp(scaled)
        order, weights = self._kept(logprobs)
        counter = np.random.Philox(key=self.seed % (1 << 64), counter=position)
        target = np.random.Generator(counter).random() * weights.sum()
        drawn = min(int(np.searchsorted(np.cumsum(weights), target, side="right")), len(order) - 1)
        return int(order[drawn]), float(logprobs[order[drawn]])

    def _kept(self, logprobs: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Candidate ids, likeliest first (ties by id), and their probabilities."""
        order = np.argsort(-logprobs, kind="stable")
        if self.top_k:
            order = order[: self.top_k]
        weights = np.exp(logprobs[order])
        if self.top_p < 1:
            reached = int(np.searchsorted(np.cumsum(weights), self.top_p * weights.sum())) + 1
            order, weights = order[:reached], weights[:reached]
        return order, weights


def _log_sum_exp(logits: NDArray[np.floating]) -> float:
    top = float(logits.max())
    return top + float(np.log(np.exp(logits.astype(np.float64) - top).sum()))


class StopText:
    """Holds text back while it may be the beginning of a stop string.

    Example:
        >>> stop = StopText(["END"])
        >>> stop.add("work E"), stop.add("ND of it"), stop.met
        ('work ', '', True)
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise UsageError("a stop string is empty")
        self._stops = tuple(stops)
        self._held = ""
        self.met = False

    def add(self, text: str) -> str:
        """The part of what arrived so far that is safe to show; after `met`, nothing."""
        if self.met:
            return ""
        self._held += text
        hits = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if hits:
            self.met = True
            shown, self._held = self._held[: min(hits)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back for a stop string that never came."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


def generate(
    model: TokenModel,
    tokenizer: Tokenizer,
    tokens: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    cancel: Callable[[], bool] | None = None,
    logprobs: bool = True,
) -> Iterator[Token]:
    """Continue `tokens` until the model ends, a stop string appears, or `max_tokens` are made.

    Nothing is computed before the first item is taken; arguments are checked at once. Without `logprobs`, a greedy
    continuation need not compute all logits, and is faster on a model that knows a short cut.

    Raises:
        UsageError: the prompt is empty or does not fit the context together with one new token, or an option
            is out of range.
        Cancelled: `cancel()` returned True before a token.
    """
    sampling, stops = Sampling(temperature, top_p, top_k, seed), StopText(stop)
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}, expected at least 1")
    if not tokens:
        raise UsageError("the prompt is empty: at least one token is needed")
    if len(tokens) >= model.config.max_position:
        raise ContextLengthError(
            f"the prompt has {len(tokens)} tokens, the model's context holds {model.config.max_position} "
            "and needs room for an answer",
            hint="shorten the prompt or use a model with a longer context",
        )
    limit = min(max_tokens, model.config.max_position - len(tokens))
    pick = _picker(model, sampling, logprobs)
    return _run(model, tokenizer, list(tokens), limit, pick, stops, cancel or (lambda: False))


Picker = Callable[[list[int], Any, int], tuple[int, float | None]]
"""Appends tokens to a cache and draws the next; the last argument is how many were drawn before."""


def _picker(model: TokenModel, sampling: Sampling, logprobs: bool) -> Picker:
    if sampling.temperature == 0 and not logprobs and isinstance(model, GreedyModel):
        greedy = model
        return lambda tokens, cache, made: (greedy.likeliest(np.array(tokens, np.int64), cache), None)

    def pick(tokens: list[int], cache: Any, made: int) -> tuple[int, float | None]:
        logits = model.step(tokens[0], cache) if made else model.prefill(np.array(tokens, np.int64), cache)
        return sampling.pick(logits, made)

    return pick


def _run(
    model: TokenModel,
    tokenizer: Tokenizer,
    tokens: list[int],
    limit: int,
    pick: Picker,
    stops: StopText,
    cancel: Callable[[], bool],
) -> Iterator[Token]:
    ends = frozenset(tokenizer.end_ids) | frozenset(model.config.eos_ids)
    text, cache = tokenizer.detokenizer(), model.cache()
    for made in range(limit):
        if cancel():
            raise Cancelled("generation was stopped")
        token, logprob = pick(tokens[-1:] if made else tokens, cache, made)
        tokens.append(token)
        if token in ends:
            yield Token(token, stops.add(text.finish()) + stops.finish(), logprob, "stop")
            return
        shown = stops.add(text.add(token))
        if stops.met:
            yield Token(token, shown, logprob, "stop")
            return
        if made + 1 == limit:
            shown += stops.add(text.finish()) + stops.finish()
            yield Token(token, shown, logprob, "stop" if stops.met else "length")
            return
        yield Token(token, shown, logprob)


class LocalModel:
    """A model file on this machine: decoder, tokenizer and chat template together.

    Attributes:
        context_length: Tokens that prompt and answer may take together.
        fingerprint: 32 hex digits; changes when the file does.

    Example:
        model = LocalModel.load(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
        print("".join(model.chat([{"role": "user", "content": "Name a harbour."}], max_tokens=40)))
    """

    def __init__(self, decoder: TokenModel, tokenizer: Tokenizer, fingerprint: str) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.context_length = decoder.config.max_position
        if tokenizer.size > decoder.config.vocab_size:
            known, rows = tokenizer.size, decoder.config.vocab_size
            raise ModelError(f"the tokenizer knows {known} tokens, the model's embedding {rows}")

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        engine: Engine = "auto",
        threads: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> LocalModel:
        """Load a `.gguf` file, a Hugging Face folder, or a folder that windlass saved.

        Args:
            path: The file or folder.
            engine: `auto` takes torch when `device` is not the CPU, else the compiled engine for quantised files whose
                shape it supports, NumPy for the rest. `compiled` also packs plain numbers, to 8 bits.
            threads: Threads of the compiled engine; None takes the usable cores.
            device: Where torch computes, `cuda` for one.
            dtype: Of torch's weights and sums: `float32`, `bfloat16` or `float16`.

        Raises:
            NotFound: nothing is at `path`.
            ModelError: the model is damaged, incomplete or not supported, or torch is not installed.
            UsageError: an option that the engine does not have.
        """
        source = open_weights(Path(path))
        if engine == "auto":
            engine = "torch" if device != "cpu" else "numpy" if compiled_obstacle(source) else "compiled"
        if engine != "torch" and (device, dtype) != ("cpu", "float32"):
            raise UsageError(
                f"the {engine} engine computes in its own way on the CPU", hint="device and dtype need torch"
            )
        # The fingerprint reads parts of the file that packing gives back.
        tokenizer, fingerprint = tokenizer_of(source), source.fingerprint
        decoder = _engine(source, engine, threads, device, dtype)
        del source
        give_back()
        return cls(decoder, tokenizer, fingerprint)

    def forward(self, tokens: NDArray[np.integer]) -> Floats:
        """Logits after every token of fresh sequences of one length: `[B, T] -> float32 [B, T, vocab]`.

        Raises:
            UsageError: no tokens, ids outside the vocabulary, or more than the context holds.
        """
        if tokens.ndim != 2 or tokens.size == 0:
            raise UsageError(f"tokens have shape {tokens.shape}, expected [batch, at least one]")
        return np.stack([self.decoder.logits(row) for row in tokens.astype(np.int64)])

    def count(self, text: str) -> int:
        """Tokens in `text`."""
        return len(self.tokenizer.encode(text))

    def count_chat(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Tokens of the whole prompt that `chat` would send."""
        return len(self.tokenizer.chat(messages))

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer to a conversation, as they become readable.

        Raises:
            UsageError: the conversation does not fit the context (the message gives both numbers).
        """
        prompt = self.tokenizer.chat(messages)
        return _texts(
            generate(
                self.decoder, self.tokenizer, prompt, max_tokens=max_tokens, temperature=temperature,
                top_p=top_p, seed=seed, stop=stop, cancel=cancel, logprobs=False,
            )
        )  # fmt: skip

    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[str]:
        """Pieces of the continuation of a raw prompt.

        Raises:
            UsageError: the prompt does not fit the context (the message gives both numbers).
        """
        return _texts(
            generate(
                self.decoder, self.tokenizer, self.tokenizer.prompt(prompt), max_tokens=max_tokens,
                temperature=temperature, top_p=top_p, seed=seed, stop=stop, cancel=cancel, logprobs=False,
            )
        )  # fmt: skip


def _texts(tokens: Iterator[Token]) -> Iterator[str]:
    for token in tokens:
        if token.text:
            yield token.text


def compiled_obstacle(source: WeightSource) -> str | None:
    """Why the compiled engine would not be chosen for these weights, or None when it is."""
    obstacle = packing_obstacle(source.config)
    if obstacle is not None:
        return obstacle
    stored = source.meta("blk.0.attn_q.weight").format
    if stored in ("f32", "f16", "bf16"):
        return f"its weights are {stored} numbers, which it would round to 8 bits"
    return None


def _check_memory(source: WeightSource, bytes_a_weight: int) -> None:
    """Refuse what would make the system kill this process, or a neighbour, half-way through loading."""
    needed = bytes_a_weight * sum(math.prod(source.meta(name).shape) for name in source.names())
    free = psutil.virtual_memory().available
    if needed > free:
        raise ModelError(
            f"{source.path} needs {needed / 1e9:.1f} GB in this engine, {free / 1e9:.1f} GB of memory are free",
            hint="close something, take a smaller model, or one that the compiled engine runs",
        )


def _engine(source: WeightSource, engine: Engine, threads: int | None, device: str, dtype: str) -> TokenModel:
    if engine == "compiled":
        from windlass.models.cpu_engine import CpuEngine

        return CpuEngine(source, threads=threads)
    if device == "cpu":
        _check_memory(source, 4 if dtype == "float32" else 2)
    if engine == "numpy":
        return Decoder(source)
    if engine != "torch":
        raise UsageError(f"no engine is called {engine!r}", hint="auto, compiled, numpy or torch")
    try:
        from windlass.models.torch_decoder import load_torch_model
    except ModuleNotFoundError as error:
        raise ModelError("the torch engine needs torch", hint="pip install 'windlass[torch]'") from error
    return load_torch_model(source, device, dtype)
