"""Take away files that others can rebuild, keep the proof, and bring them back: nothing is ever lost on the way.

A plan names files that can go: exact copies, tables contained in others, and tables that share most of their rows with
another. For each there is a recipe that has
given the file's bytes from a file that stays. `apply_plan` checks every hash and every recipe again before anything
moves, then moves each file into `.windlass/trash/reclaimed`, its recipe written first; `empty_trash` deletes from
there only what the recipe still gives, to the byte; `restore` brings a file back from the trash or by its recipe.
Whenever a run is cut short, each file is in its place or in the trash, and the next run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from windlass.core import storage
from windlass.core.errors import NotFound, ReadError, UsageError, WindlassError
from windlass.core.paths import to_os
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.workspace import Workspace
from windlass.lake.parquet_recipes import parquet_recipe, same_rows
from windlass.lake.recipes import (
    RecipeError,
    TextTable,
    copy_recipe,
    digest,
    read_table,
    rebuild,
    rows_recipe,
)
from windlass.lake.reclaim_proposals import CatalogFile, catalog_files, proposals_of
from windlass.lake.retention import PRICES, Prices, Rebuild, RetentionPlan, plan_retention
from windlass.lake.walk import hash_file

_FORMAT = 1
_FOLDER = "reclaimed"
_RECIPE, _DATA = ".json", ".data"
_LARGEST_RECIPE_SHARE = 0.5


class StalePlan(WindlassError):
    """A file changed after the plan was made."""


@dataclass(frozen=True)
class Removal:
    """One file that can go.

    Attributes:
        path, parent: Of the file and of the one that rebuilds it, relative to the folder.
        size, recipe_bytes: What is freed, and what the recipe takes instead.
        content_hash, parent_hash: Of both contents.
        why: For a person.
        recipe: See `recipes`.
    """

    path: str
    parent: str
    size: int
    recipe_bytes: int
    content_hash: str
    parent_hash: str
    parent_kind: str
    why: str
    recipe: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class ReclaimPlan:
    """What can go and why, and what the retention program makes of it."""

    removals: tuple[Removal, ...]
    retention: RetentionPlan

    @property
    def bytes_freed(self) -> int:
        """Bytes that the folder has less once the trash is emptied, recipes counted."""
        return sum(removal.size - removal.recipe_bytes for removal in self.removals)


@dataclass(frozen=True)
class Reclaimed:
    """A file that was taken away.

    `in_trash` says that its bytes still lie in the trash; `exact`, of a file that was restored, that it has its bytes.
    """

    path: str
    parent: str
    size: int
    content_hash: str
    parent_hash: str
    in_trash: bool
    name: str
    exact: bool = True


def plan_reclaim(
    workspace: Workspace,
    *,
    only: Collection[str] = (),
    pin: Collection[str] = (),
    prices: Prices = PRICES["local_ssd"],
    latency_limit_s: float = 60.0,
    progress: Progress | None = None,
) -> ReclaimPlan:
    """What can be taken away, every recipe tried. Reads files and changes nothing.

    Args:
        workspace: Scanned and surveyed.
        only: Consider only these paths for removal; empty for all.
        pin: Paths that stay in any case.
        prices, latency_limit_s: See `retention`.
        progress: Hears of the stage `recipes`.

    Raises:
        NotFound: A path of `only` or `pin` is not in the folder.
        Cancelled: Stopped through `progress`.
    """
    progress = progress or Silent()
    files = catalog_files(workspace)
    for path in (*only, *pin):
        if path not in files:
            raise NotFound(f"no file {path} in {workspace.folder}", hint="paths are relative to the folder")
    stay = {*pin, *_needed(workspace, files)}
    if only:
        stay |= files.keys() - set(only)
    proposals = [proposal for proposal in proposals_of(workspace, files) if proposal.child not in stay]
    removals: dict[tuple[str, str], Removal] = {}
    progress.start("recipes", len(proposals), "files")
    tables: dict[str, TextTable | None] = {}
    for child, parent, why, names in proposals:
        check_cancelled(progress)
        progress.advance("recipes", detail=child)
        recipe = _recipe(workspace, files[child], files[parent], names, tables)
        if recipe is None or (child, parent) in removals:
            continue
        size = len(_manifest_bytes(recipe))
        if size <= _LARGEST_RECIPE_SHARE * files[child].size or recipe["kind"] == "copy":
            facts = (files[child].content_hash, files[parent].content_hash, files[parent].kind)
            removals[child, parent] = Removal(child, parent, files[child].size, size, *facts, why, recipe)
    progress.finish("recipes")
    plan = plan_retention(
        {path: entry.size for path, entry in files.items()},
        [Rebuild(child, parent, removal.recipe_bytes) for (child, parent), removal in removals.items()],
        prices=prices,
        latency_limit_s=latency_limit_s,
        pin=stay,
    )
    chosen = tuple(removals[option.child, option.parent] for _, option in sorted(plan.rebuild.items()))
    return ReclaimPlan(chosen, plan)


def apply_plan(workspace: Workspace, plan: ReclaimPlan, progress: Progress | None = None) -> list[Reclaimed]:
    """Move the plan's files into the trash. Needs the workspace's lock.

    Raises:
        StalePlan: A file or a parent is not what it was; nothing was moved.
        RecipeError: A recipe does not give its file; nothing was moved.
        StorageError: The disk refused; what was moved can be restored.
    """
    progress = progress or Silent()
    finish_interrupted(workspace)
    gone = {removal.path for removal in plan.removals}
    if any(removal.parent in gone for removal in plan.removals):
        raise UsageError("the plan removes a file that another one needs", hint="plan again")
    progress.start("verify", len(plan.removals), "files")
    for removal in plan.removals:
        check_cancelled(progress)
        _check_removal(workspace, removal)
        progress.advance("verify", detail=removal.path)
    progress.finish("verify")
    if plan.removals:
        storage.make_folder(_trash(workspace))
    for removal in plan.removals:
        _take_away(workspace, removal)
    return [entry for entry in list_reclaimed(workspace) if entry.path in gone]


def list_reclaimed(workspace: Workspace) -> list[Reclaimed]:
    """Everything that was taken away and not brought back, in path order."""
    found = []
    for recipe in sorted(_trash(workspace).glob("*" + _RECIPE)):
        content = storage.read_manifest(recipe, _FORMAT)
        in_trash = recipe.with_suffix(_DATA).exists()
        if in_trash or not _stands_there(workspace, content):
            facts = (content["path"], content["parent"], content["size"], content["content_hash"])
            found.append(Reclaimed(*facts, content["parent_hash"], in_trash, recipe.stem))
    return sorted(found, key=lambda entry: entry.path)


def finish_interrupted(workspace: Workspace) -> None:
    """Forget recipes whose file never left its place, or is back there. Needs the workspace's lock."""
    for recipe in _trash(workspace).glob("*" + _RECIPE):
        content = storage.read_manifest(recipe, _FORMAT)
        if _hash_of(_place(workspace, content["path"])) == content["content_hash"]:
            _remove(recipe.with_suffix(_DATA))
            _remove(recipe)


