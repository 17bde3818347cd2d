"""Files that clients upload and that batches write, under the workspace, each with its owner.

A file is two: the bytes, and a manifest written after them. Without the manifest there is no file, so a crash leaves
nothing half there.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from windlass.core import storage
from windlass.core.errors import WorkspaceError

_FORMAT = 1
_ID = re.compile(r"file-[0-9a-f]{24}")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file; `record` is what clients see of it."""

    id: str
    tenant: str
    name: str
    purpose: str
    size: int
    created: int

    def record(self) -> dict[str, Any]:
        """The file object of the API."""
        return {
            "id": self.id, "object": "file", "bytes": self.size, "created_at": self.created, "filename": self.name,
            "purpose": self.purpose, "status": "processed",
        }  # fmt: skip


class FileStore:
    """The files of one workspace, kept in `folder`; every method sees one tenant's only.

    Args:
        folder: Made when the first file comes.
        most_bytes: Of all files of one tenant together.
    """

    def __init__(self, folder: Path, *, most_bytes: int = 1 << 30) -> None:
        self._folder = folder
        self.most_bytes = most_bytes

    def add(self, tenant: str, name: str, purpose: str, content: bytes) -> StoredFile:
        """Store a file durably.

        Raises:
            StorageError: The bytes did not reach the disk.
        """
        storage.make_folder(self._folder)
        file = StoredFile("file-" + secrets.token_hex(12), tenant, name, purpose, len(content), int(time.time()))
        storage.write_atomic(self._bytes(file.id), content)
        storage.write_manifest(self._manifest(file.id), _FORMAT, asdict(file))
        return file

    def get(self, tenant: str, file_id: str) -> StoredFile | None:
        """The file of that id, None when this tenant has none."""
        if not _ID.fullmatch(file_id):
            return None
        try:
            file = StoredFile(**storage.read_manifest(self._manifest(file_id), _FORMAT))
        except FileNotFoundError:
            return None
        return file if file.tenant == tenant else None

    def content(self, file: StoredFile) -> bytes:
        """The bytes of a file."""
        return self._bytes(file.id).read_bytes()

    def remove(self, file: StoredFile) -> None:
        """Forget a file: the manifest first, so that it is never half there."""
        for path in (self._manifest(file.id), self._bytes(file.id)):
            with storage.writing(path), contextlib.suppress(FileNotFoundError):
                path.unlink()

    def all(self, tenant: str) -> list[StoredFile]:
        """Every file of a tenant, the newest first."""
        return sorted(self._owned(tenant), key=lambda file: (-file.created, file.id))

    def used_bytes(self, tenant: str) -> int:
        """Bytes of all files of a tenant."""
        return sum(file.size for file in self._owned(tenant))

    def _owned(self, tenant: str) -> Iterator[StoredFile]:
        for path in self._folder.glob("file-*.json"):
            # A damaged manifest is one file less, not the end of the list.
            with contextlib.suppress(FileNotFoundError, WorkspaceError):
                file = self.get(tenant, path.stem)
                if file is not None:
                    yield file

    def _bytes(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.bin"

    def _manifest(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.json"
