"""Text to vectors: the `Encoder` protocol that the whole stack takes as an argument, and the built-in one.

`BertEncoder` reads any sentence-transformers folder of the BERT family (all-MiniLM-L6-v2 is the default
model) without torch. A text's vector is the mean of its token states (or the first one, where the folder says so),
scaled to length one, so that a dot product is a cosine.

With `precision="int8"` passages go through `cpu_bert.ByteBert`, twice as fast. Questions stay in float32: there are few
of them, they are short, and they need no compiled code. So do passages of a few tokens, whose rounding errors have
nothing to average out with.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import psutil
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from windlass.core.errors import ModelError, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.kernels.blas import one_thread_a_product
from windlass.models.bert import Bert, BertConfig, rounds_to_bytes
from windlass.models.safetensors_file import TensorEntry, open_tensors, read_header

_BATCH_TOKENS = 1024
_BYTE_BATCH_TOKENS = 512
_SHORT_TOKENS = 8
_WINDOW_TEXTS = 2048
# A model reads a few hundred tokens; what lies far behind them is cut before the tokenizer spends minutes on
# it.
_MAX_CHARACTERS = 100_000
_DEFAULT_MAX_TOKENS = 256


Precision = Literal["float32", "int8"]
# Raised when the rounding changes: vectors of another version are made again.
_INT8_VERSION = 1


class Encoder(Protocol):
    """Whatever turns texts into vectors. All vectors are float32 and have length one.

    `fingerprint` changes when the vectors would: an index keeps it and refuses vectors of another encoder.
    """

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are looked at; the rest is cut."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text`, uncut."""
        ...

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, dim]."""
        ...

    def encode_passages(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """float32 [n, dim]."""
        ...

    def encode_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Vectors float32 [total, dim], offsets int64 [n + 1], attention float32 [total] or None."""
        ...


def is_encoder(path: Path) -> bool:
    """Whether a model's folder holds one that `BertEncoder` reads."""
    config = path / "config.json"
    return config.is_file() and _read_json(config).get("model_type") == "bert"


