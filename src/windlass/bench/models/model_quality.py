"""The quality of each weight format: the default model's weights in every one of them, beside the same in float32.

The model ships in Q4_1 with an embedding in Q8_0, so its float32 weights, to which everything is compared, have been
rounded once already: figures say what one more rounding costs, not what rounding the original costs. Activations stay
float32; what the compiled engine's 8-bit activations cost is a row of its own. The text is the evaluation half of
WikiText-2 when the shared data is there, else the guide of the example folder.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import windlass
from windlass.bench.harness import BenchContext
from windlass.bench.report import Metric, metric
from windlass.bench.shared_data import find_shared
from windlass.core.errors import NotFound
from windlass.core.progress import check_cancelled
from windlass.core.settings import Settings
from windlass.models import store
from windlass.models.block_formats import BY_NAME, Bytes, Floats, QuantTensor
from windlass.models.block_quantize import BlockTensor, quantize
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import Decoder, Tokens
from windlass.models.evaluate import QualityReport, Remembered, evaluate
from windlass.models.mapped import TensorMeta
from windlass.models.tokenizer import tokenizer_of
from windlass.models.weights import WeightSource, open_weights

FORMATS = ("f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0")
QUICK_FORMATS = ("q8_0", "q4_0")
FALLBACK = {"q6_k": "q8_0", "q5_k": "q5_1", "q4_k": "q5_0"}
"""For rows that do not fill blocks of 256, as converters do it."""
WINDOW = 512
TOKENS, QUICK_TOKENS = 1025, 257


@dataclass(frozen=True)
class FormatQuality:
    """One format: bytes of all weights in it, bits a weight, and what it cost."""

    format: str
    nbytes: int
    bits: float
    report: QualityReport


def quality_rows(context: BenchContext) -> list[Metric]:
    """One row a format, and one for the compiled engine on the file as it ships.

    Raises:
        NotFound: the default model is not installed.
    """
    source = open_weights(store.locate(Settings().models.decoder))
    text, where = evaluation_text()
    count = QUICK_TOKENS if context.quick else TOKENS
    tokens = np.array(tokenizer_of(source).encode(text[: 12 * count])[:count], np.int64)
    reference = Remembered(Decoder(source))
    rows = [_engine_row(source, reference, tokens)]
    for found in format_quality(source, reference, tokens, QUICK_FORMATS if context.quick else FORMATS):
        check_cancelled(context.progress)
        report = found.report
        rows.append(
            metric(
                f"{found.format}: perplexity", "", report.ppl, better="lower",
                peer=report.ppl / report.ppl_ratio, peer_name="the same weights in float32",
                note=f"{found.nbytes / 1e6:.1f} MB, {found.bits:.2f} bits a weight, KL {report.kl:.5f} nats, "
                f"top-1 {report.top1:.4f}; {report.tokens} tokens of {where}",
            )
        )  # fmt: skip
    return rows


def format_quality(
    source: WeightSource, reference: Remembered, tokens: Tokens, formats: tuple[str, ...]
) -> Iterator[FormatQuality]:
    """Round the weights of `source` to each format in turn and evaluate them with float32 activations."""
    for name in formats:
        rounded = Rounded(source, name)
        report = evaluate(Decoder(rounded), reference, tokens, window=WINDOW, stride=WINDOW)
        yield FormatQuality(name, rounded.nbytes, 8 * rounded.nbytes / rounded.weights, report)


def evaluation_text() -> tuple[str, str]:
    """The text and its name."""
    path = find_shared("models/wikitext2_eval.txt.xz")
    if path is not None:
        return lzma.decompress(path.read_bytes()).decode(), "WikiText-2"
    examples = Path(windlass.__file__).resolve().parents[2] / "examples" / "harbour"
    texts = [found.read_text("utf-8") for found in sorted(examples.rglob("*.md"))]
    if not texts:
        raise NotFound("no text to evaluate models on", hint="set WINDLASS_SHARED_DATA")
    return "\n\n".join(texts), "the example folder"


def _engine_row(source: WeightSource, reference: Remembered, tokens: Tokens) -> Metric:
    report = evaluate(CpuEngine(source), reference, tokens, window=WINDOW, stride=WINDOW)
    return metric(
        "compiled engine, file as shipped: perplexity over float32's", "", report.ppl_ratio, better="lower", most=1.005,
        note=f"8-bit activations; KL {report.kl:.5f} nats, top-1 {report.top1:.4f}, {report.tokens} tokens",
    )  # fmt: skip


class Rounded:
    """A `WeightSource` whose matrices go through one format when they are read; vectors stay as they are.

    Rows that do not fill the format's blocks take its fallback. Below 16 bits the embedding keeps eight, as in the
    file.
    """

    def __init__(self, source: WeightSource, name: str) -> None:
        self.path, self.config, self._source, self._format = source.path, source.config, source, name

    @property
    def fingerprint(self) -> str:
        return f"{self._source.fingerprint}-{self._format}"

    @property
    def nbytes(self) -> int:
        return sum(self.meta(name).nbytes for name in self.names())

    @property
    def weights(self) -> int:
        return sum(math.prod(self.meta(name).shape) for name in self.names())

    def names(self) -> list[str]:
        return self._source.names()

    def meta(self, name: str) -> TensorMeta:
        shape = self._source.meta(name).shape
        wanted = "f32" if len(shape) == 1 else self._format
        if name == "token_embd.weight" and BY_NAME[wanted].weights > 1:
            wanted = "q8_0"
        if shape[-1] % BY_NAME[wanted].weights:
            wanted = FALLBACK[wanted]
        block = BY_NAME[wanted]
        return TensorMeta(name, shape, wanted, 0, math.prod(shape) // block.weights * block.nbytes)

    def tensor(self, name: str) -> Floats:
        return self._block(name).dequantize()

    def quantized(self, name: str) -> QuantTensor | None:
        return None if BY_NAME[self.meta(name).format].weights == 1 else self._block(name).split()

    def raw(self, name: str) -> Bytes:
        return self._block(name).raw

    def _block(self, name: str) -> BlockTensor:
        return quantize(self._source.tensor(name), self.meta(name).format)
