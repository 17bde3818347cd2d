"""BERT, forward only, in NumPy: tokens in, hidden states out.

Sequences of one batch lie one behind the other with no padding ("packed"), so each linear layer is a single
matrix product over all tokens. Attention is the only place where tokens of one sequence meet; there,
neighbours of equal length are treated together. Whatever is not a matrix product runs in place over blocks
that fit the cache, because passes over memory, not arithmetic, are what costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from windlass.core.errors import ModelError
from windlass.kernels.gelu import TAIL

_SIZES = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "positions": "max_position_embeddings",
}
_NORM_ROWS = 128
_GELU_ELEMENTS = 32_768
_SCORE_ELEMENTS = 98_304
# exp() of a float32 neither overflows nor vanishes inside these bounds, also after a sum over a sequence.
_SAFE_EXPONENT = 80.0


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT model, as `config.json` names them."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    vocab_size: int
    positions: int
    norm_eps: float

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], place: str) -> BertConfig:
        """Read a parsed `config.json`; `place` names it in errors.

        Raises:
            ModelError: Another architecture, another activation, or a size that is missing or impossible.
        """
        kind = fields.get("model_type")
        if kind != "bert":
            raise ModelError(
                f"{place}: models of type {kind!r} are not supported as encoders",
                hint="use a folder whose config.json says model_type 'bert', for example all-minilm-l6-v2",
            )
        for field, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if fields.get(field, wanted) != wanted:
                raise ModelError(f"{place}: {field} {fields[field]!r} is not supported, only {wanted!r}")
        sizes = {}
        for field, name in _SIZES.items():
            value = fields.get(name)
            if type(value) is not int or not 0 < value < 2**31:
                raise ModelError(f"{place}: {name} is {value!r}, not a positive whole number")
            sizes[field] = value
        if sizes["hidden_size"] % sizes["heads"]:
            raise ModelError(
                f"{place}: hidden_size {sizes['hidden_size']} is no multiple of num_attention_heads {sizes['heads']}"
            )
        return cls(norm_eps=float(fields.get("layer_norm_eps", 1e-12)), **sizes)


def rounds_to_bytes(config: BertConfig) -> bool:
    """Whether `cpu_bert` can run a model of these sizes: whole panels of rows and whole registers of channels."""
    head = config.hidden_size // config.heads
    return config.hidden_size % 32 == 0 and config.intermediate_size % 32 == 0 and head % 16 == 0


@dataclass(frozen=True)
class Layer:
    """One block's weights as [in, out] matrices. What can be folded away is (see `_layer`)."""

    qkv: np.ndarray
    query_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray
    attention_norm: tuple[np.ndarray, np.ndarray]
    inner: np.ndarray
    inner_bias: np.ndarray
    outer: np.ndarray
    outer_bias: np.ndarray
    outer_norm: tuple[np.ndarray, np.ndarray]


class Scratch:
    """The working memory of one forward pass at a time: arrays for up to `tokens` tokens, reused from batch
    to batch.

    Fresh large arrays cost a page fault every 4 KiB, which at these sizes is a good part of the run time.
    """

    def __init__(self, config: BertConfig, tokens: int) -> None:
        def array(*shape: int) -> np.ndarray:
            return np.empty(shape, np.float32)

        self.tokens = tokens
        self.hidden = array(tokens, config.hidden_size)
        self.update = array(tokens, config.hidden_size)
        self.qkv = array(tokens, 3 * config.hidden_size)
        self.inner = array(tokens, config.intermediate_size)
        self.scores = array(max(_SCORE_ELEMENTS, min(tokens, config.positions) ** 2))
        gelu_elements = max(_GELU_ELEMENTS, config.intermediate_size)
        self.absolute = array(gelu_elements)
        self.tail = array(gelu_elements)