class BertEncoder:
    """An `Encoder` from a folder with `config.json`, `tokenizer.json` (or `vocab.txt`) and
    `model.safetensors`.

    Safe to call from several threads.

    Example:
        >>> encoder = BertEncoder.load("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> encoder.encode_queries(["where do large ships berth?"]).shape  # doctest: +SKIP
        (1, 384)
    """

    def __init__(
        self, model: _Engine, rounded: _Engine | None, tokenizer: Tokenizer, fingerprint: str, settings: _Settings,
        threads: int,
    ) -> None:  # fmt: skip
        self._exact, self._rounded = model, rounded
        self._tokenizer = tokenizer
        self._untruncated = Tokenizer.from_str(tokenizer.to_str())
        self._untruncated.no_truncation()
        self._settings = settings
        self._threads = threads
        self.dim = model.hidden_size
        self.fingerprint = fingerprint
        self.max_tokens = settings.max_tokens

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None, precision: Precision = "float32") -> BertEncoder:
        """Open a model folder; the weights are memory-mapped, so this takes a fraction of a second.

        Args:
            path: The folder.
            threads: Batches worked on at the same time; default: the physical cores, at most 4. Each matrix product
                uses one thread.
            precision: "int8" rounds weights and activations of passages to 8 bits, on the first of them; a model whose
                layer sizes do not allow it stays in float32. The fingerprint tells the two apart.

        Raises:
            ModelError: A file is missing, damaged, or describes a model of another kind.
        """
        folder = Path(path)
        config_file = folder / "config.json"
        config = BertConfig.from_json(_read_json(config_file, required=True), str(config_file))
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise ModelError(f"no model.safetensors in {folder}", hint="only safetensors weights are read")
        settings = _Settings(folder, config)
        tokenizer = _load_tokenizer(folder, settings.max_tokens)
        if tokenizer.get_vocab_size(with_added_tokens=True) > config.vocab_size:
            raise ModelError(f"the tokenizer of {folder} knows more tokens than its model ({config.vocab_size})")
        tensors = open_tensors(weights)
        fingerprint = _fingerprint(weights, read_header(weights), config, settings, tokenizer)
        if threads is None:
            threads = min(4, psutil.cpu_count(logical=False) or 1)
        model = Bert(config, tensors, str(weights))
        exact = _Engine(lambda: model, config, _BATCH_TOKENS, settings.max_tokens)
        rounded = None
        if precision == "int8" and rounds_to_bytes(config):
            rounded = _Engine(lambda: _byte_model(model, weights), config, _BYTE_BATCH_TOKENS, settings.max_tokens)
            fingerprint = hashlib.sha256(f"{fingerprint} int8 {_INT8_VERSION}".encode()).hexdigest()[:32]
        return cls(exact, rounded, tokenizer, fingerprint, settings, max(1, threads))

    def count(self, text: str) -> int:
        """Tokens of `text`, special ones included, also where it is longer than `max_tokens`."""
        return len(self._untruncated.encode(text).ids)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of questions, float32 [n, dim]; the folder's query prompt, if it has one, is put in front.

        Raises:
            UsageError: An item is not a string.
            ModelError: The weights give values that are not numbers.
        """
        return self._encode(texts, self._settings.query_prompt, Silent(), None)

    def encode_passages(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """Vectors of passages, float32 [n, dim]. Texts past `max_tokens` tokens are cut there.

        Args:
            texts: Any strings; the empty one is allowed.
            progress: Gets the stage `embed`, counted in passages.

        Raises:
            UsageError: An item is not a string.
            ModelError: The weights give values that are not numbers.
            Cancelled: `progress` was cancelled.
        """
        progress = progress or Silent()
        progress.start("embed", len(texts), "passages")
        vectors = self._encode(texts, self._settings.passage_prompt, progress, self._rounded)
        progress.finish("embed")
        return vectors

    def encode_tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Vectors of the single tokens, for late interaction; the special first and last tokens are left out.

        Returns:
            Vectors float32 [total, dim], each of length one; offsets int64 [n + 1], text i owning rows
            `offsets[i]:offsets[i + 1]`; attention float32 [total], what each token receives in the last layer
            (mean over heads and attending tokens), summing to one in each text.

        Raises:
            UsageError: An item is not a string.
            ModelError: The weights give values that are not numbers.
        """
        tokens = self._tokenise(texts, self._settings.passage_prompt)
        sizes = np.array([len(ids) - 2 for ids in tokens], np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        vectors = np.empty((offsets[-1], self.dim), np.float32)
        attention = np.empty(offsets[-1], np.float32)

        def run(engine: _Engine, chosen: np.ndarray) -> None:
            lengths = sizes[chosen] + 2
            received = np.empty(lengths.sum(), np.float32)
            with engine.forward(_flat(tokens, chosen), lengths, received) as states:
                stops = np.cumsum(lengths)
                for text, start, stop in zip(chosen, stops - lengths, stops, strict=True):
                    rows = slice(offsets[text], offsets[text + 1])
                    vectors[rows] = states[start + 1 : stop - 1]
                    inner = received[start + 1 : stop - 1]
                    attention[rows] = inner / inner.sum()

        for _ in self._each_batch(run, self._plan(sizes + 2, self._rounded)):
            pass
        _to_unit_length(vectors)
        return vectors, offsets, attention

    def _encode(self, texts: Sequence[str], prompt: str, progress: Progress, rounded: _Engine | None) -> np.ndarray:
        vectors = np.empty((len(texts), self.dim), np.float32)
        for first in range(0, len(texts), _WINDOW_TEXTS):
            tokens = self._tokenise(texts[first : first + _WINDOW_TEXTS], prompt)
            window = vectors[first : first + _WINDOW_TEXTS]

            def run(
                engine: _Engine, chosen: np.ndarray, tokens: list[list[int]] = tokens, window: np.ndarray = window
            ) -> None:
                check_cancelled(progress)
                lengths = np.array([len(tokens[text]) for text in chosen], np.int64)
                with engine.forward(_flat(tokens, chosen), lengths) as states:
                    starts = np.cumsum(lengths) - lengths
                    if self._settings.first_token_only:
                        window[chosen] = states[starts]
                    else:
                        # The division by the length falls away in the scaling to length one.
                        window[chosen] = np.add.reduceat(states, starts, axis=0)

            lengths = np.array([len(ids) for ids in tokens], np.int64)
            for done in self._each_batch(run, self._plan(lengths, rounded)):
                progress.advance("embed", done)
        _to_unit_length(vectors)
        return vectors

    def _plan(self, lengths: np.ndarray, rounded: _Engine | None) -> list[tuple[_Engine, np.ndarray]]:
        """Batches of text numbers and what computes each. Which it is depends on a text's own length alone."""
        if rounded is None:
            return [(self._exact, batch) for batch in _batches(lengths, _BATCH_TOKENS)]
        long, short = np.flatnonzero(lengths > _SHORT_TOKENS), np.flatnonzero(lengths <= _SHORT_TOKENS)
        plan = [(rounded, long[batch]) for batch in _batches(lengths[long], _BYTE_BATCH_TOKENS)]
        return plan + [(self._exact, short[batch]) for batch in _batches(lengths[short], _BATCH_TOKENS)]

    def _tokenise(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        if isinstance(texts, str):
            raise UsageError("texts is a single string", hint="pass a list of strings")
        cleaned = []
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise UsageError(f"text {number} is a {type(text).__name__}, not a string")
            cut = prompt + text[:_MAX_CHARACTERS]
            # Half of a surrogate pair (seen in file names and broken JSON) has no UTF-8 form.
            cleaned.append(cut.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(cleaned)]

    def _each_batch(
        self, run: Callable[[_Engine, np.ndarray], None], plan: list[tuple[_Engine, np.ndarray]]
    ) -> Iterator[int]:
        """Call `run` for each batch of a plan, several at a time; yields texts done."""
        if self._threads == 1 or len(plan) == 1:
            for engine, batch in plan:
                with one_thread_a_product():
                    run(engine, batch)
                yield len(batch)
            return
        with one_thread_a_product(), ThreadPoolExecutor(self._threads) as pool:
            jobs = [pool.submit(run, engine, batch) for engine, batch in plan]
            try:
                for job, (_, batch) in zip(jobs, plan, strict=True):
                    job.result()
                    yield len(batch)
            finally:
                for job in jobs:
                    job.cancel()


class _Settings:
    """What the sentence-transformers files of the folder say about length, pooling and prompts."""

    def __init__(self, folder: Path, config: BertConfig) -> None:
        limit = _read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        if type(limit) is not int or limit < 3:
            limit = _DEFAULT_MAX_TOKENS
        self.max_tokens = min(limit, config.positions)
        for module in _read_json(folder / "modules.json", default=[]):
            kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else str(module)
            if kind not in ("Transformer", "Pooling", "Normalize"):
                raise ModelError(f"{folder / 'modules.json'}: the module {kind!r} is not supported")
        pooling = _read_json(folder / "1_Pooling" / "config.json")
        modes = {key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True}
        self.first_token_only = modes == {"pooling_mode_cls_token"}
        if not self.first_token_only and modes - {"pooling_mode_mean_tokens"}:
            raise ModelError(f"{folder / '1_Pooling/config.json'}: this pooling is not supported: {sorted(modes)}")
        prompts = _read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
        self.query_prompt = str(prompts.get("query") or "")
        self.passage_prompt = str(prompts.get("passage") or prompts.get("document") or "")

    def __str__(self) -> str:
        return repr((self.max_tokens, self.first_token_only, self.query_prompt, self.passage_prompt))


class _Engine:
    """A model, loaded when first used, and working memories that its batches take turns with."""

    def __init__(self, load: Callable[[], Any], config: BertConfig, batch_tokens: int, max_tokens: int) -> None:
        self._load, self._lock = load, threading.Lock()
        self._model: Any = None
        self._tokens = max(batch_tokens, max_tokens)
        self._memories: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.hidden_size = config.hidden_size

    @contextmanager
    def forward(self, ids: np.ndarray, lengths: np.ndarray, received: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """`Bert.forward`; the states hold inside the block."""
        with self._lock:
            self._model = self._model or self._load()
        try:
            memory = self._memories.get_nowait()
        except queue.Empty:
            memory = self._model.memory(self._tokens)
        try:
            yield self._model.forward(ids, lengths, memory, received)
        finally:
            self._memories.put(memory)


def _byte_model(model: Bert, weights: Path) -> Any:
    from windlass.models.cpu_bert import ByteBert

    return ByteBert(model, str(weights))


def _batches(lengths: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Numbers of the texts of each batch: longest first, as many as `most` tokens hold, at least one."""
    order = np.argsort(-lengths, kind="stable")
    first, tokens = 0, 0
    for place, length in enumerate(lengths[order].tolist()):
        if tokens + length > most and place > first:
            yield order[first:place]
            first, tokens = place, 0
        tokens += length
    if len(order):
        yield order[first:]


def _flat(tokens: list[list[int]], chosen: np.ndarray) -> np.ndarray:
    return np.concatenate([np.array(tokens[text], np.int64) for text in chosen])


def _to_unit_length(vectors: np.ndarray) -> None:
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    if not np.isfinite(lengths).all():
        raise ModelError("the encoder's weights give values that are not numbers", hint="pull or copy the model again")
    vectors /= np.maximum(lengths, np.float32(1e-12))[:, None]


def _load_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    ready, words = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if ready.is_file():
            tokenizer = Tokenizer.from_file(str(ready))
        elif words.is_file():
            lower = _read_json(folder / "tokenizer_config.json").get("do_lower_case", True)
            tokenizer = _word_pieces(words, bool(lower))
        else:
            raise ModelError(f"no tokenizer.json or vocab.txt in {folder}")
    except ModelError:
        raise
    except Exception as error:  # the library raises bare Exception for whatever it cannot read
        raise ModelError(f"cannot read the tokenizer of {folder}: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    if len(tokenizer.encode("").ids) != 2:
        raise ModelError(f"the tokenizer of {folder} does not put one special token before and one after a text")
    return tokenizer


def _word_pieces(vocabulary: Path, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, last = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    if first is None or last is None:
        raise ModelError(f"{vocabulary} has no [CLS] and [SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", last), ("[CLS]", first))
    return tokenizer


def _read_json(path: Path, *, required: bool = False, default: Any = None) -> Any:
    empty: Any = {} if default is None else default
    try:
        if not path.is_file() and not required:
            return empty
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}") from error
    if not isinstance(fields, type(empty)):
        raise ModelError(f"{path} does not hold a JSON {'object' if empty == {} else 'list'}")
    return fields


def _fingerprint(
    weights: Path,
    header: dict[str, TensorEntry],
    config: BertConfig,
    settings: _Settings,
    tokenizer: Tokenizer,
) -> str:
    """Hash of everything a vector depends on; of each tensor, three pages stand for the whole.

    Training changes all of a tensor, so its first, middle and last page tell versions apart without reading
    the file.
    """
    digest = hashlib.sha256(f"{config}{settings}{header}".encode())
    digest.update(tokenizer.to_str().encode())
    with weights.open("rb") as file:
        for entry in header.values():
            for place in (entry.start, (entry.start + entry.stop) // 2, max(entry.start, entry.stop - 4096)):
                file.seek(place)
                digest.update(file.read(min(4096, entry.stop - place)))
    return digest.hexdigest()[:32]
