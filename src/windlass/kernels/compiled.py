"""One decorator for every Numba function of the project: compiled at first use, kept on disk, never at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
from numba import types
from numba.core import compiler

from windlass.kernels import simd
from windlass.kernels.cache_folder import cache_folder

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile `function` in nopython mode without the interpreter lock, on its first call."""
    return _decorate(function, {"no_cfunc_wrapper": True})


def called(function: F) -> F:
    """Like `compiled`, for what only compiled functions call: a way in from Python takes time to compile, too."""
    return _decorate(function, {"no_cfunc_wrapper": True, "no_cpython_wrapper": True})


def inlined(function: F) -> F:
    """Like `called`, and always pasted into its callers: for what passes vectors in registers."""
    return _decorate(function, {"no_cfunc_wrapper": True, "no_cpython_wrapper": True, "forceinline": True})


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
        """Where its machine code lies in this process; compiles it or reads Numba's cache when needed."""
        dispatcher: Any = self.function
        dispatcher.compile(self.signature.args)
        result = dispatcher.overloads[self.signature.args]
        return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))

    def machine_code(self) -> tuple[str, bytes]:
        """The name of the function in an object file, and the file; compiled now, without a way in from Python."""
        dispatcher: Any = self.function
        flags: Any = compiler.Flags()  # type: ignore[no-untyped-call]
        dispatcher.targetdescr.options.parse_as_flags(flags, dispatcher.targetoptions)
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        compile_now: Any = compiler.compile_extra
        result = compile_now(
            dispatcher.typingctx, dispatcher.targetctx, dispatcher.py_func, self.signature.args,
            self.signature.return_type, flags, {},
        )  # fmt: skip
        return result.fndesc.llvm_func_name, result.library._get_compiled_object()


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
