"""The published tables that the cost model is fitted on and held to, as rows it understands.

They are the profiles that come with Vidur (MIT): operators of Llama-2 on three GPUs, collectives on two machines. They
are not part of Windlass; `WINDLASS_SHARED_DATA` names the folder they lie in.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

from windlass.bench.shared_data import find_shared
from windlass.core.program import OpCost

Row = tuple[OpCost, float]
_HALF = 2  # bytes of fp16


def folder() -> Path | None:
    """Where the tables lie, or None when this machine does not have them."""
    return find_shared("serving_distributed/vidur")


def products(path: Path) -> list[Row]:
    """The four matrix products of a Llama layer, at every number of tokens and tensor-parallel degree."""
    rows = []
    for line in _lines(path):
        tokens, parallel = int(line["num_tokens"]), int(line["num_tensor_parallel_workers"])
        width, ffn = int(line["n_embd"]), int(line["n_expanded_embd"])
        heads, kv_heads = int(line["n_head"]), int(line["n_kv_head"])
        head = width // heads
        shapes = {
            "attn_pre_proj": ((heads + 2 * kv_heads) * head // parallel, width),
            "attn_post_proj": (width, heads * head // parallel),
            "mlp_up_proj": (2 * ffn // parallel, width),
            "mlp_down_proj": (width, ffn // parallel),
        }
        for name, (n, k) in shapes.items():
            if line.get(f"time_stats.{name}.median"):
                rows.append((OpCost.gemm(tokens, n, k, "fp16"), _seconds(line, name)))
    return rows


def passes(path: Path) -> list[Row]:
    """Normalisation, activation and rotation: what reads, computes a little and writes."""
    rows = []
    for line in _lines(path):
        tokens, parallel = int(line["num_tokens"]), int(line["num_tensor_parallel_workers"])
        width, ffn = int(line["n_embd"]), int(line["n_expanded_embd"])
        heads, kv_heads = int(line["n_head"]), int(line["n_kv_head"])
        numbers = {
            "input_layernorm": 2 * width,
            "mlp_act": 3 * ffn // parallel,
            "attn_rope": 2 * (heads + kv_heads) * (width // heads) // parallel,
        }
        for name, count in numbers.items():
            if line.get(f"time_stats.{name}.median"):
                cost = OpCost(tokens * count, _HALF * tokens * count, "fp16", "elementwise", (tokens, count))
                rows.append((cost, _seconds(line, name)))
    return rows


def collective(path: Path, operation: str, ranks: int, per_node: int) -> list[tuple[float, float]]:
    """(payload in bytes, seconds) of one shape.

    The column `size` has no unit. It must be bytes: read as 16-bit numbers, a message between two A100 would travel at
    577 GB/s, over links of 300; as bytes, at 288.
    """
    return [
        (int(line["size"]), _seconds(line, operation))
        for line in _lines(path)
        if int(line["num_workers"]) == ranks and int(line["devices_per_node"]) == per_node
    ]


def service_times(path: Path, model: str, device: str) -> list[tuple[int, int, int, int, float, float]]:
    """(ranks, prompt tokens, batch, answer tokens, seconds of the prompt, seconds a token) of Splitwise's profiles."""
    return [
        (
            int(line["tensor_parallel"]),
            int(line["prompt_size"]),
            int(line["batch_size"]),
            int(line["token_size"]),
            float(line["prompt_time"]) / 1e3,
            float(line["token_time"]) / 1e3,
        )
        for line in _lines(path)
        if line["model"] == model and line["hardware"] == device
    ]


def _lines(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _seconds(line: dict[str, str], name: str) -> float:
    return float(line[f"time_stats.{name}.median"]) / 1e3


def prefill_times(path: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Model -> (tokens, seconds, seconds without communication) of TokenWeave's prefills on eight H100."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    with open(path, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            times = (int(line["prompt_len"]), float(line["baseline_multimem"]) / 1e3, float(line["no_ar"]) / 1e3)
            found.setdefault(line["model"], []).append(times)
    return found
