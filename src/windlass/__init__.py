"""Windlass: a whole AI stack for the machines you have.

Example:
    >>> import windlass
    >>> pipeline = windlass.open("reports")             # doctest: +SKIP
    >>> _ = pipeline.index()                            # doctest: +SKIP
    >>> print(pipeline.ask("When is berth 4 dredged?").text)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from windlass.retrieval.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__", "open"]


def open(folder: Any, **options: Any) -> Pipeline:
    """The pipeline over `folder`: `index` it, `search` it, `ask` it. See `windlass.retrieval.pipeline.Pipeline`."""
    from windlass.retrieval.pipeline import Pipeline

    return Pipeline.open(folder, **options)


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from windlass.retrieval.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'windlass' has no attribute {name!r}")