def restore(workspace: Workspace, path: str) -> Reclaimed:
    """Bring a file back, bit-identical, to where it was. Needs the workspace's lock.

    A Parquet file that is rebuilt by another version of pyarrow than wrote it may have other bytes: then its rows,
    columns and types are the same, and `exact` of what is returned is False.

    Raises:
        NotFound: It was not reclaimed.
        UsageError: Another file stands in its place.
        RecipeError: Its parent is gone or changed; the message names it.
        StorageError: The disk refused; nothing changed.
    """
    entry = next((entry for entry in list_reclaimed(workspace) if entry.path == path), None)
    if entry is None:
        raise NotFound(f"{path} was not reclaimed", hint="`windlass lake restore FOLDER` lists what was")
    target = _place(workspace, path)
    if target.exists() or target.is_symlink():
        raise UsageError(f"{path} is there already", hint="move it away first")
    recipe, data = (_trash(workspace) / (entry.name + ending) for ending in (_RECIPE, _DATA))
    content = storage.read_manifest(recipe, _FORMAT)
    if not target.parent.is_dir():
        storage.make_folder(target.parent)
    if entry.in_trash and _hash_of(data) == entry.content_hash:
        storage.move_file(data, target)
    else:
        made = _rebuilt(workspace, content, exact=False)
        entry = replace(entry, exact=digest(made) == entry.content_hash)
        storage.write_atomic(target, made)
        os.chmod(target, content["mode"])
        os.utime(target, ns=(content["mtime_ns"], content["mtime_ns"]))
        _remove(data)
    _remove(recipe)
    return entry


