"""Which machine a measurement was made on: enough to read a figure, nothing that names its owner."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

from windlass.core.tasks import usable_cores


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine at one moment.

    Attributes:
        cpu: Its name, as the system tells it.
        cores: How many this process may use.
        memory_gb: Of the whole machine.
        load: One-minute load average, -1.0 where the system has none. Above `cores` others were at work too,
            and only ratios of alternating runs mean something.
    """

    cpu: str
    cores: int
    memory_gb: float
    system: str
    python: str
    load: float


def describe() -> Machine:
    """The machine this process runs on."""
    import psutil

    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else -1.0,
    )


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    return value.strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.processor() or platform.machine()