class Bert:
    """The network. Stateless between calls; safe to use from several threads with one `Scratch` each."""

    def __init__(self, config: BertConfig, tensors: Mapping[str, np.ndarray], place: str) -> None:
        """Take the weights from `tensors` (names as in the reference implementation, with or without
        `bert.`).

        Raises:
            ModelError: A tensor is missing or of the wrong shape; `place` names the file.
        """
        self.config = config
        take = _Taker(tensors, place)
        hidden = config.hidden_size
        self._words = take("embeddings.word_embeddings.weight", config.vocab_size, hidden)
        positions = take("embeddings.position_embeddings.weight", config.positions, hidden)
        # A single segment is all an encoder sees, so its type embedding is part of every position.
        self._positions = positions + take("embeddings.token_type_embeddings.weight", None, hidden)[0]
        self.embedding_norm = take.norm("embeddings.LayerNorm", hidden)
        self.layers = [_layer(take, f"encoder.layer.{number}", config) for number in range(config.layers)]

    def memory(self, tokens: int) -> Scratch:
        """For batches of up to `tokens` tokens."""
        return Scratch(self.config, tokens)

    def embed(self, ids: np.ndarray, lengths: np.ndarray, words: np.ndarray, positions: np.ndarray) -> None:
        """Fill `words` and `positions`, float32 [total, hidden_size], whose sum is the first layer's input before its
        norm. The other arguments are those of `forward`.
        """
        np.take(self._words, ids, axis=0, out=words, mode="clip")
        starts = np.cumsum(lengths) - lengths
        np.take(self._positions, np.arange(len(ids)) - np.repeat(starts, lengths), axis=0, out=positions, mode="clip")

    def forward(
        self, ids: np.ndarray, lengths: np.ndarray, scratch: Scratch, attention: np.ndarray | None = None
    ) -> np.ndarray:
        """Hidden states of packed sequences.

        Args:
            ids: int64 [total], token numbers below `vocab_size`, sequence after sequence.
            lengths: int64 [n], tokens of each sequence, each between 1 and `positions`; their sum is `total`.
            scratch: Working memory for at least `total` tokens.
            attention: float32 [total] to fill with the attention each token receives in the last layer (mean
                over heads and attending tokens, the first and last token of a sequence left out on both
                sides), or None.

        Returns:
            float32 [total, hidden_size], a view into `scratch`, valid until its next use.
        """
        total = len(ids)
        hidden = scratch.hidden[:total]
        update = scratch.update[:total]
        self.embed(ids, lengths, hidden, update)
        hidden += update
        _normalise(hidden, self.embedding_norm, self.config.norm_eps)
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            context = self._attend(layer, hidden, lengths, scratch, attention if last else None)
            np.matmul(context, layer.output, out=update)
            _add_and_normalise(hidden, update, layer.output_bias, layer.attention_norm, self.config.norm_eps)
            inner = scratch.inner[:total]
            np.matmul(hidden, layer.inner, out=inner)
            _bias_gelu(inner, layer.inner_bias, scratch)
            np.matmul(inner, layer.outer, out=update)
            _add_and_normalise(hidden, update, layer.outer_bias, layer.outer_norm, self.config.norm_eps)
        return hidden

    def _attend(
        self,
        layer: Layer,
        hidden: np.ndarray,
        lengths: np.ndarray,
        scratch: Scratch,
        attention: np.ndarray | None,
    ) -> np.ndarray:
        """Self-attention up to, not including, the output projection: float32 [total, hidden_size]."""
        total, size = hidden.shape
        heads = self.config.heads
        qkv = scratch.qkv[:total]
        np.matmul(hidden, layer.qkv, out=qkv)
        qkv[:, :size] += layer.query_bias
        # The queries of a group are spent once its scores are made, so its results take their place.
        for start, count, length in _equal_runs(lengths):
            rows = qkv[start : start + count * length].reshape(count, length, 3, heads, size // heads)
            query, key, value = rows.transpose(2, 0, 3, 1, 4)
            received = None if attention is None else attention[start : start + count * length].reshape(count, length)
            if received is not None:
                received[:] = 0
            for sequences, some_heads in _tiles(count, heads, length):
                part = (sequences, some_heads)
                weights, sums = _softmax(query[part], key[part], scratch)
                if received is not None:
                    _collect_attention(weights, sums, received[sequences])
                np.matmul(weights, value[part], out=query[part])
                query[part] /= sums
        return qkv[:, :size]


class _Taker:
    """Hands out named tensors as float32 and checks their shapes."""

    def __init__(self, tensors: Mapping[str, np.ndarray], place: str) -> None:
        self._tensors, self._place = tensors, place
        self._prefix = "bert." if "bert.embeddings.word_embeddings.weight" in tensors else ""

    def __call__(self, name: str, *shape: int | None) -> np.ndarray:
        found = self._tensors.get(self._prefix + name)
        if found is None:
            raise ModelError(f"model file {self._place}: tensor {name!r} is missing")
        if found.ndim != len(shape) or any(
            want not in (None, have) for want, have in zip(shape, found.shape, strict=True)
        ):
            raise ModelError(f"model file {self._place}: tensor {name!r} has shape {found.shape}, expected {shape}")
        return np.require(found, np.float32, ["A", "C"])

    def linear(self, name: str, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
        return self(f"{name}.weight", outputs, inputs), self(f"{name}.bias", outputs)

    def norm(self, name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        return self(f"{name}.weight", size), self(f"{name}.bias", size)


def _layer(take: _Taker, name: str, config: BertConfig) -> Layer:
    """Three things are done once here instead of for each token.

    The 1/sqrt(head size) of the scores goes into the queries. The key bias adds the same to all scores of a
    row, which softmax ignores. The value bias passes through attention unchanged (weights sum to one), so it
    joins the output bias.
    """
    size, inner = config.hidden_size, config.intermediate_size
    query, query_bias = take.linear(f"{name}.attention.self.query", size, size)
    key, _ = take.linear(f"{name}.attention.self.key", size, size)
    value, value_bias = take.linear(f"{name}.attention.self.value", size, size)
    output, output_bias = take.linear(f"{name}.attention.output.dense", size, size)
    scale = np.float32((size // config.heads) ** -0.5)
    inner_weight, inner_bias = take.linear(f"{name}.intermediate.dense", size, inner)
    outer_weight, outer_bias = take.linear(f"{name}.output.dense", inner, size)
    return Layer(
        qkv=np.concatenate([query * scale, key, value]).T,
        query_bias=query_bias * scale,
        output=output.T,
        output_bias=output_bias + output @ value_bias,
        attention_norm=take.norm(f"{name}.attention.output.LayerNorm", size),
        inner=inner_weight.T,
        inner_bias=inner_bias,
        outer=outer_weight.T,
        outer_bias=outer_bias,
        outer_norm=take.norm(f"{name}.output.LayerNorm", size),
    )


def _equal_runs(lengths: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(first token, sequences, length) of each run of neighbouring sequences of equal length."""
    borders = np.flatnonzero(np.diff(lengths)) + 1
    start = 0
    for run in np.split(lengths, borders):
        count, length = len(run), int(run[0])
        yield start, count, length
        start += count * length


def _tiles(count: int, heads: int, length: int) -> Iterator[tuple[slice, slice]]:
    """Cut `count` sequences x `heads` heads so that the scores of one piece fit the cache."""
    per_sequence = heads * length * length
    step = max(1, _SCORE_ELEMENTS // per_sequence)
    head_step = heads if per_sequence <= _SCORE_ELEMENTS else max(1, _SCORE_ELEMENTS // (length * length))
    for first in range(0, count, step):
        for head in range(0, heads, head_step):
            yield slice(first, min(first + step, count)), slice(head, min(head + head_step, heads))


def _softmax(query: np.ndarray, key: np.ndarray, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
    """Unnormalised attention weights [sequences, heads, length, length] and their row sums [..., length, 1]."""
    sequences, heads, length, _ = query.shape
    scores = scratch.scores[: sequences * heads * length * length].reshape(sequences, heads, length, length)
    np.matmul(query, key.swapaxes(-1, -2), out=scores)
    # Two quick reductions mostly save the row-wise maximum and its subtraction; NaN takes the slow path too.
    if not (scores.max() < _SAFE_EXPONENT and scores.min() > -_SAFE_EXPONENT):
        scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    return scores, scores.sum(axis=-1, keepdims=True)


def _collect_attention(weights: np.ndarray, sums: np.ndarray, received: np.ndarray) -> None:
    """Add what each inner token receives from the inner tokens, over all heads of this piece."""
    inner = slice(1, -1)
    received[:, inner] += np.einsum("bhqk,bhq->bk", weights[:, :, inner, inner], 1 / sums[:, :, inner, 0])


def _normalise(rows: np.ndarray, norm: tuple[np.ndarray, np.ndarray], eps: float) -> None:
    """Layer normalisation of each row, in place."""
    scale, shift = norm
    size = rows.shape[1]
    for start in range(0, len(rows), _NORM_ROWS):
        block = rows[start : start + _NORM_ROWS]
        block -= block.mean(axis=1, keepdims=True)
        variance = np.einsum("ij,ij->i", block, block) / np.float32(size)
        block *= (1 / np.sqrt(variance + np.float32(eps)))[:, None]
        block *= scale
        block += shift


def _add_and_normalise(
    hidden: np.ndarray, update: np.ndarray, bias: np.ndarray, norm: tuple[np.ndarray, np.ndarray], eps: float
) -> None:
    """hidden = LayerNorm(hidden + update + bias), in place."""
    for start in range(0, len(hidden), _NORM_ROWS):
        block = hidden[start : start + _NORM_ROWS]
        block += update[start : start + _NORM_ROWS]
        block += bias
        _normalise(block, norm, eps)


def _bias_gelu(rows: np.ndarray, bias: np.ndarray, scratch: Scratch) -> None:
    """rows = gelu(rows + bias), in place; the steps of `kernels.gelu`, off by at most 2e-6."""
    step = max(1, _GELU_ELEMENTS // rows.shape[1])
    with np.errstate(over="ignore"):  # a far tail: the power is infinite, the quotient zero, as it should be
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            block += bias
            flat = block.reshape(-1)
            absolute = np.abs(flat, out=scratch.absolute[: flat.size])
            power = np.multiply(absolute, TAIL[0], out=scratch.tail[: flat.size])
            for coefficient in TAIL[1:-1]:
                power += coefficient
                power *= absolute
            power += TAIL[-1]
            for _ in range(5):
                np.square(power, out=power)
            absolute /= power
            np.maximum(flat, 0, out=flat)
            flat -= absolute
