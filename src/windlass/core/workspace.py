"""A folder's `.windlass/`: one SQLite database, an object store, a lock.

The database runs in WAL mode with `synchronous = FULL`: a commit that returned survives `kill -9` and a power cut,
and readers keep the version they opened while one writer goes on. Work is acknowledged in batches, because a durable
commit costs milliseconds. The manifest is written last: where it stands there was a whole database, and one that is
missing or empty is a loss that is reported, not hidden. Everything in here is derived from the user's files; `repair`
sets a damaged database aside and the next `up` builds it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from windlass.core import schema, storage
from windlass.core.errors import NotFound, StorageError, UsageError, WorkspaceError, WorkspaceLocked

STATE_FOLDER = ".windlass"
FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_DATABASE = "workspace.sqlite"
_BUSY_SECONDS = 30.0
_POLL_SECONDS = 0.02
_BUSY = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED))
_REFUSED = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
    )
)
_DAMAGED = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT))
_DAMAGED_WORDS = ("no such table", "no such column", "Could not decode to UTF-8")


class Workspace:
    """The state that Windlass keeps about one folder.

    Any number of processes may read; one at a time writes, after `acquire`. Connections belong to a thread and are
    opened as needed.

    Example:
        >>> import tempfile
        >>> with Workspace.open(tempfile.mkdtemp()) as workspace, workspace.acquire():
        ...     with workspace.transaction() as connection:
        ...         _ = connection.execute("UPDATE counters SET value = value + 1")
        ...     workspace.generation()
        1
    """

    def __init__(self, folder: Path, state: Path) -> None:
        self.folder = folder
        self.state = state
        self.objects = storage.ObjectStore(state / "objects")
        self._local = threading.local()
        self._connections: list[tuple[threading.Thread, sqlite3.Connection]] = []
        self._writer = threading.RLock()
        self._lock_file: int | None = None

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, state: str | os.PathLike[str] | None = None) -> Workspace:
        """Open the workspace of `folder`, making it when it is new.

        Args:
            folder: The user's folder.
            state: Where to keep the state instead of `folder/.windlass`. A folder that cannot be written gets one
                under the user's state directory by itself.

        Raises:
            NotFound: There is no such folder.
            UsageError: It is a file.
            WorkspaceError: The state is damaged or of a newer format.
        """
        root = _existing_folder(folder)
        workspace = cls(root, Path(state).resolve() if state else _state_folder(root))
        try:
            workspace._prepare()
        except BaseException:
            workspace.close()
            raise
        return workspace

    @classmethod
    def exists(cls, folder: str | os.PathLike[str]) -> bool:
        """True when `folder` has been lifted before."""
        try:
            return (_state_folder(_existing_folder(folder)) / _MANIFEST).exists()
        except (UsageError, PermissionError):
            return False

    @property
    def database(self) -> Path:
        return self.state / _DATABASE

    @contextlib.contextmanager
    def acquire(self) -> Iterator[None]:
        """Be the one writer for the length of the block.

        The lock is the operating system's: it ends with the process that holds it, however that ends.

        Raises:
            WorkspaceLocked: Another process, named in the message, is the writer.
            StorageError: The state's folder is gone or cannot be written.
        """
        with self._locked(wait_seconds=0.0) as handle:
            self._lock_file = handle
            try:
                storage.remove_leftovers(self.state)
                yield
            finally:
                self._lock_file = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, durable when the block ends, undone when it raises.

        Raises:
            StorageError: The disk refused (full, read-only, failing); the transaction is undone.
        """
        if self._lock_file is None:
            raise WorkspaceError("write without the workspace's lock", hint="call `acquire` first")
        with self._writer, self._typed_errors():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries; all of them inside one block see one state of the database."""
        with self._typed_errors():
            connection = self._connection()
            if connection.in_transaction:  # inside this thread's own transaction: its own writes are visible
                yield connection
                return
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("COMMIT")

    def generation(self) -> int:
        """A number that grows with every change of the index."""
        with self.reading() as connection:
            return int(connection.execute("SELECT value FROM counters WHERE name = 'generation'").fetchone()[0])

    def check_integrity(self) -> list[str]:
        """What is wrong with the database, in SQLite's words; empty when nothing is.

        Raises:
            WorkspaceLocked: A writer was in the way for too long.
        """
        with self.reading() as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
            orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
        with self._typed_errors():
            try:
                self._connection().execute("INSERT INTO lexical (lexical, rank) VALUES ('integrity-check', 1)")
            except sqlite3.DatabaseError as error:
                if _code(error) in _BUSY:
                    raise
                found.append(f"lexical index: {error}")
        return [line for line in found if line != "ok"] + [f"orphan row in {row[0]}" for row in orphans]

    def close(self) -> None:
        """Close every connection of every thread. The workspace may not be used afterwards."""
        while self._connections:
            self._connections.pop()[1].close()
        self._local = threading.local()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _locked(self, wait_seconds: float) -> Iterator[int]:
        try:
            handle = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot open {self.state / 'lock'}: {error.strerror}",
                hint=f"check that {self.state} is there and can be written",
            ) from error
        deadline = time.monotonic() + wait_seconds
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() >= deadline:
                        raise WorkspaceLocked(
                            f"{self.folder} is being indexed by {_holder(handle)}",
                            hint="wait for it or stop it; `ask` and `search` work meanwhile",
                        ) from error
                    time.sleep(_POLL_SECONDS)
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, only nameless
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield handle
        finally:
            os.close(handle)

    def _prepare(self) -> None:
        try:
            storage.read_manifest(self.state / _MANIFEST, FORMAT_VERSION)
        except FileNotFoundError:
            storage.make_folder(self.state)
            with self._locked(wait_seconds=_BUSY_SECONDS):
                # Another process may have been quicker; doing it once more changes nothing.
                self._migrate()
                storage.write_manifest(self.state / _MANIFEST, FORMAT_VERSION, {"database": _DATABASE})
        else:
            self._open_existing()

    def _open_existing(self) -> None:
        with self._typed_errors():
            if not self.database.exists() or _version(self._connection()) == 0:
                raise WorkspaceError(
                    f"{self.database} is missing or empty", hint=f"run `windlass doctor {self.folder} --repair`"
                )
        self._migrate()

    def _migrate(self) -> None:
        with self._typed_errors():
            connection = self._connection()
            if _version(connection) == schema.VERSION:
                return
            connection.execute("BEGIN EXCLUSIVE")
            version = _version(connection)  # another process may have been quicker
            if version > schema.VERSION:
                connection.execute("ROLLBACK")
                raise WorkspaceError(
                    f"{self.database} has schema {version}, this version of windlass knows up to {schema.VERSION}",
                    hint="use a newer windlass, or remove the .windlass folder to build it again",
                )
            for step in schema.STEPS[version:]:
                for statement in _statements(step):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {schema.VERSION}")
            connection.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            self._close_of_ended_threads()
            connection = sqlite3.connect(
                self.database, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA cache_size = -65536")
            self._local.connection = connection
            self._connections.append((threading.current_thread(), connection))
        return connection

    def _close_of_ended_threads(self) -> None:
        for entry in [entry for entry in self._connections if not entry[0].is_alive()]:
            with contextlib.suppress(ValueError):  # another thread was quicker
                self._connections.remove(entry)
                entry[1].close()

    @contextlib.contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """SQLite's errors as ours, those of a wrong statement excepted: they are bugs."""
        try:
            yield
        except UnicodeDecodeError as error:  # a damaged name in SQLite's own message, or a damaged text
            raise WorkspaceError(
                f"{self.database} is damaged: {error}", hint=f"run `windlass doctor {self.folder} --repair`"
            ) from error
        except sqlite3.DatabaseError as error:
            code = _code(error)
            if code in _BUSY:
                raise WorkspaceLocked(f"{self.database} is busy: {error}", hint="try again in a moment") from error
            if code in _REFUSED:
                raise StorageError(
                    f"cannot use {self.database}: {error}",
                    hint="check free space and permissions, then run it again",
                ) from error
            if code in _DAMAGED or str(error).startswith(_DAMAGED_WORDS):
                raise WorkspaceError(
                    f"{self.database} is damaged: {error}", hint=f"run `windlass doctor {self.folder} --repair`"
                ) from error
            raise


