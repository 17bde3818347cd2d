"""A folder's `.windlass/`: one SQLite database, an object store, a lock.

The database runs in WAL mode with `synchronous = FULL`: a commit that returned survives `kill -9` and a power cut,
and readers keep the version they opened while one writer goes on. Work is acknowledged in batches, because a durable
commit costs milliseconds. Everything in here is derived from the user's files; `repair` sets a damaged database
aside and the next `up` builds it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
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
_BUSY_SECONDS = 30.0


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
        self._connections: list[sqlite3.Connection] = []
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
        root = Path(folder).expanduser()
        if not root.exists():
            raise NotFound(f"no such folder: {root}", hint="check the spelling")
        if not root.is_dir():
            raise UsageError(f"{root} is a file, not a folder", hint=f"give the folder that holds it: {root.parent}")
        if not os.access(root, os.R_OK | os.X_OK):
            raise UsageError(f"{root} cannot be read", hint="check its permissions")
        root = root.resolve()
        workspace = cls(root, Path(state).resolve() if state else _state_folder(root))
        workspace._prepare()
        return workspace

    @classmethod
    def exists(cls, folder: str | os.PathLike[str]) -> bool:
        """True when `folder` has been lifted before."""
        root = Path(folder).expanduser()
        return root.is_dir() and (_state_folder(root.resolve()) / "manifest.json").exists()

    @property
    def database(self) -> Path:
        return self.state / "workspace.sqlite"

    @contextlib.contextmanager
    def acquire(self) -> Iterator[None]:
        """Be the one writer for the length of the block.

        The lock is the operating system's: it ends with the process that holds it, however that ends.

        Raises:
            WorkspaceLocked: Another process, named in the message, is the writer.
        """
        path = self.state / "lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise WorkspaceLocked(
                    f"{self.folder} is being indexed by another process (pid {holder})",
                    hint="wait for it or stop it; `ask` and `search` work meanwhile",
                ) from error
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            self._lock_file = handle
            storage.remove_leftovers(self.state)
            yield
        finally:
            self._lock_file = None
            os.close(handle)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction, durable when the block ends, undone when it raises.

        Raises:
            StorageError: The disk refused (full, read-only, failing); the transaction is undone.
        """
        if self._lock_file is None:
            raise WorkspaceError("write without the workspace's lock", hint="call `acquire` first")
        with self._writer, _database_errors(self.database):
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
        with _database_errors(self.database):
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
        """What is wrong with the database, in SQLite's words; empty when nothing is."""
        with self.reading() as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
            orphans = connection.execute("PRAGMA foreign_key_check").fetchall()
            try:
                connection.execute("INSERT INTO lexical (lexical, rank) VALUES ('integrity-check', 1)")
            except sqlite3.DatabaseError as error:
                found.append(f"lexical index: {error}")
        return [line for line in found if line != "ok"] + [f"orphan row in {row[0]}" for row in orphans]

    def close(self) -> None:
        """Close every connection of every thread. The workspace may not be used afterwards."""
        while self._connections:
            self._connections.pop().close()
        self._local = threading.local()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self) -> None:
        try:
            self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {self.state}: {error.strerror}") from error
        manifest = self.state / "manifest.json"
        try:
            storage.read_manifest(manifest, FORMAT_VERSION)
        except FileNotFoundError:
            storage.write_manifest(manifest, FORMAT_VERSION, {"database": self.database.name})
        self._migrate()

    def _migrate(self) -> None:
        with _database_errors(self.database):
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
            connection = sqlite3.connect(
                self.database, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA cache_size = -65536")
            self._local.connection = connection
            self._connections.append(connection)
        return connection


def repair(folder: str | os.PathLike[str]) -> Path | None:
    """Set a damaged database aside, so that the next `up` builds the index again from the files.

    Returns:
        Where the old database lies now, or None when there was nothing wrong.
    """
    state = _state_folder(Path(folder).expanduser().resolve())
    if not state.is_dir():
        raise NotFound(f"{folder} has no workspace", hint=f"run `windlass up {folder}` first")
    try:
        with Workspace.open(folder) as workspace:
            if not workspace.check_integrity():
                return None
    except WorkspaceError:
        pass  # what made opening fail is what is being repaired
    aside = state / "trash" / time.strftime("damaged-%Y%m%d-%H%M%S")
    aside.mkdir(parents=True)
    for name in ("workspace.sqlite", "workspace.sqlite-wal", "workspace.sqlite-shm", "manifest.json"):
        if (state / name).exists():
            os.replace(state / name, aside / name)
    return aside


def _state_folder(root: Path) -> Path:
    beside = root / STATE_FOLDER
    if beside.is_dir() or os.access(root, os.W_OK):
        return beside
    import platformdirs

    name = f"{root.name}-{hashlib.blake2b(os.fsencode(root), digest_size=6).hexdigest()}"
    return Path(platformdirs.user_state_dir("windlass")) / "workspaces" / name


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


@contextlib.contextmanager
def _database_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "locked" in text or "busy" in text:
            raise WorkspaceLocked(f"{path} is busy: {text}", hint="try again in a moment") from error
        if "full" in text or "disk I/O" in text or "readonly" in text or "unable to open" in text:
            raise StorageError(
                f"cannot use {path}: {text}", hint="check free space and permissions, then run it again"
            ) from error
        raise
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
            raise
        raise WorkspaceError(f"{path} is damaged: {error}", hint="run `windlass doctor --repair`") from error
