"""Where the default language model is, for tests that need the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def default_model() -> Path:
    """The default GGUF: `WINDLASS_TEST_GGUF`, else what `windlass models pull` put in the cache."""
    named = os.environ.get("WINDLASS_TEST_GGUF")
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    found = sorted(user_cache_path("windlass").rglob("*.gguf"))
    if not found:
        pytest.skip("the default model is not installed: windlass models pull")
    return found[0]
