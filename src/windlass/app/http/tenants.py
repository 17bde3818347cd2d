"""Who a request comes from: a tenant, known by its keys, with what it may use and how much of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A person, team or program. Caches, files, batches and running requests of two tenants never meet.

    Attributes:
        name: Lower-case letters, digits, `.`, `_`, `-`; at most 63.
        hashes: SHA-256 of its keys (`keys.hash_key`).
        weight: Its share of the model when there is more work than time, relative to the others.
        requests_per_minute, tokens_per_minute, max_concurrency: Bounds; None is none.
        models: Names it may use; None is all. `windlass` is the folder itself: search, questions and the page.
        admin: May read metrics and manage adapters and caches.
    """

    name: str = "default"
    hashes: tuple[str, ...] = ()
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    models: tuple[str, ...] | None = None
    admin: bool = False

    def may_use(self, model: str) -> bool:
        """Whether `model` is one of its models."""
        return self.models is None or model in self.models


LOCAL = Tenant("local", admin=True)
"""Whoever uses a server without keys: somebody on this machine."""


def tenant_from(entry: Mapping[str, Any]) -> Tenant:
    """A tenant as it stands in the key file.

    Raises:
        ValueError: A field is unknown, missing, or makes no sense; the message names it.

    Example:
        >>> tenant_from({"name": "anna", "sha256": ["ab" * 32], "requests_per_minute": 60}).requests_per_minute
        60
    """
    entry = dict(entry)
    name = entry.pop("name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"name is {name!r:.80}, expected lower-case letters, digits, '.', '_' or '-'")
    models = entry.pop("models", None)
    if models is not None and not (isinstance(models, list) and all(isinstance(model, str) for model in models)):
        raise ValueError(f"models of {name} is {models!r:.80}, expected a list of names")
    tenant = Tenant(
        name,
        hashes=digests(entry.pop("sha256", [])),
        weight=_weight(entry.pop("weight", 1.0), name),
        requests_per_minute=_bound(entry, "requests_per_minute", name),
        tokens_per_minute=_bound(entry, "tokens_per_minute", name),
        max_concurrency=_bound(entry, "max_concurrency", name),
        models=None if models is None else tuple(models),
        admin=entry.pop("admin", False) is True,
    )
    if entry:
        raise ValueError(f"{name} has unknown fields: {', '.join(sorted(entry))}")
    return tenant


def digests(stored: Any) -> tuple[str, ...]:
    """A list of SHA-256 digests as they stand in the key file.

    Raises:
        ValueError: It is no list of texts of 64 hex digits.
    """
    if not isinstance(stored, list) or not all(isinstance(digest, str) for digest in stored):
        raise ValueError("sha256 must be a list of texts")
    if not all(len(bytes.fromhex(digest)) == 32 for digest in stored):
        raise ValueError("a hash must have 64 hex digits")
    return tuple(digest.lower() for digest in stored)


def _weight(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000:
        raise ValueError(f"weight of {name} is {value!r:.80}, expected a number above 0, at most 1000")
    return float(value)


def _bound(entry: dict[str, Any], field: str, name: str) -> int | None:
    value = entry.pop(field, None)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 10**9):
        raise ValueError(f"{field} of {name} is {value!r:.80}, expected a whole number above 0")
    return value
