"""Damaged files: a good one, changed at random, and the promise that opening it ends in a typed error or a model."""

from __future__ import annotations

import contextlib
import random
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from windlass.core.errors import WindlassError
from windlass.models.config import packing_obstacle
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import Decoder
from windlass.models.gguf import GGUFSource
from windlass.models.tokenizer import tokenizer_of
from windlass.models.weights import open_weights

NUMBERS = [0, 1, 7, 255, 1 << 15, 1 << 24, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
SPARE_BYTES = 1 << 30


def mutants(good: bytes, header: int, count: int, seed: int) -> Iterator[bytes]:
    """Three of four change the first `header` bytes, where lies do most; the rest anything."""
    chance = random.Random(seed)
    for _ in range(count):
        data = bytearray(good)
        for _ in range(chance.choice([1, 1, 2, 4])):
            if not data:
                break
            at = chance.randrange(min(header, len(data)) if chance.random() < 0.75 else len(data))
            what = chance.randrange(7)
            if what == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif what == 1:
                data[at : at + 8] = struct.pack("<Q", chance.choice(NUMBERS))
            elif what == 2:
                data[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
            elif what == 3:
                del data[at : at + chance.randrange(1, 40)]
            elif what == 4:
                data[at:at] = chance.randbytes(chance.randrange(1, 9))
            elif what == 5:
                data = data[: chance.randrange(len(data))]
            else:  # a stretch of the file comes twice, which makes duplicate names
                data[at:at] = data[at : at + chance.randrange(8, 120)]
        yield bytes(data)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let the process take one GiB more than it has: a lie about sizes becomes a MemoryError here.

    Where the system does not tell what it has, there is no bound.
    """
    if not Path("/proc/self/statm").exists():
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def use(path: Path) -> None:
    """Everything that is done with a model file before the first answer, and one step in each engine."""
    source = open_weights(path)
    tokens = np.array([5, 6, 7])
    with contextlib.suppress(WindlassError):
        tokenizer_of(source).encode("the sea")
    for name in source.names():
        with contextlib.suppress(WindlassError):
            source.tensor(name)
            source.quantized(name)
    Decoder(source).logits(tokens)
    if isinstance(source, GGUFSource) and packing_obstacle(source.config) is None:
        engine = CpuEngine(source, threads=1)
        engine.prefill(tokens, engine.cache())


def outcomes(target: Path, opened: Path, datas: Iterator[bytes], act: Callable[[Path], None] = use) -> tuple[int, int]:
    """Write each of `datas` to `target`, `act` on `opened`; how many were refused and how many served."""
    refused = served = 0
    with bounded_memory(), np.errstate(all="ignore"):
        for data in datas:
            target.write_bytes(data)
            try:
                act(opened)
                served += 1
            except WindlassError as error:
                assert str(target.name) in str(error) or str(opened) in str(error) or "engine" in str(error), error
                refused += 1
    return refused, served
