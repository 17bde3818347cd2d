"""How many threads a matrix product may use.

BLAS libraries wait for their threads by spinning. When other programs use the cores, each product then waits for a
thread that is not running: on two busy cores six passages took 7 to 13 s to embed with two BLAS threads and 0.7 s with
one. So products run on one thread, and work is spread over threads of our own, a batch each.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from threadpoolctl import ThreadpoolController


def one_thread_a_product() -> AbstractContextManager[Any]:
    """NumPy's matrix products use one thread inside this block, in every thread of the process.

    Example:
        >>> with one_thread_a_product():
        ...     pass
    """
    limited: AbstractContextManager[Any] = _controller().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _controller() -> ThreadpoolController:
    import numpy  # noqa: F401  # the controller finds only libraries that are loaded

    return ThreadpoolController()
