"""Workers on a Ray cluster: the one there is, or one started on this machine (extra `cluster`)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from windlass.core.crew import Outcome, TaskFailed, attempt
from windlass.core.errors import UsageError


class Ray:
    """Tasks on the Ray cluster that is there, or on one started on this machine."""

    def __init__(self, fn: Callable[[Any], Any], workers: int) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise UsageError("Ray is not installed", hint="pip install 'windlass[cluster]'") from error
        self._ray = ray
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if not ray.is_initialized():
            self._folder = _start_ray(ray, workers)
        self._attempt = ray.remote(max_retries=0)(attempt)
        self._fn = ray.put(fn)
        self._references: dict[Any, int] = {}

    def give(self, number: int, item: Any) -> None:
        self._references[self._attempt.remote(self._fn, item)] = number

    def take(self, seconds: float) -> list[tuple[int, Outcome]]:
        ready, _ = self._ray.wait(list(self._references), num_returns=1, timeout=seconds)
        outcomes = []
        for reference in ready:
            try:
                outcome = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                outcome = Outcome(error=TaskFailed(f"a Ray worker failed: {reason}", item=None))
            outcomes.append((self._references.pop(reference), outcome))
        return outcomes

    def close(self) -> None:
        for reference in self._references:
            self._ray.cancel(reference, force=True)
        self._references.clear()
        if self._folder is not None:
            self._ray.shutdown()
            self._folder.cleanup()


def _start_ray(ray: Any, workers: int) -> tempfile.TemporaryDirectory[str] | None:
    """Join the cluster of `RAY_ADDRESS`, or start one here with no dashboard and nothing in the home folder."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level="error")
        return None
    # Ray would otherwise write an authentication token into the home folder; this cluster ends with the process.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The folder holds sockets, whose paths must stay short: never the caller's deep temporary folder.
    folder = tempfile.TemporaryDirectory(prefix="wl-ray-", dir="/tmp" if sys.platform != "win32" else None)
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=folder.name,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}},
    )
    return folder