def repair(folder: str | os.PathLike[str]) -> Path | None:
    """Set a damaged database aside, so that the next `up` builds the index again from the files.

    Returns:
        Where the old database lies now, or None when there was nothing wrong.
    """
    root = _existing_folder(folder)
    state = _state_folder(root)
    if not state.is_dir():
        raise NotFound(f"{folder} has no workspace", hint=f"run `windlass up {folder}` first")
    with Workspace(root, state) as workspace, workspace.acquire():
        if _is_new(workspace) or _is_whole(workspace):
            return None
        workspace.close()
        aside = _new_folder(state / "trash", time.strftime("damaged-%Y%m%d-%H%M%S"))
        # The manifest goes first: interrupted anywhere, what is left is still not taken for a whole workspace.
        for name in (_MANIFEST, _DATABASE, f"{_DATABASE}-wal", f"{_DATABASE}-shm"):
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(state / name, aside / name)
            except OSError as error:
                raise StorageError(f"cannot move {state / name} to {aside}: {error.strerror}") from error
    return aside


def _is_new(workspace: Workspace) -> bool:
    return not (workspace.state / _MANIFEST).exists() and not workspace.database.exists()


def _is_whole(workspace: Workspace) -> bool:
    try:
        storage.read_manifest(workspace.state / _MANIFEST, FORMAT_VERSION)
        workspace._open_existing()
        return not workspace.check_integrity()
    except WorkspaceLocked:
        raise
    except (WorkspaceError, FileNotFoundError):
        return False


def _existing_folder(folder: str | os.PathLike[str]) -> Path:
    try:
        root = Path(folder).expanduser()
        if not root.exists():
            raise NotFound(f"no such folder: {root}", hint="check the spelling")
        if not root.is_dir():
            raise UsageError(f"{root} is a file, not a folder", hint=f"give the folder that holds it: {root.parent}")
        if not os.access(root, os.R_OK | os.X_OK):
            raise UsageError(f"{root} cannot be read", hint="check its permissions")
        return root.resolve()
    except FileNotFoundError as error:  # only `resolve` raises it: the current folder is gone
        raise NotFound(f"the current folder, from which {folder} starts, was removed", hint="cd elsewhere") from error
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}", hint="check its name and permissions") from error


def _state_folder(root: Path) -> Path:
    beside = root / STATE_FOLDER
    if os.access(beside if beside.is_dir() else root, os.W_OK):
        return beside
    import platformdirs

    name = f"{root.name}-{hashlib.blake2b(os.fsencode(root), digest_size=6).hexdigest()}"
    return Path(platformdirs.user_state_dir("windlass")) / "workspaces" / name


def _new_folder(parent: Path, name: str) -> Path:
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            storage.make_folder(folder)
            return folder
    raise AssertionError("itertools.count ended")


def _holder(lock: int) -> str:
    pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
    if pid == str(os.getpid()):
        return "this process already"
    return f"another process (pid {pid or 'unknown'})"


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 for errors of the Python module itself."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def mark_changed(connection: sqlite3.Connection) -> None:
    """Raise the generation, in the transaction that changes what can be found: readers' caches are out of date."""
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'generation'")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
