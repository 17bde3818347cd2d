"""Adapters that were installed on this machine by name, beside the models: kept as copies, so that what was trained
next stays where it was made and what is served does not change under the server.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from windlass.core.errors import AdapterNotFound, UsageError, WorkspaceError
from windlass.core.storage import make_folder, read_manifest, write_atomic, write_manifest, writing
from windlass.models.adapter import Adapter, read_adapter
from windlass.models.config import ModelConfig
from windlass.models.store import models_folder

_FORMAT = 1
_FILES = ("adapter_config.json", "adapter_model.safetensors")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class InstalledAdapter:
    """An adapter by name, and the folder that holds its files."""

    name: str
    folder: Path
    digest: str
    rank: int
    nbytes: int


def adapters_folder() -> Path:
    """Where installed adapters lie."""
    return models_folder() / ".adapters"


def install_adapter(name: str, folder: Path, config: ModelConfig) -> InstalledAdapter:
    """Check an adapter against a model and keep a copy of it under a name; one of that name is replaced.

    Raises:
        UsageError: the name is none.
        AdapterError: the adapter is broken or for another model.
        StorageError: the copy did not reach the disk; what was there before still is.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no name for an adapter", hint="use letters, digits, dots and dashes")
    adapter = read_adapter(folder, config)
    home = adapters_folder() / name
    copy = home / adapter.digest
    make_folder(copy)
    for file in _FILES:
        write_atomic(copy / file, (folder / file).read_bytes())
    _write_receipt(home, adapter)
    _remove_all_but(home, adapter.digest)
    return _installed(home)


def installed_adapters() -> list[InstalledAdapter]:
    """Those whose receipts can be read, by name."""
    found = []
    for home in sorted(adapters_folder().glob("*/")):
        try:
            found.append(_installed(home))
        except (WorkspaceError, FileNotFoundError):
            continue
    return found


def remove_adapter(name: str) -> None:
    """Forget an installed adapter.

    Raises:
        AdapterNotFound: there is none of that name.
        StorageError: it cannot be deleted.
    """
    home = adapters_folder() / name
    if not _NAME.fullmatch(name) or not home.is_dir():
        raise AdapterNotFound(f"no adapter {name[:80]!r} is installed", hint="see `windlass models adapters list`")
    with writing(home):
        shutil.rmtree(home)


def _write_receipt(home: Path, adapter: Adapter) -> None:
    content = {"digest": adapter.digest, "rank": adapter.rank, "nbytes": adapter.nbytes}
    write_manifest(home / "adapter.json", _FORMAT, content)


def _installed(home: Path) -> InstalledAdapter:
    receipt = read_manifest(home / "adapter.json", _FORMAT)
    digest = str(receipt["digest"])
    return InstalledAdapter(home.name, home / digest, digest, int(receipt["rank"]), int(receipt["nbytes"]))


def _remove_all_but(home: Path, digest: str) -> None:
    """What an earlier adapter of the name left; a running server read it into memory and needs no files."""
    for old in home.iterdir():
        if old.is_dir() and old.name != digest:
            shutil.rmtree(old, ignore_errors=True)
