"""The errors a person may see.

Every message says what was wrong, where, and what to do next. The command line prints `str(error)` and exits with
`exit_code`; the HTTP server answers with `http_status`. Anything that is not a `WindlassError` is a bug of ours.
"""

from __future__ import annotations


class WindlassError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: One sentence: what was wrong, with the value and the place (file, line, row, field).
        hint: One sentence: what the reader can do about it. Empty when nothing can be done.

    Example:
        >>> str(WindlassError("no such folder: /data/reports", hint="check the spelling"))
        'no such folder: /data/reports; check the spelling'
    """

    exit_code = 1
    http_status = 500

    def __init__(self, what: str, *, hint: str = "") -> None:
        self.what = what
        self.hint = hint
        super().__init__(f"{what}; {hint}" if hint else what)


class UsageError(WindlassError):
    """The caller asked for something that makes no sense: a wrong value, a missing file, an unknown name."""

    exit_code = 2
    http_status = 400


class DataError(UsageError, ValueError):
    """An array or table has a shape or values that cannot be worked with; also a `ValueError`."""


class DataTypeError(UsageError, TypeError):
    """An array or table is of a kind that cannot be worked with; also a `TypeError`."""


class NotFitted(UsageError, ValueError, AttributeError):
    """Something was asked of an estimator that has not seen any data yet."""


class NotFound(UsageError):
    """A folder, file, model, system or passage that was named does not exist."""

    http_status = 404


class DataMissing(NotFound):
    """Data that only a benchmark needs is not on this machine."""


class WorkspaceError(WindlassError):
    """The `.windlass` folder cannot be used: unreadable, damaged, or of another format version."""


class WorkspaceLocked(WorkspaceError):
    """Another process is writing to this workspace."""

    exit_code = 3
    http_status = 409


class StorageError(WindlassError):
    """A write did not reach the disk (full, read-only, failing). What was acknowledged before is intact."""


class ReadError(WindlassError):
    """One input file could not be read. Never stops the others: it becomes the file's state.

    Args:
        reason: A short stable word for reports: `broken`, `encrypted`, `too-large`, `timeout`, `memory`,
            `unsupported`, `unreadable`, `changing`, `bomb`, `empty`.
    """

    def __init__(self, what: str, *, reason: str = "broken", hint: str = "") -> None:
        self.reason = reason
        super().__init__(what, hint=hint)

    def __reduce__(self) -> tuple[object, ...]:
        return (_read_error, (self.what, self.reason, self.hint))


def _read_error(what: str, reason: str, hint: str) -> ReadError:
    return ReadError(what, reason=reason, hint=hint)


class ModelError(WindlassError):
    """A model is missing, damaged, or of a kind that is not supported."""


class SimulationError(WindlassError):
    """A scenario cannot be simulated: it deadlocks, a device or a path is missing, something does not fit."""


class TensorValueInSimulation(SimulationError):
    """A policy looked at the values of an array where there are only shapes: a mistake in the policy."""


class UnsupportedArchitecture(ModelError):
    """The model's file is sound, but windlass has no code for this kind of model."""


class GraphFormatError(WindlassError):
    """A file or folder that should hold a graph, or an index over one, is broken or of another kind."""


class IndexMismatchError(WindlassError):
    """An index was made for another graph, or with other parameters, than the one it is used with."""

    http_status = 409


class Busy(WindlassError):
    """The queue is full; the caller should come back later."""

    http_status = 429


class ContextLengthError(UsageError):
    """Prompt and answer do not fit what the model, or its memory, can hold together."""


class DeadlineError(WindlassError):
    """A request was not done, or cannot be done, by the time its sender set."""

    http_status = 503


class NumericsError(ModelError):
    """The model computed something that is not a number; only the request it belongs to fails."""


class EngineBug(WindlassError):
    """The serving engine broke one of its own rules. Fails the request it belongs to, and is worth a report."""


class PoolExhausted(WindlassError):
    """The memory for keys and values, or for adapters, has no page left that may be taken."""

    http_status = 503


class AdapterError(UsageError):
    """An adapter cannot be used: its files are broken, or it belongs to another model."""


class AdapterNotFound(AdapterError):
    """No adapter of that name is registered, or none that this caller may use."""

    http_status = 404


class QueueFull(Busy):
    """Too many requests wait already; `retry_after` is the number of seconds after which a place is likely."""

    def __init__(self, what: str, retry_after: int) -> None:
        super().__init__(what, hint=f"try again in {retry_after} s")
        self.retry_after = retry_after


class Cancelled(WindlassError):
    """The person or the caller stopped the work. What was finished stays finished."""

    exit_code = 130