def empty_trash(
    workspace: Workspace, progress: Progress | None = None
) -> tuple[list[Reclaimed], list[tuple[str, str]]]:
    """Delete what lies in the trash and can be rebuilt, each rebuilt and compared first. Needs the workspace's lock.

    Returns:
        What was deleted, and (path, why) of what stays in the trash.
    """
    progress = progress or Silent()
    waiting = [entry for entry in list_reclaimed(workspace) if entry.in_trash]
    deleted, kept = [], []
    progress.start("verify", len(waiting), "files")
    for entry in waiting:
        check_cancelled(progress)
        recipe = _trash(workspace) / (entry.name + _RECIPE)
        try:
            # A parent that lies in the trash itself could go before its child is asked for.
            _rebuilt(workspace, storage.read_manifest(recipe, _FORMAT), from_trash=False)
        except WindlassError as error:
            kept.append((entry.path, str(error)))
        else:
            _remove(recipe.with_suffix(_DATA))
            deleted.append(entry)
        progress.advance("verify", detail=entry.path)
    progress.finish("verify")
    return deleted, kept


def _needed(workspace: Workspace, files: dict[str, CatalogFile]) -> set[str]:
    """Files that earlier removals are rebuilt from, wherever their content stands by now: they must not go."""
    by_hash: dict[str, list[str]] = defaultdict(list)
    for entry in files.values():
        by_hash[entry.content_hash].append(entry.path)
    found = set()
    for gone in list_reclaimed(workspace):
        names = by_hash[gone.parent_hash]
        if names:
            found.add(gone.parent if gone.parent in names else min(names))
    return found


def _recipe(
    workspace: Workspace,
    child: CatalogFile,
    parent: CatalogFile,
    names: dict[str, str] | None,
    tables: dict[str, TextTable | None],
) -> dict[str, Any] | None:
    """A recipe that has given the child's bytes, None when there is none."""
    if child.content_hash == parent.content_hash:
        return copy_recipe()

    def table(entry: CatalogFile) -> TextTable | None:
        if entry.path not in tables:
            while len(tables) >= 8:
                tables.pop(next(iter(tables)))
            tables[entry.path] = read_table(str(_place(workspace, entry.path)), entry.kind)
        return tables[entry.path]

    try:
        ours, theirs = table(child), table(parent)
        if ours is None or theirs is None:
            return None
        make = parquet_recipe if child.kind == "parquet" else rows_recipe
        recipe = make(ours, theirs, names)
        if recipe is None:
            return None
        made = rebuild(recipe, lambda: theirs, theirs.raw)
    except (ReadError, RecipeError):
        return None
    same = made == ours.raw and digest(ours.raw) == child.content_hash and digest(theirs.raw) == parent.content_hash
    return recipe if same else None


