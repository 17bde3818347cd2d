"""Reading in our own process: for tests of what happens around it, which need no second process for every file."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any

from windlass.core.errors import WindlassError
from windlass.core.progress import Progress, check_cancelled
from windlass.core.sandbox import Limits


class DirectSandbox:
    """Behaves as `windlass.core.sandbox.Sandbox` with one item at a time and no limits."""

    def __init__(self, target: str, *, limits: Limits) -> None:
        module, _, name = target.partition(":")
        self._function = getattr(importlib.import_module(module), name)

    def start(self, workers: int) -> None:
        pass

    def map(self, items: Iterable[tuple[Any, ...]], *, progress: Progress | None = None) -> Iterator[tuple[int, Any]]:
        for index, args in enumerate(items):
            if progress is not None:
                check_cancelled(progress)
            try:
                yield index, self._function(*args)
            except WindlassError as error:
                yield index, error

    def __enter__(self) -> DirectSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        pass
