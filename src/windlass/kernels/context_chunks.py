"""How long contexts are cut for attention."""

from __future__ import annotations

CHUNK = 256
"""Slots of a context whose scores are kept at once, counted from its start."""