def _take_away(workspace: Workspace, removal: Removal) -> None:
    source, name = _place(workspace, removal.path), _name(removal.path, removal.content_hash)
    recipe, data = (_trash(workspace) / (name + ending) for ending in (_RECIPE, _DATA))
    record = source.stat()
    content = {**asdict(removal), "mtime_ns": record.st_mtime_ns, "mode": record.st_mode & 0o7777}
    storage.write_manifest(recipe, _FORMAT, content)
    storage.move_file(source, data)
    if _hash_of(data) != removal.content_hash:  # somebody wrote to it since it was checked
        storage.move_file(data, source)
        _remove(recipe)
        raise StalePlan(f"{removal.path} was changed a moment ago", hint="it is where it was; plan again")


def _stands_there(workspace: Workspace, content: dict[str, Any]) -> bool:
    try:
        record = _place(workspace, content["path"]).stat()
    except OSError:
        return False
    return (record.st_size, record.st_mtime_ns) == (content["size"], content["mtime_ns"])


def _check_removal(workspace: Workspace, removal: Removal) -> None:
    for path, wanted in ((removal.path, removal.content_hash), (removal.parent, removal.parent_hash)):
        if _hash_of(_place(workspace, path)) != wanted:
            raise StalePlan(f"{path} changed since the plan was made", hint="nothing was moved; plan again")
    _rebuilt(workspace, asdict(removal))


def _rebuilt(workspace: Workspace, content: dict[str, Any], *, from_trash: bool = True, exact: bool = True) -> bytes:
    """The bytes of a reclaimed file by its recipe, compared with its hash.

    Without `exact`, a Parquet file that another version of pyarrow writes otherwise passes by its rows and types.

    Raises:
        RecipeError: The parent is nowhere, or something else comes out.
    """
    place = _find_content(workspace, content["parent"], content["parent_hash"], from_trash)
    if place is None:
        raise RecipeError(
            f"{content['path']} needs {content['parent']} as it was (content {content['parent_hash'][:16]}...)",
            hint="put that file back, then run it again",
        )
    table: Callable[[], TextTable | None] = partial(read_table, str(place), content["parent_kind"])
    recipe = content["recipe"]
    made = rebuild(recipe, table, place.read_bytes() if recipe["kind"] == "copy" else b"")
    if digest(made) != content["content_hash"] and not (
        recipe["kind"] == "parquet" and same_rows(recipe, made) and not exact
    ):
        hint = f"it takes the pyarrow of {recipe['writer']}" if "writer" in recipe else "keep the file in the trash"
        raise RecipeError(f"the recipe of {content['path']} gives other bytes", hint=hint)
    return made


def _find_content(workspace: Workspace, path: str, content_hash: str, from_trash: bool) -> Path | None:
    """A file of that content: at its path, under another name of the last scan, or in the trash."""
    with workspace.reading() as connection:
        rows = connection.execute("SELECT path FROM files WHERE content_hash = ? ORDER BY path", (content_hash,))
        names = dict.fromkeys([path, *(row[0] for row in rows)])
    places = [_place(workspace, name) for name in names]
    if from_trash:
        entries = [entry for entry in list_reclaimed(workspace) if entry.content_hash == content_hash]
        places += [_trash(workspace) / (entry.name + _DATA) for entry in entries]
    return next((place for place in places if _hash_of(place) == content_hash), None)


def _hash_of(path: Path) -> str:
    try:
        return hash_file(os.fsencode(path), path.name).content_hash
    except ReadError:
        return ""


def _place(workspace: Workspace, path: str) -> Path:
    return Path(os.fsdecode(os.fsencode(workspace.folder) + b"/" + to_os(path)))


def _trash(workspace: Workspace) -> Path:
    return workspace.state / "trash" / _FOLDER


def _name(path: str, content_hash: str) -> str:
    return hashlib.blake2b(f"{path}\0{content_hash}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _manifest_bytes(recipe: dict[str, Any]) -> bytes:
    return json.dumps(recipe, indent=1, sort_keys=True).encode()


def _remove(path: Path) -> None:
    with storage.writing(path), contextlib.suppress(FileNotFoundError):
        storage.LOCAL_DISK.remove(path)
        storage.LOCAL_DISK.fsync_folder(path.parent)
