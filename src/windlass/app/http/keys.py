"""API keys: made here, shown once, kept as SHA-256 in a file that only the owner can read.

A key is 256 random bits, so a plain hash is enough: there is nothing to guess and no dictionary to try.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tomllib
from collections.abc import Iterable
from pathlib import Path

from windlass.core import storage
from windlass.core.errors import UsageError

PREFIX = "wl-"
FILE_NAME = "keys.toml"


def hash_key(key: str) -> str:
    """What is stored of a key: 64 hex digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def key_matches(key: str, hashes: Iterable[str]) -> bool:
    """True when `key` is one of those hashed; takes as long for a wrong key as for a right one.

    Example:
        >>> key_matches("wl-secret", [hash_key("wl-other"), hash_key("wl-secret")])
        True
    """
    digest = hash_key(key)
    matches = [hmac.compare_digest(digest, known) for known in hashes]
    return any(matches)


class KeyFile:
    """The keys of one workspace (`.windlass/keys.toml`).

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def hashes(self) -> tuple[str, ...]:
        """The stored hashes, none when there is no file.

        Raises:
            UsageError: The file is not TOML with a list `sha256` of 64 hex digits each.
        """
        try:
            content = self._path.read_text("utf-8")
        except FileNotFoundError:
            return ()
        try:
            stored = tomllib.loads(content).get("sha256", [])
            if not all(len(bytes.fromhex(digest)) == 32 for digest in stored):
                raise ValueError("a hash must have 64 hex digits")
        except (ValueError, TypeError, AttributeError) as error:
            raise UsageError(f"{self._path} is damaged: {error}", hint="remove it to have a new key made") from error
        return tuple(digest.lower() for digest in stored)

    def add(self) -> str:
        """Make a key, store its hash beside the others, and return the key: the only time it is known."""
        key = PREFIX + secrets.token_urlsafe(32)
        digests = [*self.hashes(), hash_key(key)]
        lines = ["# SHA-256 of the keys that may use this workspace over the network.", "sha256 = ["]
        lines += [*(f'    "{digest}",' for digest in digests), "]", ""]
        storage.write_atomic(self._path, "\n".join(lines).encode())
        os.chmod(self._path, 0o600)
        return key
