"""API keys: made here, shown once, kept as SHA-256 in a file that only the owner can read.

A key is 256 random bits, so a plain hash is enough: there is nothing to guess and no dictionary to try. Keys at the
top of the file are the owner's; a `[[tenant]]` has keys and bounds of its own:

    sha256 = ["..."]

    [[tenant]]
    name = "anna"
    sha256 = ["..."]
    requests_per_minute = 60
    models = ["windlass"]
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from windlass.app.http.tenants import Tenant, digests, tenant_from
from windlass.core import storage
from windlass.core.errors import NotFound, UsageError

OWNER = "default"
PREFIX = "wl-"
FILE_NAME = "keys.toml"


def hash_key(key: str) -> str:
    """What is stored of a key: 64 hex digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def matching_hash(key: str, hashes: Iterable[str]) -> str | None:
    """The one of `hashes` that is `key`'s; takes as long for a wrong key as for a right one.

    Example:
        >>> matching_hash("wl-secret", [hash_key("wl-other"), hash_key("wl-secret")]) == hash_key("wl-secret")
        True
    """
    digest = hash_key(key)
    matches = [known for known in hashes if hmac.compare_digest(digest, known)]
    return matches[0] if matches else None


class KeyFile:
    """The keys of one workspace (`.windlass/keys.toml`).

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def tenants(self) -> tuple[Tenant, ...]:
        """Everybody who has a key; the owner first. None when there is no file.

        Raises:
            UsageError: The file is not TOML, a hash has not 64 hex digits, or a tenant makes no sense.
        """
        try:
            content = self._path.read_text("utf-8")
        except FileNotFoundError:
            return ()
        try:
            return _parse(content)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{self._path} is damaged: {error}", hint="correct it, or remove it to have a new key made"
            ) from error

    def add(self, name: str = OWNER, **bounds: object) -> str:
        """Make a key for the owner or a tenant, store its hash, and return the key: the only time it is known.

        Args:
            name: A tenant, new or known.
            bounds: Fields of `Tenant` that a new one shall have.

        Raises:
            UsageError: The name or a bound makes no sense, or bounds are given for a tenant that is there already.
        """
        key = PREFIX + secrets.token_urlsafe(32)
        tenants = {tenant.name: tenant for tenant in self.tenants()}
        known = tenants.get(name)
        if known is not None and bounds:
            raise UsageError(f"{name} has keys and bounds already", hint=f"change its bounds in {self._path}")
        if known is None:
            try:
                known = Tenant(OWNER, admin=True) if name == OWNER else tenant_from({"name": name, **bounds})
            except ValueError as error:
                raise UsageError(str(error)) from error
        tenants[name] = replace(known, hashes=(*known.hashes, hash_key(key)))
        self._write(tenants.values())
        return key

    def remove(self, name: str) -> None:
        """Forget a tenant and its keys; they open nothing from the server's next start on.

        Raises:
            NotFound: There is none of that name.
        """
        tenants = {tenant.name: tenant for tenant in self.tenants()}
        if tenants.pop(name, None) is None:
            raise NotFound(f"nobody named {name!r} has a key", hint=f"known: {', '.join(tenants) or 'nobody'}")
        self._write(tenants.values())

    def _write(self, tenants: Iterable[Tenant]) -> None:
        storage.write_atomic(self._path, _rendered(tenants).encode())
        os.chmod(self._path, 0o600)


def _parse(content: str) -> tuple[Tenant, ...]:
    stored = tomllib.loads(content)
    unknown = sorted(set(stored) - {"sha256", "tenant"})
    if unknown:
        raise ValueError(f"unknown entries: {', '.join(unknown)}")
    entries = stored.get("tenant", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("tenants are written as [[tenant]]")
    owner = Tenant(OWNER, digests(stored.get("sha256", [])), admin=True)
    tenants = [*([owner] if owner.hashes else []), *map(tenant_from, entries)]
    for seen, what in (
        ([tenant.name for tenant in [owner, *tenants[bool(owner.hashes) :]]], "two tenants have the same name"),
        ([digest for tenant in tenants for digest in tenant.hashes], "two tenants have the same key"),
    ):
        if len(set(seen)) != len(seen):
            raise ValueError(what)
    return tuple(tenants)


def _rendered(tenants: Iterable[Tenant]) -> str:
    lines = ["# SHA-256 of the keys that may use this workspace over the network."]
    # The owner's keys stand outside any [[tenant]], so they come first.
    for tenant in sorted(tenants, key=lambda tenant: tenant.name != OWNER):
        if tenant.name != OWNER:
            lines += ["", "[[tenant]]", f"name = {json.dumps(tenant.name)}"]
        lines += ["sha256 = [", *(f'    "{digest}",' for digest in tenant.hashes), "]"]
        if tenant.name != OWNER:
            lines += [
                f"{field} = {json.dumps(value)}"
                for field, value in asdict(tenant).items()
                if field not in ("name", "hashes") and value is not None
            ]
    return "\n".join([*lines, ""])
