"""Which vector instructions this process uses: the best that the processor has, or `WINDLASS_ISA`.

Without Numba and, where the system tells, without LLVM, so that compiled code on disk can be used without either.
"""

from __future__ import annotations

import os
import platform
import sys
from functools import cache

from windlass.core.errors import UsageError

ISAS = ("avx512vnni", "avxvnni", "avx2", "neon", "generic")
NEEDS = {
    "avx512vnni": ("avx512vnni", "avx512bw", "avx512vl", "avx512f"),
    "avxvnni": ("avxvnni", "avx2", "fma", "f16c"),
    "avx2": ("avx2", "fma", "f16c"),
    "neon": ("neon", "dotprod"),
    "generic": (),
}


@cache
def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and its features, spelled as LLVM does (`avx_vnni` is `avxvnni`)."""
    if sys.platform == "linux" and platform.machine() == "x86_64":
        with open("/proc/cpuinfo") as file:
            first = file.read().partition("\n\n")[0]
        lines = dict(line.partition(":")[::2] for line in first.splitlines())
        told = {key.strip(): value.strip() for key, value in lines.items()}
        if "flags" in told:
            name = " ".join(told.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping"))
            return name, frozenset(flag.replace("_", "") for flag in told["flags"].split())
    import llvmlite.binding

    features = llvmlite.binding.get_host_cpu_features()
    return llvmlite.binding.get_host_cpu_name(), frozenset(name for name, there in features.items() if there)


def runnable() -> list[str]:
    """The instruction sets that this processor has, best first."""
    return [isa for isa in ISAS if processor()[1].issuperset(NEEDS[isa])]


def _choose() -> str:
    asked = os.environ.get("WINDLASS_ISA", "")
    if asked and asked not in ISAS:
        raise UsageError(f"WINDLASS_ISA is {asked!r}", hint=f"choose one of {', '.join(ISAS)}")
    if asked and asked not in runnable():
        raise UsageError(
            f"WINDLASS_ISA is {asked!r}, which this processor lacks", hint=f"it has {', '.join(runnable())}"
        )
    return asked or runnable()[0]


ISA = _choose()
LANES = 16 if ISA == "avx512vnni" else 8
"""32-bit values in a register of this instruction set."""
