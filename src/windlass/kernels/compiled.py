"""One decorator for every Numba function of the project: compiled at first use, kept on disk, never at import.

The cache lies under the user cache directory, in a folder named by the sources of the kernels, the versions and the
instruction set. Numba itself looks at the file of the called function only, and would run stale code after an edit
of a function that is inlined from another file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
from numba import types
from platformdirs import user_cache_path

from windlass.kernels import simd

F = TypeVar("F", bound=Callable[..., Any])
SOURCES = ("kernels/*.py", "models/cpu_*.py")


@cache
def cache_folder() -> Path:
    """Where this version of the kernels is kept for this kind of processor."""
    digest = sha256(f"{numba.__version__} {llvmlite.__version__} {simd.ISA}".encode())
    package = Path(__file__).parent.parent
    for path in sorted(path for pattern in SOURCES for path in package.glob(pattern)):
        digest.update(path.read_bytes())
    root = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(root) if root else user_cache_path("windlass") / "numba"
    return base / digest.hexdigest()[:16]


def compiled(function: F) -> F:
    """Compile `function` in nopython mode without the interpreter lock, on its first call."""
    return _decorate(function, {})


def inlined(function: F) -> F:
    """Like `compiled`, and always pasted into its callers: for what passes vectors in registers."""
    return _decorate(function, {"forceinline": True})


def pasted(function: F) -> F:
    """Copied into its callers before anything is compiled: for a few lines that are cheap to compile again."""
    return _decorate(function, {"inline": "always"})


class Compiled:
    """A compiled function that others call through its address.

    Numba optimises a function again inside each of its callers, and theirs; a call through an address ends that, and
    cuts the time of a first start by more than half.

    Args:
        function: What `compiled` returned.
        signature: Its exact Numba types.
    """

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self.function, self.signature = function, signature

    def address(self) -> int:
        """Where its machine code lies in this process; compiles it or reads it from disk when needed."""
        dispatcher: Any = self.function
        dispatcher.compile(self.signature.args)
        result = dispatcher.overloads[self.signature.args]
        return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


def caller(signature: Any) -> Callable[..., Any]:
    """A function `call(address, arguments)` for compiled code; the tuple is cast to `signature`, nothing comes back."""

    def call(typing: Any, address: Any, arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, typed: Any, values: Any) -> Any:
            parts = [builder.extract_value(values[1], at) for at in range(len(signature.args))]
            cast = [
                context.cast(builder, part, have, want)
                for part, have, want in zip(parts, typed.args[1], signature.args, strict=True)
            ]
            kind = context.call_conv.get_function_type(types.none, signature.args)
            pointer = builder.inttoptr(values[0], kind.as_pointer())
            context.call_conv.call_function(builder, pointer, types.none, signature.args, cast)
            return context.get_dummy_value()

        return types.void(types.int64, arguments), codegen

    return simd.intrinsic(call)


def _decorate(function: F, options: dict[str, Any]) -> F:
    # Numba picks the cache folder while decorating; the setting is put back for whoever else uses Numba here.
    settings: Any = numba.config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = str(cache_folder())
    try:
        wrapped: F = numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function)
    finally:
        settings.CACHE_DIR = before
    return wrapped
